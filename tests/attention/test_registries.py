"""What is registered is what runs, and entries are values: they have a hash and can be jitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from vivit.analysis.capture import capture
from vivit.analysis.rollout import rollout
from vivit.attention import KERNELS, PATTERNS, KernelRequirements, kernel, pattern
from vivit.attention.kernels import dense

TINY = {"clip": (4, 8, 8), "tubelet": (2, 4, 4), "classes": 3, "width": 12, "depth": 1}
TINY |= {"heads": 2, "mlp_dim": 16, "readout": "mean"}
CLIPS = np.random.default_rng(0).uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)
ONES = jnp.ones((1, 8, 49, 2, 4))


@pytest.fixture
def fresh():
    """Takes entries registered by a test out again."""
    before = [(registry, set(registry)) for registry in (KERNELS, PATTERNS)]
    yield
    for registry, names in before:
        for name in set(registry) - names:
            del registry._items[name]


@pytest.mark.parametrize("name", list(KERNELS))
def test_a_kernel_is_a_hashable_value(name):
    entry = KERNELS[name]
    assert entry == KERNELS[name]
    assert hash(entry) == hash(KERNELS[name])
    q = ONES[:, 0]
    requirements = KernelRequirements(channels=4, dtype="float32")
    if entry.over_devices or entry.unsupported_reason(requirements):
        with pytest.raises(ValueError, match=f'kernel "{name}"'):
            jax.jit(entry)(q, q, q)
    else:
        np.testing.assert_allclose(jax.jit(entry)(q, q, q), dense(q, q, q), atol=1e-6)


@pytest.mark.parametrize("name", [*PATTERNS, "window(2, 2, 2)"])
def test_a_pattern_is_a_hashable_value(name):
    entry = PATTERNS[name]
    assert entry == PATTERNS[name]
    mix = jax.jit(entry, static_argnums=3, static_argnames=("space", "layer"))
    parameters = {
        key: jnp.zeros(shape) for key, (shape, _) in entry.parameters(2, 4, **entry.options).items()
    }
    out = mix(ONES, ONES, ONES, KERNELS["dense"], space=(7, 7), layer=0, **parameters)
    expected = 0 if name == "trajectory" else 1  # its second values are projected, here by zeros
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_fresh_kernel_and_a_fresh_pattern_run_and_nothing_else(fresh):
    """Halves of the sum over a set that is one row of the clip's first time step."""
    calls = []

    @kernel("halves", softmax=False)
    def halves(q, k, v, *, part: float = 0.5):
        calls.append("halves")
        out = part * v.sum(axis=-3, keepdims=True)
        return jnp.broadcast_to(out, (*q.shape[:-1], v.shape[-1]))

    @pattern("first_step", axes="ts", scores=lambda t, y, x, keys: t * y * x * keys)
    def first_step(q, k, v, attend, *, keys: int = 1):
        calls.append(f"first_step {keys}")
        b, t, s, h, _ = q.shape
        out = attend(q.reshape(b, t * s, h, -1), k[:, 0, :keys], v[:, 0, :keys])
        return out.reshape(b, t, s, h, -1)

    model = vivit.build({**TINY, "family": "first_step(2)", "kernel": "halves"})
    params = model.init(jax.random.key(0), CLIPS)["params"]
    calls.clear()
    model.apply({"params": params}, CLIPS)
    assert set(calls) == {"halves", "first_step 2"}
    maps = capture(model, params, CLIPS)
    expected = np.zeros((2, 2, 2, 4, 2, 4))  # [B, h, Tq, Sq, Tk, Sk]
    expected[..., 0, :2] = 0.5
    np.testing.assert_allclose(maps.weights()[0], expected, atol=1e-6)
    # Each token reaches the readout by its residual, and the two keys by all eight queries too.
    expected = np.full((2, 2, 4), 1.0)
    expected[:, 0, :2] += 8 * 0.5
    expected /= expected.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(rollout(maps), expected, atol=1e-6)
    assert PATTERNS["first_step(3)"].label == "first_step(3)"
    assert KERNELS["halves(0.25)"](ONES, ONES, ONES).max() == 0.25 * 49
    with pytest.raises(ValueError, match=r"written like first_step\(keys=1\)"):
        PATTERNS["first_step(rows=2)"]


def test_a_call_option_that_a_kernel_does_not_take_is_refused(fresh):
    kernel("plain")(lambda q, k, v: dense(q, k, v))
    q = ONES[:, 0]
    np.testing.assert_array_equal(KERNELS["plain"](q, q, q, mask=None), dense(q, q, q))
    with pytest.raises(ValueError, match="'plain' takes no mask"):
        KERNELS["plain"](q, q, q, mask=jnp.ones((49, 49), bool))
    with pytest.raises(ValueError, match="pattern 'causal_time': it has no mask"):
        vivit.build({**TINY, "family": "causal_time", "kernel": "plain"})
    with pytest.raises(ValueError, match=r"'other' takes masks; a call has bias, mask, .*default"):
        kernel("other")(lambda q, k, v, *, masks: v)


def test_auto_takes_the_first_kernel_that_suits(fresh):
    calls = []
    kernel("small", auto_order=-1, auto_scores=lambda platform: (0, 9))(
        lambda q, k, v: calls.append("small") or v
    )
    q = ONES[:, 0, :3]
    KERNELS["auto"](q, q, q)
    assert calls == ["small"]
    KERNELS["auto"](q, q, q, soft_cap=1.0)  # an option that it has not
    KERNELS["auto"](ONES[:, 0], ONES[:, 0], ONES[:, 0])  # more scores
    assert calls == ["small"]


def test_a_pattern_says_what_it_takes(fresh):
    with pytest.raises(ValueError, match="'odd' takes size; the model gives space, .*default"):
        pattern("odd")(lambda q, k, v, attend, *, size: v)
    with pytest.raises(ValueError, match='of "bias" and "mask"'):
        pattern("odd", kernel_options=("masks",))
    assert "odd" not in PATTERNS
