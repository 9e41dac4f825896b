"""Masks, and encoders that see a part of the tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.conftest import ROOT
from vivit.model.places import check_places, put, take
from vivit.pretraining.masks import MASKS, Blocks, cut_in_order, mask

GRID = (4, 4, 6)
KEYS = jax.random.split(jax.random.key(0), 5)
SEEN = {
    "tube(0.75)": (4, 6),
    "frame(0.5)": (2, 24),
    "random(0.9)": (1, 10),
    "running_cell": (1, 48),
    "running_cell(0.25)": (1, 72),
    "blocks(2, 0.3)": (4, 9),
    "blocks_in_order(2, 0.3)": (1, 32),
}
PREDICTED = {"blocks(2, 0.3)": 32, "blocks_in_order(2, 0.3)": 24}
MODEL = {
    "clip": (4, 16, 16), "classes": 0, "width": 48, "depth": 2, "heads": 2, "mlp_dim": 64,
    "tubelet": (2, 4, 4), "family": "joint",
}  # fmt: skip
# Name -> what it changes of MODEL.
ENCODERS = {
    "learned": {},
    "rotary": {"position": "none", "rope": "3d"},
    "scanned": {"position": "none", "rope": "3d_vjepa2", "scan": True, "remat": "full"},
    "class token": {"readout": "cls", "registers": 2},
    "self-attention": {"family": "factorised_self_attention"},
    "split heads": {"family": "factorised_dot_product"},
    "divided": {"family": "divided", "readout": "cls"},
    "trajectory": {"family": "trajectory"},
}
CLIPS = np.random.default_rng(0).normal(size=(2, 4, 16, 16, 3)).astype(np.float32)
ALL = jnp.broadcast_to(jnp.arange(32).reshape(2, 16), (2, 2, 16))


@pytest.mark.parametrize("name", SEEN)
def test_a_mask_leaves_equally_many_tokens_of_each_clip(name):
    chosen = MASKS[name]
    steps, places = SEEN[name]
    predicted = PREDICTED.get(name, 96 - steps * places)
    assert chosen.counts(GRID) == (steps, places, predicted)
    drawn = chosen(KEYS, GRID)
    seen, wanted = map(np.asarray, drawn)
    assert (seen.shape, wanted.shape) == ((5, steps, places), (5, predicted))
    for one, others in zip(seen.reshape(5, -1), wanted, strict=True):
        assert (np.diff(one) > 0).all()
        assert (np.diff(others) > 0).all()
        assert not set(one) & set(others)
        assert {*one, *others} <= set(range(96))
    assert (seen[0] != seen[1]).any() or (seen[0] != seen[2]).any()
    for ours, expected in zip(chosen(KEYS[3:], GRID), drawn, strict=True):
        np.testing.assert_array_equal(ours, expected[3:])  # of its own key alone
    if chosen.lines:
        places, steps = seen % 24, seen // 24
        assert (places == places[:, :1]).all()
        assert (steps == steps[:, :, :1]).all()


def test_a_running_cell_hides_half_of_each_cell_and_moves_on():
    seen = np.zeros((5, 96), bool)
    np.put_along_axis(seen, np.asarray(MASKS["running_cell"](KEYS, GRID).seen)[:, 0], True, axis=1)
    cells = seen.reshape(5, 4, 2, 2, 3, 2).transpose(0, 1, 2, 4, 3, 5).reshape(5, 4, 6, 4)
    assert (cells.sum(axis=3) == 2).all()
    assert (cells == cells[:, :, :1]).all()  # all cells of a time step alike
    np.testing.assert_array_equal(np.roll(cells[:, :-1], 1, axis=3), cells[:, 1:])


def test_blocks_hide_rectangles_and_leave_out_at_random():
    """What is predicted lies in rectangles and what is seen outside, in all but a few draws."""
    grid, keys = (2, 16, 16), jax.random.split(jax.random.key(1), 300)
    for name in ("blocks(1, 0.15)", "blocks_in_order(1, 0.15)"):
        counts = MASKS[name].counts(grid)
        seen, wanted = (np.asarray(x).reshape(300, -1) for x in MASKS[name](keys, grid))
        boxes = []
        for one, others in zip(seen % 256, wanted % 256, strict=True):
            y, x = np.divmod(np.unique(others), 16)
            h, w = np.ptp(y) + 1, np.ptp(x) + 1
            boxes.append(h * w)
            inside = (y.min() <= one // 16) & (one // 16 <= y.max())
            inside &= (x.min() <= one % 16) & (one % 16 <= x.max())
            assert not inside.any()
            assert 0.6 < h / w < 1.9  # 0.75 to 1.5, of whole places
        assert np.mean(boxes) == pytest.approx(0.15 * 256, rel=0.05)
        assert counts.wanted == pytest.approx(2 * 0.15 * 256, rel=0.12)
    last = MASKS["blocks_in_order"](keys, (8, 16, 16)).seen // 256
    assert (last < 4).mean() > 0.65  # the last time steps are left out
    even = MASKS["blocks"](keys, (8, 16, 16)).seen // 256
    assert (even < 4).mean() == 0.5


def test_blocks_are_those_of_the_released_code():
    """The same blocks cover the same places, and a batch is cut to the same tokens."""
    arrays, grid = np.load(ROOT / "tests/golden/vjepa_masks.npz"), (2, 12, 16)
    for name, scale in (("short", 0.15), ("long", 0.7)):
        for batch in range(4):
            aspect, corners, seen, wanted = (
                arrays[f"{name}_{batch}_{of}"] for of in ("aspect", "corners", "seen", "wanted")
            )
            blocks = Blocks(corners.shape[1], scale, 0.75, 1.5)
            only = Blocks(1, scale, 0.75, 1.5).cover(aspect, np.zeros((1, 2)), grid).reshape(12, 16)
            room = np.array(grid[1:]) - (only.any(axis=1).sum(), only.any(axis=0).sum()) + 1
            covered = blocks.cover(np.full(len(seen), aspect), (corners + 0.5) / room, grid)
            for i, clip in enumerate(covered):
                found = cut_in_order(jnp.tile(clip, 2), seen.shape[1], wanted.shape[1])
                np.testing.assert_array_equal(found[0], seen[i])
                np.testing.assert_array_equal(found[1], wanted[i])


@pytest.mark.parametrize(
    ("name", "grid", "message"),
    [
        ("blocks(2, 0.7)", (4, 4, 4), "no token is seen of a grid of 4 x 4 x 4"),
        ("blocks(scale=0.0)", GRID, "scale=0.0, is not in"),
        ("blocks(least=2.0)", GRID, "from 2.0 to 1.5 are no range"),
        ("blocks(quantile=2.0)", GRID, "quantile=2.0 is not in"),
        ("tube(0.01)", GRID, "every token is seen of a grid of 4 x 4 x 6"),
        ("tube(1.5)", GRID, "ratio=1.5, is not between 0 and 1"),
        ("random(nan)", GRID, "are written like random"),
        ("running_cell", (4, 3, 4), "cells of 2 x 2 tokens, and a time step has 3 x 4"),
        ("tubes", GRID, "unknown mask 'tubes'; known: blocks, blocks_in_order"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(name, grid, message):
    with pytest.raises(ValueError, match=message):
        MASKS[name].counts(grid)


def test_a_mask_that_leaves_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(MASKS, "_items", dict(MASKS._items))

    @mask("nothing", lines=False)
    def nothing(key, *, grid):
        return jnp.zeros((1, 0), jnp.int32)

    with pytest.raises(ValueError, match="no token is seen of a grid"):
        MASKS["nothing"].counts(GRID)


def encoder(name, **changes):
    model = vivit.build({**MODEL, **ENCODERS[name], **changes})
    params = model.init(jax.random.key(0), jnp.zeros((1, *model.config.clip, 3)))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    encode = jax.jit(lambda *inputs: model.apply(*inputs, method="encode"))
    return model, tree.unflatten(moved), lambda p, *inputs: encode({"params": p}, *inputs)


@pytest.mark.parametrize("name", ENCODERS)
def test_all_places_are_the_whole_grid_and_hidden_pixels_are_not_seen(name):
    model, params, encode = encoder(name)
    whole = encode(params, CLIPS)
    assert whole.shape == (2, 2, 16, 48)
    np.testing.assert_allclose(encode(params, CLIPS, ALL), whole, atol=2e-5)
    seen = MASKS["tube(0.5)"](KEYS[:2], model.config.grid).seen
    out = encode(params, CLIPS, seen)
    assert np.abs(out - take(whole, seen)).max() > 1e-3  # the others are missing
    hidden = put(jnp.ones((*seen.shape, 1)), seen, (2, 16)) == 0
    pixels = hidden.reshape(2, 2, 4, 4).repeat(2, 1).repeat(4, 2).repeat(4, 3)[..., None]
    np.testing.assert_array_equal(encode(params, np.where(pixels, 7.0, CLIPS), seen), out)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_first_time_step_alone_is_a_clip_of_one_time_step(name):
    """Positions, rotations and class tokens are those of the places."""
    _, params, encode = encoder(name)
    short, _, encode_short = encoder(name, clip=(2, 16, 16))
    like = jax.eval_shape(lambda: short.init(jax.random.key(0), *short.example()))["params"]
    cut = jax.tree.map(lambda x, y: x[: y.shape[0]], params, like)
    expected = encode_short(cut, CLIPS[:, :2])
    np.testing.assert_allclose(encode(params, CLIPS, ALL[:, :1]), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "lines", "message"),
    [
        ({"family": "factorised_encoder(1)"}, True, "stage 0 pools 's' before the last stage"),
        ({"family": "axial"}, True, "'height', which needs the whole grid; use 'joint'"),
        ({"family": "window(1, 2, 2)"}, True, "'window', which needs the whole grid"),
        ({"family": "factorised_dot_product"}, False, "must be the same places of whole time"),
        ({"stages": ({"depth": 1, "attentions": ("joint",), "pool": "mean",
                      "reduce": "token_learner(2)"},)}, True, "stage 0 reduces tokens"),
    ],
)  # fmt: skip
def test_a_model_that_needs_the_whole_grid_is_refused(changes, lines, message):
    with pytest.raises(ValueError, match=message):
        check_places(vivit.build({**MODEL, **changes}).config, lines=lines)
