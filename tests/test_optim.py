import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vivit
from tests.test_model import TINY
from vivit.model.params import stack_layers
from vivit.optim import (
    OPTIMIZERS,
    SCHEDULES,
    make_optimizer,
    optimizer,
    peak_rate,
    schedule,
)
from vivit.optimizers import decayed
from vivit.settings import OptimSettings


def make(name="sgd(weight_decay=0.0)", *, steps=10, lr=0.1, clip_norm=None, **settings):
    """The optimiser and the schedule of these settings."""
    given = OptimSettings(name=name, lr=lr, clip_norm=clip_norm, **settings)
    return make_optimizer(given, steps=steps, batch_size=8)


@pytest.mark.parametrize(
    ("name", "halfway"),
    [
        ("cosine(floor=0.1)", 0.55),
        ("linear(floor=0.1)", 0.55),
        ("constant", 1.0),
        ("wsd(decay=0.75, floor=0.1)", 0.1 + 0.9 * 0.5 / 0.75),
        ("wsd(floor=0.1)", 1.0),
        ("steps((0.4, 0.9), factor=0.5)", 0.5),
        ("rsqrt(timescale=4, decay=0.25, floor=0.1)", 0.1 + 0.9 / 2**0.5),
    ],
)
def test_a_schedule_warms_up_and_ends_at_its_floor(name, halfway):
    rate = SCHEDULES[name](lr=1.0, warmup_steps=4, steps=13)
    values = [float(rate(step)) for step in range(14)]
    np.testing.assert_allclose(values[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(values[8], halfway, rtol=1e-6)
    floor = SCHEDULES[name].options.get("floor", 0.25 if name.startswith("steps") else 1.0)
    np.testing.assert_allclose(values[12:], [floor] * 2, rtol=1e-6)  # the last step, and after it
    assert all(a >= b for a, b in itertools.pairwise(values[4:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 10}, "warmup_steps=10 must be .* less than train.steps=10"),
        ({"schedule": "cosine(floor=0.2)"}, "floor=0.2 .* must be between 0 and lr=0.1"),
        ({"schedule": "cosine(floor=0.2, b=1)"}, r"are written like cosine\(floor=0.0\)"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; known: constant, cosine, linear"),
        (
            {"name": "sgd(b1=0.9)"},
            r"of optimiser 'sgd' are written like sgd\(momentum=0.9, weight_decay=0.05, nesterov=",
        ),
        ({"layer_decay": 0.0}, r"layer_decay=0.0 is not in \(0, 1\]"),
        (
            {"name": "adam"},
            "unknown optimiser 'adam'; known: adafactor, adamw, lamb, lion, muon, sgd",
        ),
        ({"schedule": "steps((0.5, 1.0))"}, r"at=\(0.5, 1.0\) of optim.schedule are not parts"),
        ({"schedule": "wsd(decay=0.0)"}, r"decay=0.0 of optim.schedule is not in \(0, 1\]"),
        ({"name": "sgd(momentum=1.0)"}, r"momentum=1.0 is not in \[0, 1\)"),
        ({"name": "adamw(b2=-0.5)"}, r"b2=-0.5 is not in \[0, 1\)"),
        ({"name": "lion(weight_decay=1e999)"}, "weight_decay=inf is not a number of at least 0"),
        ({"lr": float("nan")}, "optim.lr=nan is not a number of at least 0"),
        ({"lr": -0.1}, "optim.lr=-0.1 is not a number of at least 0"),
        ({"clip_norm": -1.0}, "optim.clip_norm=-1.0 is not a number of at least 0, or None"),
        ({"lr_batch_size": -8}, "optim.lr_batch_size=-8 is below 0"),
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
    size = 1 / 0.5 if name == "lamb" else 1.0  # its update has the norm of the array
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * size, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0)


MATRIX = {"stage_0": {"layer_0": {"mlp": {"up": {"kernel": jnp.arange(6.0).reshape(2, 3) - 2}}}}}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("sgd(nesterov=True, weight_decay=0.0)", optax.sgd(0.1, 0.9, nesterov=True)),
        ("lamb(weight_decay=0.2)", optax.lamb(0.1, weight_decay=0.2)),
        ("lion(weight_decay=0.2)", optax.lion(0.1, weight_decay=0.2)),
        ("adafactor(weight_decay=0.0)", optax.adafactor(0.1)),
        (
            "adafactor(scale_by_size=False, weight_decay=0.0)",
            optax.adafactor(0.1, multiply_by_parameter_scale=False),
        ),
        ("muon(weight_decay=0.0)", optax.contrib.muon(0.1, consistent_rms=0.2)),
        ("muon(weight_decay=0.2)", optax.contrib.muon(0.1, consistent_rms=0.2, weight_decay=0.2)),
    ],
)
def test_an_optimiser_does_what_optax_means_by_its_name(name, theirs):
    ours, _ = make(name, schedule="constant")
    grads = jax.tree.map(lambda x: jnp.cos(3 * x), MATRIX)
    states, params = [ours.init(MATRIX), theirs.init(MATRIX)], [MATRIX, MATRIX]
    for _ in range(3):
        for i, transform in enumerate((ours, theirs)):
            updates, states[i] = transform.update(grads, states[i], params[i])
            params[i] = optax.apply_updates(params[i], updates)
    one, other = map(jax.tree.leaves, params)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    assert not np.allclose(one[0], jax.tree.leaves(MATRIX)[0], atol=0.01)


def test_muon_orthogonalises_its_momentum():
    """By Newton and Schulz's iteration in NumPy, on q of two heads, whose channels are one side."""
    rng, decay = np.random.default_rng(0), 0.8
    params = {
        "stage_0": {"layer_0": {"attention_joint": {"query": {"kernel": np.zeros((5, 2, 2))}}}}
    }
    transform, _ = make(f"muon(momentum={decay}, weight_decay=0.0)", schedule="constant")
    state, momentum = transform.init(params), np.zeros((5, 4))
    for _ in range(3):
        grad = rng.normal(size=(5, 4))
        grads = jax.tree.map(lambda x, g=grad: jnp.asarray(g.reshape(x.shape), jnp.float32), params)
        updates, state = transform.update(grads, state, params)
        momentum = grad + decay * momentum
        x = grad + decay * momentum
        x /= np.linalg.norm(x)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.775 * gram @ x + 2.0315 * gram @ gram @ x
        expected = -0.1 * 0.2 * 5**0.5 * x
        np.testing.assert_allclose(
            jax.tree.leaves(updates)[0].reshape(5, 4), expected, rtol=1e-3, atol=1e-6
        )


def layer():
    attention = {"query": {"kernel": (4, 2, 3)}, "out": {"kernel": (2, 3, 4), "bias": (4,)}}
    return {"attention_joint": attention, "mlp": {"up": {"kernel": (4, 6)}}}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_scanned_layers_are_updated_like_unrolled_ones(name):
    rng = np.random.default_rng(0)
    unrolled = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        {"stage_0": {"layer_0": layer(), "layer_1": layer()}, "head": {"kernel": (4, 3)}},
        is_leaf=lambda x: isinstance(x, tuple),
    )
    updates = []
    for params in (stack_layers(unrolled), unrolled):
        transform, _ = make(name)
        grads = jax.tree.map(lambda x: np.sin(30 * x), params)
        update = jax.jit(lambda g, p, of=transform: of.update(g, of.init(p), p)[0])
        updates.append(update(grads, params))
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-7)
    jax.tree.map(close, updates[0], stack_layers(updates[1]))


@pytest.mark.parametrize("batch_size", [64, 1024])
def test_the_rate_grows_with_the_batch_on_request(batch_size):
    settings = OptimSettings(lr=0.1, lr_batch_size=256, schedule="linear(floor=0.01)")
    _, rate = make_optimizer(settings, steps=10, batch_size=batch_size)
    assert float(rate(0)) == pytest.approx(0.1 * batch_size / 256)
    assert float(rate(9)) == pytest.approx(0.01)
    assert peak_rate(OptimSettings(lr=0.1), batch_size) == 0.1


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
