"""Summaries of attention weights, against NumPy on whole matrices with class tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save as save_tensors

import vivit
from tests.test_model import CLIPS, NO_CLASS_TOKEN, TINY, init
from vivit.analysis import Kept, capture
from vivit.analysis import kept as kept_module
from vivit.analysis.kept import FORMAT, _summary
from vivit.analysis.summaries import SUMMARIES, boxes_of, summary
from vivit.model.settings import FAMILIES
from vivit.pretraining.masks import MASKS

WANT = (
    "full", "over_time", "over_space", "to_extra", "of_extra", "entropy", "distance", "top(3)",
    "to_high_norm(1.05)", "sinks(0.3)", "profile", "head_similarity",
    "between(steps=1, rows=2, columns=1)",
)  # fmt: skip
QUERIES = ((1, 1, 0), (0, 0, 1))
OTHERS = {
    "one key head": {"family": "joint", "kv_heads": 1, "registers": 2},
    "merged tokens": {
        "stages": (
            {"depth": 2, "attentions": ("joint",), "reduce": "token_merging(1)", "pool": "mean"},
        ),
        "registers": 1,
    },
    "dropped tokens": {
        "stages": (
            {"depth": 2, "attentions": ("space",), "reduce": "random_dropping(2)", "pool": "mean"},
        ),
    },
    "two key heads": {"family": "joint", "heads": 4, "kv_heads": 2},
}


@functools.cache
def maps_of(family="joint", case=""):
    readout = "mean" if family in NO_CLASS_TOKEN or case else "cls"
    change = OTHERS[case] if case else {"family": family}
    model = vivit.build({**TINY, "readout": readout, **change})
    return capture(model, init(model), CLIPS)


def matrices(attention):
    """[B, h, N, N] of one attention on its own grid with extra tokens, and for its N tokens the
    number on the clip's grid, or -1 - e of extra token e."""
    b, t, s, g = attention.shape
    marks = jnp.broadcast_to(jnp.eye(t * s).reshape(1, t, s, 1, t * s), (b, t, s, g, t * s))
    whole = np.moveaxis(np.asarray(jax.jit(attention.mix)(marks)), 3, 1)
    plain = attention.clip_grid
    extra = jnp.asarray(-1.0 - np.arange(attention.layout.extra))
    numbers = attention.layout.insert(jnp.arange(np.prod(plain)).reshape(1, *plain) * 1.0, extra)
    return whole.reshape(b, -1, t * s, t * s), np.asarray(numbers).reshape(-1).astype(int)


def expected_summaries(attention):
    whole, of_token = matrices(attention)
    extra, (t, s) = attention.layout.extra, attention.clip_grid
    b, h = whole.shape[:2]
    clip = np.argsort(of_token)[np.sum(of_token < 0) :]  # tokens of the clip in their order
    rows = whole[:, :, clip]
    weights = rows[:, :, :, clip].reshape(b, h, t, s, t, s)
    of = [np.flatnonzero(of_token == -1 - e) for e in range(extra)]
    stack = lambda parts, shape: np.stack(parts, 2) if parts else np.zeros(shape)
    to_extra = [rows[..., at].sum(-1).reshape(b, h, t, s) for at in of]
    of_extra = [whole[:, :, at].mean(2)[..., clip].reshape(b, h, t, s) for at in of]
    keys = np.concatenate(
        [weights.reshape(b, h, t, s, -1), *(x[..., None] for x in to_extra)], axis=-1
    )
    y, x = np.divmod(np.arange(s), 2 if s == 4 else 1)
    apart = 4 * np.hypot(y[:, None] - y, x[:, None] - x)
    between = 2 * np.abs(np.arange(t)[:, None] - np.arange(t))
    total = weights.sum((4, 5))
    seen = total.mean(1) > 0  # [B, T, S]: dropped tokens have no weights
    mean = lambda x, axes: (
        x.sum(axes) / np.maximum(seen[:, None].sum(axes)[(..., *(None,) * (x.ndim - 4))], 1)
    )
    norms = np.asarray(attention.on_clip(attention.spread(attention.token_norms)))
    median = np.array([np.median(x[keep]) for x, keep in zip(norms, seen, strict=True)])
    high = seen & (norms > 1.05 * median[:, None, None])
    steps = mean(weights.sum(5), 3)
    flat = weights.reshape(b, h, -1)
    flat = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
    received = np.sort(mean(weights, (2, 3)).reshape(b, h, -1), axis=-1)
    positive = np.where(total == 0, 1, total)
    entropies = -np.where(keys > 0, keys * np.log(np.where(keys > 0, keys, 1)), 0).sum(-1)
    order = np.argsort(-weights.reshape(b, h, t, s, -1), axis=-1, kind="stable")[..., :3]
    in_box = np.eye(2)[:, : y.max() + 1][y]  # [S, boxes]: those of a row, in all time steps
    queries = seen[..., None] * in_box
    to_boxes = np.einsum("bhtsuv,vk,btsq->bhqk", weights, in_box, queries)
    return {
        "between": to_boxes / np.maximum(queries.sum((1, 2)), 1)[:, None, :, None],
        "full": weights,
        "over_time": steps,
        "over_space": mean(weights.sum(4), 2),
        "to_high_norm": np.einsum("bhtsuv,buv->bhts", weights, high),
        "sinks": received[..., -max(1, round(0.3 * t * s)) :].sum(-1),
        "profile": np.stack(
            [np.diagonal(steps, d, 2, 3).mean(-1) for d in range(1 - t, t)], axis=-1
        ),
        "head_similarity": np.einsum("bhn,bgn->bhg", flat, flat),
        "to_extra": stack(to_extra, (b, h, 0, t, s)),
        "of_extra": stack(of_extra, (b, h, 0, t, s)),
        "entropy": entropies,
        "distance_in_space": np.einsum("bhtsup,sp->bhts", weights, apart) / positive,
        "distance_in_time": np.einsum("bhtsup,tu->bhts", weights, between) / positive,
        "top_weight": np.take_along_axis(weights.reshape(b, h, t, s, -1), order, axis=-1),
        "top_place": order,
        "rows": np.stack([weights[:, :, 1, 2 % s], weights[:, :, 0, 1 % s]], axis=2),
    }


@pytest.mark.parametrize("case", [*FAMILIES, *OTHERS])
def test_summaries_are_those_of_whole_matrices(case):
    maps = maps_of(case=case) if case in OTHERS else maps_of(case)
    kept = maps.keep(*WANT, queries=QUERIES)
    found = set()
    for attention in maps.attentions:
        of = f"stage {attention.stage}, {attention.pattern.label}"
        found.add(of)
        for name, expected in expected_summaries(attention).items():
            ours = np.asarray(kept[of][name])[attention.layer]
            if name == "top_place":  # equal weights have no order
                whole = kept[of]["full"][attention.layer].reshape(*ours.shape[:-1], -1)
                ours = np.take_along_axis(np.asarray(whole), ours, axis=-1)
                expected = expected_summaries(attention)["top_weight"]
            np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=f"{of} {name}")
    assert found == set(kept.arrays)


def test_boxes_are_of_all_tokens_and_about_equal():
    boxes = boxes_of((5, 3, 4), (2, 3, 9))
    assert boxes.shape == (5, 12)
    np.testing.assert_array_equal(boxes[:3], np.tile(np.arange(12), (3, 1)))
    np.testing.assert_array_equal(boxes[3:], np.tile(np.arange(12, 24), (2, 1)))
    assert boxes_of((5, 3, 4), (1, 1, 1)).max() == 0


def test_chunks_of_clips_and_of_keys_change_nothing():
    maps = maps_of("joint")
    whole = maps.keep(*WANT, queries=QUERIES)
    model, params = maps.model, init(maps.model)
    chunked = capture(model, params, CLIPS, want=WANT, queries=QUERIES, chunk=1)
    for name, x in whole.flat.items():
        np.testing.assert_allclose(chunked.flat[name], x, atol=1e-6, err_msg=name)
    attention = maps.attentions[0]
    groups = np.arange(8).reshape(2, 4)
    sums = jax.jit(lambda a, chunk: a.sums(groups, chunk=chunk), static_argnums=1)
    np.testing.assert_allclose(sums(attention, 2), sums(attention, 64), atol=1e-6)
    top = maps.keep("top(8)")["stage 0, joint"]["top_weight"]
    np.testing.assert_allclose(
        top.sum(-1), whole["stage 0, joint"]["full"].sum((-1, -2)), atol=1e-6
    )


def test_summaries_of_some_tokens_are_those_of_their_weights():
    model = vivit.build({**TINY, "clip": (4, 16, 16), "family": "joint", "readout": "mean"})
    params = init(model)
    clips = np.random.default_rng(0).normal(size=(2, 4, 16, 16, 3)).astype(np.float32)
    seen = MASKS["random(0.5)"](jax.random.split(jax.random.key(1), 2), model.config.grid).seen
    maps = capture(model, params, clips, seen)
    kept = maps.keep("full", "over_space", "entropy", "distance", queries=[(0, 0, 0), (1, 3, 3)])
    full = np.asarray(kept["stage 0, joint"]["full"])
    visible = full.sum((-1, -2)) > 0  # [L, B, h, T, S]
    assert 0 < visible.mean() < 1
    count = np.maximum(visible.sum(3), 1)[..., None]
    arrays = kept["stage 0, joint"]
    np.testing.assert_allclose(arrays["over_space"], full.sum(5).sum(3) / count, atol=1e-5)
    flat = full.reshape(*full.shape[:5], -1)
    entropies = -(flat * np.log(np.where(flat > 0, flat, 1))).sum(-1)
    np.testing.assert_allclose(arrays["entropy"], entropies, atol=1e-5)
    assert not np.asarray(arrays["distance_in_space"])[~visible].any()
    np.testing.assert_allclose(arrays["rows"][:, :, :, 1], full[:, :, :, 1, 15], atol=1e-6)


def test_a_registered_summary_is_kept():
    @summary(largest="head t_q s_q")
    def largest(attention, config, *, power: int = 1):
        return attention.weights().max(axis=(-1, -2)) ** power

    try:
        maps = maps_of("joint")
        kept = maps.keep("largest(2)", "full")["stage 0, joint"]
        np.testing.assert_allclose(kept["largest"], kept["full"].max((-1, -2)) ** 2, rtol=1e-6)
    finally:
        del SUMMARIES._items["largest"]


def test_maps_subtract_and_are_saved_and_loaded(tmp_path):
    maps = maps_of("factorised_encoder(2)")
    other = capture(maps.model, init(maps.model, seed=1), CLIPS, want=["entropy"], queries=QUERIES)
    kept = maps.keep("entropy", queries=QUERIES)
    difference = kept - other
    for name, x in difference.flat.items():
        np.testing.assert_array_equal(x, kept.flat[name] - other.flat[name])
    path = kept.save(tmp_path / "new" / "maps.safetensors")
    loaded = Kept.load(path)
    assert (loaded.axes, loaded.grids, loaded.tubelet) == (kept.axes, kept.grids, kept.tubelet)
    assert loaded.queries == QUERIES
    for name, x in kept.flat.items():
        np.testing.assert_array_equal(loaded.flat[name], x)
    assert not np.any((loaded - kept).flat["stage 1, time/entropy"])
    with pytest.raises(ValueError, match="different shapes: stage 0, joint/entropy"):
        kept - maps_of("joint").keep("entropy", queries=QUERIES)
    with pytest.raises(
        ValueError, match="no attention 'joint'; there are stage 0, space; stage 1, time"
    ):
        kept["joint"]
    with pytest.raises(ValueError, match="missing is not a file"):
        Kept.load(tmp_path / "missing")
    (tmp_path / "other").write_bytes(save_tensors({"a/b": np.zeros(1)}, {"format": FORMAT}))
    with pytest.raises(ValueError, match="other has another description than its arrays"):
        Kept.load(tmp_path / "other")
    lists = maps.keep(queries=[[0, 0, 0]])
    assert not np.any(
        (Kept.load(lists.save(tmp_path / "lists")) - lists).flat["stage 1, time/rows"]
    )
    (tmp_path / "cut").write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="cut can't be read as safetensors"):
        Kept.load(tmp_path / "cut")


def test_xarray_has_named_axes_on_rows_and_columns():
    kept = maps_of("factorised_encoder(2)").keep("over_space", "entropy", queries=QUERIES)
    tree = kept.to_xarray()
    assert list(tree.children) == ["stage_0_space", "stage_1_time"]
    space = tree["stage_0_space"]
    assert space["over_space"].dims == ("layer", "clip", "head", "y_q", "x_q", "y_k", "x_k")
    assert space["entropy"].sizes["y_q"] == space["entropy"].sizes["x_q"] == 2
    expected = kept["stage 0, space"]["entropy"][1, 0, 1, :, 2]  # y 1, x 0
    np.testing.assert_array_equal(space["entropy"][1, 0, 1, :, 1, 0], expected)
    assert space.attrs["attention"] == "stage 0, space"


def test_summaries_compile_once_for_layers_and_clips():
    maps = maps_of("joint")
    maps.keep("entropy", "over_space")
    compiled = _summary._cache_size()
    again = capture(maps.model, init(maps.model), np.flip(CLIPS, axis=1))
    again.keep("entropy", "over_space")
    assert _summary._cache_size() == compiled


def test_what_cannot_be_kept_is_said(monkeypatch):
    maps = maps_of("joint")
    with pytest.raises(
        ValueError, match="unknown summary of attention 'entropi'; known: between, distance"
    ):
        maps.keep("entropi")
    with pytest.raises(ValueError, match="want='entropy' is to be a list of names"):
        capture(maps.model, init(maps.model), CLIPS, want="entropy")
    with pytest.raises(
        ValueError, match=r"'top\(2\)' and 'top\(3\)' both make the array 'top_weight'"
    ):
        maps.keep("top(2)", "top(3)")
    with pytest.raises(ValueError, match="stage 0, joint/top_place holds places of tokens"):
        maps.keep("top(2)") - maps.keep("top(2)")
    with pytest.raises(ValueError, match="want names no summary; there are between, distance"):
        maps.keep()
    with pytest.raises(ValueError, match=r"no query \(0, 2, 0\) on the grid.*to \(1, 1, 1\)"):
        maps.keep(queries=[(0, 2, 0)])
    with pytest.raises(ValueError, match="no query .*time steps are 0 to 1, spatial tokens 0 to 3"):
        maps.attentions[0].rows([(0, 4)])
    with pytest.raises(ValueError, match="no attention with pattern=None, stage=None, layer=7"):
        maps.of(layer=7)
    with pytest.raises(ValueError, match="chunk=2 does nothing without want"):
        capture(maps.model, init(maps.model), CLIPS, chunk=2)
    with pytest.raises(ValueError, match="chunk=0 is not at least 1"):
        capture(maps.model, init(maps.model), CLIPS, want=["entropy"], chunk=0)
    monkeypatch.setattr(kept_module, "memory_of_device", lambda: 1000)
    with pytest.raises(ValueError, match="'full' takes 0.0 GB .* ask for 'over_time'"):
        maps.keep("full")
