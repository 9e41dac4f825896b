"""Who sees whom, under every pattern and every kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit.attention import KERNELS, PATTERNS, pattern
from vivit.attention.kernels import dense

# Of a grid with 2 steps of 2 places: which keys (columns: t0s0 t0s1 t1s0 t1s1) each query sees.
SPACE = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
TIME = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
ALL = [[1, 1, 1, 1]] * 4
SEEN = {  # of the first head and the second
    "joint": (ALL, ALL),
    "space": (SPACE, SPACE),
    "time": (TIME, TIME),
    "split_heads": (TIME, SPACE),
}


def weights(name, q, k, kernel=dense):
    """[h, queries, keys] of one clip, by values that mark the keys."""
    _, t, s, h, _ = q.shape
    marks = jnp.broadcast_to(jnp.eye(t * s).reshape(1, t, s, 1, t * s), (1, t, s, h, t * s))
    return jnp.moveaxis(PATTERNS[name].mix(q, k, marks, kernel)[0], 2, 0).reshape(h, t * s, t * s)


def draw(t, s, heads=2, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(1, t, s, heads, 4)), jnp.float32) for _ in range(3)]


@pytest.mark.parametrize("name", SEEN)
def test_who_sees_whom(name):
    q, k, _ = draw(2, 2)
    for head, seen in enumerate(SEEN[name]):
        np.testing.assert_array_equal(weights(name, q, k)[head] > 0, np.array(seen, bool))


@pytest.mark.parametrize("name", PATTERNS)
def test_rows_of_every_pattern_sum_to_one(name):
    q, k, _ = draw(3, 4)
    np.testing.assert_allclose(weights(name, q, k).sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_gives_the_same_under_every_kernel(name, kernel):
    q, k, v = draw(3, 5)
    mix = jax.jit(PATTERNS[name].mix, static_argnums=3)
    np.testing.assert_allclose(mix(q, k, v, KERNELS[kernel]), mix(q, k, v, dense), atol=1e-5)


@pytest.mark.parametrize("name", ["joint", "space"])
def test_with_one_step_space_and_joint_are_the_image_models_attention(name):
    q, k, v = draw(1, 6)
    expected = dense(q[:, 0], k[:, 0], v[:, 0])[:, None]
    np.testing.assert_allclose(PATTERNS[name].mix(q, k, v, dense), expected, atol=1e-6)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_mixes_the_axes_it_says(name):
    q, k, _ = draw(3, 4)
    seen = np.asarray(weights(name, q, k)).max(axis=0).reshape(3, 4, 3, 4) > 0
    other_steps = any(seen[t, :, u].any() for t in range(3) for u in range(3) if t != u)
    other_places = any(seen[:, s, :, u].any() for s in range(4) for u in range(4) if s != u)
    axes = ("t" if other_steps else "") + ("s" if other_places else "")
    assert axes == PATTERNS[name].axes


def test_a_second_pattern_of_a_name_is_refused():
    with pytest.raises(ValueError, match="'joint' is registered already"):
        pattern("joint")(lambda q, k, v, attend: v)


def test_an_unknown_pattern_lists_the_known():
    with pytest.raises(ValueError, match="known: joint, space, split_heads, time"):
        PATTERNS["jiont"]


def test_a_pattern_must_name_its_axes():
    with pytest.raises(ValueError, match='"t", "s" or "ts"'):
        pattern("nothing", axes="x")
