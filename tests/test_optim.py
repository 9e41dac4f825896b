import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import TINY
from vivit.optim import OPTIMIZERS, decayed, make_optimizer, warmup_cosine

BASE = {
    "steps": 10,
    "lr": 0.1,
    "lr_floor": 0.0,
    "warmup_steps": 0,
    "clip_norm": None,
    "b1": 0.9,
    "b2": 0.999,
    "momentum": 0.9,
    "weight_decay": 0.0,
}


def test_the_schedule_warms_up_and_ends_at_its_floor():
    schedule = warmup_cosine(lr=1.0, lr_floor=0.1, warmup_steps=4, steps=13)
    values = [float(schedule(step)) for step in range(14)]
    np.testing.assert_allclose(values[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(values[8], 0.55, rtol=1e-6)  # half-way
    np.testing.assert_allclose(values[12:], [0.1, 0.1], rtol=1e-6)  # the last step, and after it
    assert all(a >= b for a, b in itertools.pairwise(values[4:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 10}, "warmup_steps=10 must be .* less than train.steps=10"),
        ({"lr_floor": 0.2}, "lr_floor=0.2 must be between 0 and lr=0.1"),
        ({"name": "adam"}, "unknown optimiser 'adam'; known: adamw, sgd"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**{**BASE, "name": "sgd", **change})


def test_only_kernels_decay():
    model = vivit.build({**TINY, "family": "factorised_encoder", "readout": "cls"})
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 8, 8, 3)))["params"]
    flat = jax.tree_util.tree_leaves_with_path(decayed(params))
    for path, decays in flat:
        assert decays == (path[-1].key == "kernel"), path
    names = {jax.tree_util.keystr(path) for path, decays in flat if not decays}
    assert any("position" in name for name in names)
    assert any("class_token" in name for name in names)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_decay_shrinks_kernels_alone(name):
    optimizer, _ = make_optimizer(**{**BASE, "name": name, "weight_decay": 0.5})
    params = {"kernel": jnp.ones(3), "bias": jnp.ones(3)}
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_sgd_has_momentum():
    optimizer, _ = make_optimizer(**{**BASE, "name": "sgd", "steps": 1000})
    params = {"bias": jnp.ones(1)}
    state = optimizer.init(params)
    grads = {"bias": jnp.ones(1)}
    first, state = optimizer.update(grads, state, params)
    second, _ = optimizer.update(grads, state, params)
    np.testing.assert_allclose(second["bias"] / first["bias"], 1.9, rtol=1e-3)


def test_gradients_are_clipped_by_their_global_norm():
    optimizer, _ = make_optimizer(**{**BASE, "name": "sgd", "clip_norm": 1.0})
    params = {"bias": jnp.zeros(2)}
    updates, _ = optimizer.update({"bias": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], [-0.06, -0.08], rtol=1e-5)
