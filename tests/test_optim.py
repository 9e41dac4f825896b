import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vivit
from tests.test_model import TINY
from vivit.optim import (
    OPTIMIZERS,
    SCHEDULES,
    decayed,
    make_optimizer,
    optimizer,
    schedule,
    warmup_cosine,
)
from vivit.settings import OptimSettings


def make(name="sgd(weight_decay=0.0)", *, steps=10, lr=0.1, clip_norm=None, **settings):
    """The optimiser and the schedule of these settings."""
    given = OptimSettings(name=name, lr=lr, clip_norm=clip_norm, **settings)
    return make_optimizer(given, steps=steps)


def test_the_schedule_warms_up_and_ends_at_its_floor():
    rate = warmup_cosine(lr=1.0, floor=0.1, warmup_steps=4, steps=13)
    values = [float(rate(step)) for step in range(14)]
    np.testing.assert_allclose(values[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(values[8], 0.55, rtol=1e-6)  # half-way
    np.testing.assert_allclose(values[12:], [0.1, 0.1], rtol=1e-6)  # the last step, and after it
    assert all(a >= b for a, b in itertools.pairwise(values[4:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 10}, "warmup_steps=10 must be .* less than train.steps=10"),
        ({"schedule": "cosine(floor=0.2)"}, "floor=0.2 .* must be between 0 and lr=0.1"),
        ({"schedule": "cosine(floor=0.2, b=1)"}, r"are written like cosine\(floor=0.0\)"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; known: cosine"),
        (
            {"name": "sgd(b1=0.9)"},
            r"options of optimiser 'sgd' are written like sgd\(momentum=0.9, weight_decay=0.05\)",
        ),
        ({"layer_decay": 0.0}, r"layer_decay=0.0 is not in \(0, 1\]"),
        ({"name": "adam"}, "unknown optimiser 'adam'; known: adamw, sgd"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


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
    transform, _ = make(f"{name}(weight_decay=0.5)")
    params = {"kernel": jnp.ones(3), "bias": jnp.ones(3)}
    updates, _ = transform.update(
        jax.tree.map(jnp.zeros_like, params), transform.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_sgd_has_momentum():
    transform, _ = make(steps=1000)
    params = {"bias": jnp.ones(1)}
    state = transform.init(params)
    grads = {"bias": jnp.ones(1)}
    first, state = transform.update(grads, state, params)
    second, _ = transform.update(grads, state, params)
    np.testing.assert_allclose(second["bias"] / first["bias"], 1.9, rtol=1e-3)


def test_gradients_are_clipped_by_their_global_norm():
    transform, _ = make(clip_norm=1.0)
    params = {"bias": jnp.zeros(2)}
    updates, _ = transform.update({"bias": jnp.array([30.0, 40.0])}, transform.init(params), params)
    np.testing.assert_allclose(updates["bias"], [-0.06, -0.08], rtol=1e-5)


def test_a_fresh_optimiser_and_schedule_are_what_runs(monkeypatch):
    monkeypatch.setattr(OPTIMIZERS, "_items", dict(OPTIMIZERS._items))
    monkeypatch.setattr(SCHEDULES, "_items", dict(SCHEDULES._items))

    @optimizer("signs")
    def signs(*, scale: float = 1.0):
        return optax.stateless(
            lambda updates, _: jax.tree.map(lambda x: scale * jnp.sign(x), updates)
        )

    @schedule("halving")
    def halving(*, lr, warmup_steps, steps, every: int = 2):
        return lambda step: lr * 0.5 ** (step // every)

    transform, rate = make("signs(scale=3)", schedule="halving(4)", lr=1.0)
    params = {"bias": jnp.zeros(2)}
    state = transform.init(params)
    updates, state = transform.update({"bias": jnp.array([-7.0, 0.1])}, state, params)
    np.testing.assert_allclose(updates["bias"], [3, -3])
    assert [float(rate(step)) for step in (0, 3, 4)] == [1, 1, 0.5]
    with pytest.raises(ValueError, match="options lost of bad need a default"):

        @optimizer("bad")
        def bad(*, lost):
            """Never registered."""

    with pytest.raises(ValueError, match="worse must take lr, warmup_steps by keyword"):

        @schedule("worse")
        def worse(*, steps):
            """Never registered."""
