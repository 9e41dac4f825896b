"""Every pattern against the pictures of its docstring, and under every kernel."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit.attention import KERNELS, PATTERNS, pattern
from vivit.attention.kernels import dense
from vivit.attention.patterns import CONTEXT_ARGS

PICTURE = re.compile(
    r" *[Qq] of `(?P<name>[^`]+)`(?: in layer (?P<layer>\d))?(?: in head (?P<head>\d))? sees #:\n"
    r"\s*\n(?P<rows>(?: +[Qq#.][Qq#. |]*(?:\n|$))+)"
)


class Picture:
    """Of a docstring: a pattern's name with options, a grid, a query and what it sees."""

    def __init__(self, match):
        self.name = match["name"]
        self.layer, self.head = int(match["layer"] or 0), int(match["head"] or 0)
        steps = [
            [step.split() for step in row.split("|")] for row in match["rows"].strip().splitlines()
        ]
        self.marks = np.swapaxes(np.array(steps), 0, 1)  # [T, Y, X]
        self.query = np.flatnonzero(np.isin(self.marks, ["Q", "q"])).item()
        self.sees = np.isin(self.marks, ["Q", "#"]).ravel()

    def __repr__(self):
        return f"{self.name}-{self.layer}-{self.head}"


def pictures(name):
    return [Picture(match) for match in PICTURE.finditer(PATTERNS[name].mix.__doc__)]


PICTURES = [picture for name in PATTERNS for picture in pictures(name)]
GRIDS = {picture.name: picture.marks.shape for picture in reversed(PICTURES)}  # one each


def draw(grid, heads=2, channels=4, seed=0, batch=1):
    """Queries, keys and values of a grid (t, y, x)."""
    rng = np.random.default_rng(seed)
    t, y, x = grid
    shape = (batch, t, y * x, heads, channels)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)]


def context(name, grid, v, layer=0, seed=5):
    """A pattern's keyword arguments, its parameters drawn at random."""
    found = PATTERNS[name]
    heads, channels = v.shape[3:]
    rng = np.random.default_rng(seed)
    parameters = found.parameters(heads, channels, **found.options)
    drawn = {
        key: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for key, (shape, _) in parameters.items()
    }
    return {"space": grid[1:], "layer": layer, **drawn}


def mixer(name, grid, v, kernel=dense, layer=0, **more):
    """(q, k, v) -> the result of the pattern."""
    return partial(PATTERNS[name], attend=kernel, **context(name, grid, v, layer), **more)


@cache
def weights(name, grid, *, layer=0, heads=2, kernel=dense):
    """[h, queries, keys] of one clip, by values that mark the keys."""
    q, k, v = draw(grid, heads)
    n = int(np.prod(grid))
    marks = jnp.eye(n).reshape(1, grid[0], grid[1] * grid[2], 1, n)
    marks = jnp.broadcast_to(marks, (1, grid[0], grid[1] * grid[2], heads, n))
    more = {"values": v} if "values" in PATTERNS[name].context_args else {}
    mix = jax.jit(mixer(name, grid, v, kernel, layer, **more))
    return jnp.moveaxis(mix(q, k, marks)[0], 2, 0).reshape(heads, n, n)


@pytest.mark.parametrize("name", list(PATTERNS))
def test_every_pattern_has_a_picture_a_paper_and_a_cost(name):
    found = PATTERNS[name]
    assert pictures(name), f"{name}: no picture in its docstring"
    assert re.search(r"\d{4}\.\d{5}", found.mix.__doc__), f"{name}: no paper"
    assert " scores" in found.mix.__doc__
    assert found.scores is not None


@pytest.mark.parametrize("picture", PICTURES, ids=repr)
def test_a_query_sees_what_its_picture_shows(picture):
    """By the gradient of one query's result with respect to all values."""
    grid = picture.marks.shape
    q, k, v = draw(grid)
    mix = mixer(picture.name, grid, v, layer=picture.layer)

    def of_query(v):
        out = mix(q, k, v)
        return out.reshape(-1, *out.shape[3:])[picture.query, picture.head].sum()

    gradient = np.abs(jax.jit(jax.grad(of_query))(v)).sum(axis=(0, 3, 4)).ravel()
    np.testing.assert_array_equal(gradient > 1e-12, picture.sees)


@pytest.mark.parametrize("name", list(GRIDS))
def test_scores_are_counted_as_they_are(name):
    """On a grid that the windows and strides divide. The second softmax of a trajectory is over
    pools, whose scores are not pairs of tokens."""
    found, grid = PATTERNS[name], (4, 4, 4)
    seen = np.asarray(weights(name, grid) > 0).sum() / 2
    counted = found.scores(*grid, **found.options)
    if name == "trajectory":
        counted -= 4 * 4 * 4 * 4
    assert seen == counted


@pytest.mark.parametrize("name", list(GRIDS))
def test_rows_of_every_pattern_sum_to_one(name):
    for grid, layer in ((GRIDS[name], 0), ((3, 3, 5), 0), ((5, 4, 3), 1)):
        rows = weights(name, grid, layer=layer).sum(axis=-1)
        np.testing.assert_allclose(rows, 1, atol=1e-5)


@cache
def value_and_grads(name, kernel):
    grid = (3, 3, 4)
    q, k, v = draw(grid, batch=2)
    mix = mixer(name, grid, v, KERNELS[kernel], layer=1)
    loss = lambda q, k, v: (mix(q, k, v) ** 2).sum()
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)


@pytest.mark.parametrize("kernel", ["chunked", "auto"])  # fused and rings have their own tests
@pytest.mark.parametrize("name", list(GRIDS))
def test_every_pattern_gives_the_same_under_every_kernel(name, kernel):
    (a, ours), (b, reference) = value_and_grads(name, kernel), value_and_grads(name, "dense")
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for x, y in zip(ours, reference, strict=True):
        assert np.isfinite(y).all()
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(GRIDS))
def test_every_pattern_is_the_same_compiled_or_not(name):
    grid = (3, 3, 4)
    q, k, v = draw(grid)
    mix = mixer(name, grid, v)
    np.testing.assert_allclose(jax.jit(mix)(q, k, v), mix(q, k, v), atol=1e-5)


@pytest.mark.parametrize("name", list(GRIDS))
def test_a_pattern_mixes_the_axes_it_says(name):
    t, s = 4, 16
    seen = np.asarray(weights(name, (4, 4, 4), layer=1)).max(axis=0).reshape(t, s, t, s) > 0
    other_steps = any(seen[i, :, j].any() for i in range(t) for j in range(t) if i != j)
    other_spatial = any(seen[:, i, :, j].any() for i in range(s) for j in range(s) if i != j)
    axes = ("t" if other_steps else "") + ("s" if other_spatial else "")
    if name.startswith(("window(1", "neighbourhood(1")):
        assert axes == "s"  # one step deep, by its options
    else:
        assert axes == PATTERNS[name].axes


ANY_ORDER_OF_STEPS = ["joint", "space", "time", "split_heads", "height", "width"]
ANY_ORDER_IN_SPACE = ["joint", "space", "time", "split_heads", "causal_time"]
ANY_ORDER_IN_SPACE += ["dilated_time(2)", "strided_time(2)", "trajectory"]


@pytest.mark.parametrize(
    ("name", "axis"),
    [(name, 1) for name in [*ANY_ORDER_OF_STEPS, "trajectory"]]
    + [(name, 2) for name in ANY_ORDER_IN_SPACE],
)
def test_patterns_without_positions_do_not_know_the_order_of_tokens(name, axis):
    """A permutation of time steps (1) or of spatial tokens (2) permutes the result."""
    grid = (4, 2, 3)
    q, k, v = draw(grid)
    mix = jax.jit(mixer(name, grid, v))
    order = np.random.default_rng(1).permutation(q.shape[axis])
    permuted = mix(*(x.take(order, axis=axis) for x in (q, k, v)))
    np.testing.assert_allclose(permuted, mix(q, k, v).take(order, axis=axis), atol=1e-5)


@pytest.mark.parametrize("name", ["joint", "space"])
def test_with_one_step_space_and_joint_are_the_image_models_attention(name):
    q, k, v = draw((1, 2, 3))
    expected = dense(q[:, 0], k[:, 0], v[:, 0])[:, None]
    np.testing.assert_allclose(PATTERNS[name](q, k, v, dense), expected, atol=1e-6)


# --- brute force, token by token ---


def brute(q, k, v, sees, bias=None):
    """softmax over the keys that `sees[query, key]` allows, for one clip, in float64."""
    q, k, v = (np.asarray(x, np.float64)[0].reshape(-1, *x.shape[3:]) for x in (q, k, v))
    scores = np.einsum("nhk,mhk->hnm", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(sees, scores + (0 if bias is None else bias), -np.inf)
    parts = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hnm,mhc->nhc", parts / parts.sum(axis=-1, keepdims=True), v)


def positions(grid):
    return np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), axis=-1)


def assert_brute(name, grid, sees, layer=0, bias=None):
    q, k, v = draw(grid)
    ours = jax.jit(mixer(name, grid, v, layer=layer))(q, k, v)[0]
    expected = brute(q, k, v, sees, bias)
    np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "size", "layer"),  # every pair of two of them
    [
        (grid, size, (i + j) % 3)
        for i, grid in enumerate([(4, 4, 6), (3, 5, 5), (5, 7, 4)])
        for j, size in enumerate([(2, 2, 3), (3, 4, 2), (1, 3, 3)])
    ],
)
def test_windows_are_swins(grid, layer, size):
    """Windows of the shifted grid, cut where they reach around, with the relative bias."""
    at = positions(grid)
    shift = np.array(
        [s // 2 if layer % 2 and s < n else 0 for s, n in zip(size, grid, strict=True)]
    )
    padded = -(-np.array(grid) // size) * size
    moved = (at - shift) % padded
    window, wrapped = moved // size, at < shift
    same = (window[:, None] == window[None]).all(axis=-1)
    sees = same & (wrapped[:, None] == wrapped[None]).all(axis=-1)
    name = f"window{size}"
    table = np.asarray(context(name, grid, draw(grid)[2])["relative_bias"])
    inside = moved % size
    apart = inside[:, None] - inside[None] + np.array(size) - 1
    apart = np.where(same[..., None], apart, 0)
    bias = table[:, apart[..., 0], apart[..., 1], apart[..., 2]]
    assert_brute(name, grid, sees, layer, bias)


@pytest.mark.parametrize("grid", [(4, 4, 6), (3, 5, 5), (7, 3, 8)])
@pytest.mark.parametrize("size", [(1, 3, 3), (3, 3, 5), (2, 2, 3)])
def test_neighbourhoods_move_inwards_at_the_edges(grid, size):
    if any(s > n for s, n in zip(size, grid, strict=True)):
        pytest.skip("larger than the grid")
    at = positions(grid)
    start = np.clip(at - np.array(size) // 2, 0, np.array(grid) - size)
    ahead = at[None] - start[:, None]
    assert_brute(f"neighbourhood{size}", grid, ((ahead >= 0) & (ahead < size)).all(axis=-1))


@pytest.mark.parametrize("grid", [(2, 2, 2), (3, 4, 5), (5, 3, 3)])
def test_strided_global_sees_even_distances(grid):
    at = positions(grid)
    assert_brute("strided_global", grid, ((at[:, None] - at[None]) % 2 == 0).all(axis=-1))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strides_in_time(stride):
    grid = (5, 2, 2)
    at = positions(grid)
    same = (at[:, None, 1:] == at[None, :, 1:]).all(axis=-1)
    apart = at[:, None, 0] - at[None, :, 0]
    assert_brute(f"dilated_time({stride})", grid, same & (apart % stride == 0))
    assert_brute(f"strided_time({stride})", grid, same & (at[None, :, 0] % stride == 0))


def test_causal_time_is_unmoved_by_the_future():
    grid = (4, 2, 2)
    q, k, v = draw(grid)
    mix = mixer("causal_time", grid, v)
    later = [x.at[:, 2:].set(7.0) for x in (q, k, v)]
    np.testing.assert_allclose(mix(*later)[:, :2], mix(q, k, v)[:, :2], atol=1e-6)


def test_trajectories_are_motionformers():
    """Equations 2 to 4 of the paper, query by query, with the released code's projections."""
    grid = (3, 2, 2)
    q, k, v = draw(grid)
    given = context("trajectory", grid, v)
    ours = np.asarray(PATTERNS["trajectory"](q, k, v, dense, **given))[0]
    q, k, v = (np.asarray(x, np.float64)[0] for x in (q, k, v))
    project = lambda x, n: (
        np.tensordot(x.ravel(), np.asarray(given[f"trajectory_{n}_kernel"]), 1)
        + np.asarray(given[f"trajectory_{n}_bias"])
    )
    softmax = lambda s: np.exp(s - s.max(axis=0)) / np.exp(s - s.max(axis=0)).sum(axis=0)
    for t in range(3):
        for s in range(4):
            pools = []
            for u in range(3):
                weights = softmax(np.einsum("hk,shk->sh", q[t, s], k[u]) / 2)
                pools.append(np.einsum("sh,shk->hk", weights, v[u]))
            query = project(pools[t], "query")
            keys = np.stack([project(pool, "key") for pool in pools])
            values = np.stack([project(pool, "value") for pool in pools])
            weights = softmax(np.einsum("hk,uhk->uh", query, keys) / 2)
            expected = np.einsum("uh,uhk->hk", weights, values)
            np.testing.assert_allclose(ours[t, s], expected, atol=1e-4)


# --- names ---


def test_options_are_read_from_a_name():
    assert PATTERNS["window(4, columns=5)"].options == {"steps": 4, "rows": 7, "columns": 5}
    assert PATTERNS["window"].options == {"steps": 8, "rows": 7, "columns": 7}
    assert "window(4, 5, 5)" in PATTERNS
    assert "nothing(4)" not in PATTERNS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("window(4, 5, 6, 7)", r"written like window\(steps=8, rows=7, columns=7\)"),
        ("window(size=4)", "written like window"),
        ("window(4", "written like window"),
        ("window('a')", "written like window"),
        ("window(2.5)", "written like window"),
        ("window(4, steps=4)", "written like window"),
        ("window(0)", "steps=0 must be at least 1"),
        ("joint(3)", r"written like joint\(\)"),
        ("jiont", "known: causal_time, dilated_time, .*, joint"),
    ],
)
def test_a_wrong_name_says_how_it_is_written(name, message):
    with pytest.raises(ValueError, match=message):
        PATTERNS[name]


def test_a_second_pattern_of_a_name_is_refused():
    with pytest.raises(ValueError, match="'joint' is registered already"):
        pattern("joint")(lambda q, k, v, attend: v)


def test_a_pattern_must_name_its_axes():
    with pytest.raises(ValueError, match='"t", "s" or "ts"'):
        pattern("nothing", axes="x")


def test_what_patterns_may_ask_is_what_they_are_context():
    for name in PATTERNS:
        found = PATTERNS[name]
        known = {*CONTEXT_ARGS, *found.parameters(2, 4, **found.options), *found.options}
        assert {*found.context_args, *found.options} <= known
