"""Attention maps and rollout, against explicit matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import CLIPS, NO_CLASS_TOKEN, TINY, init
from vivit.analysis import capture, heat_on_frames, overlay, rollout
from vivit.analysis.attention import _over_time, _weights
from vivit.analysis.overlay import relative_entropy
from vivit.analysis.rollout import _rollout
from vivit.model import stack_layers
from vivit.model.settings import FAMILIES
from vivit.pretraining.masks import MASKS

CASES = [
    (family, readout)
    for family in FAMILIES
    for readout in ("cls", "mean", "max")
    if readout != "cls" or family not in NO_CLASS_TOKEN
]


def look(family="joint", readout="mean", **change):
    model = vivit.build({**TINY, "family": family, "readout": readout, **change})
    params = init(model)
    if change.get("scan"):
        params = stack_layers(init(model.with_settings(scan=False)))
    return capture(model, params, CLIPS)


@pytest.mark.parametrize(("family", "readout"), CASES)
def test_capture_changes_no_logit_and_maps_have_the_clips_grid(family, readout):
    maps = look(family, readout)
    plain = maps.model.apply({"params": init(maps.model)}, CLIPS)
    np.testing.assert_allclose(maps.logits, plain, atol=1e-5)
    for attention in maps.attentions:
        weights = np.asarray(attention.weights(chunk=3))
        steps, places = (2, 4) if attention.stage == 0 else (2, 1)
        assert weights.shape == (2, 2, steps, places, steps, places)
        rows = weights.sum(axis=(-1, -2))
        if attention.layout.extra:
            assert (rows < 1).all()
        else:
            np.testing.assert_allclose(rows, 1, atol=1e-5)


@pytest.mark.parametrize("change", [{"kernel": "chunked"}, {"scan": True}])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_maps_are_the_same_under_every_kernel_and_scan(family, change):
    plain, other = look(family), look(family, **change)
    for a, b in zip(plain.attentions, other.attentions, strict=True):
        np.testing.assert_allclose(a.weights(), b.weights(), atol=1e-5)
    np.testing.assert_allclose(rollout(plain), rollout(other), atol=1e-5)


@pytest.mark.parametrize(("family", "readout"), CASES)
def test_weights_over_time_are_sums_of_weights(family, readout):
    for attention in look(family, readout).attentions:
        expected = attention.weights().sum(axis=5).mean(axis=3)
        np.testing.assert_allclose(attention.over_time(), expected, atol=1e-5)


def full_matrix(attention):
    """[B, N, N] of one attention on its own grid with class tokens, the mean over its heads."""
    b, t, s, h, _ = attention.q.shape
    marks = jnp.broadcast_to(jnp.eye(t * s).reshape(1, t, s, 1, t * s), (b, t, s, h, t * s))
    return np.asarray(attention.mix(marks)).mean(axis=3).reshape(b, t * s, t * s)


def explicit_joint_rollout(maps, readout):
    """Abnar & Zuidema's product of matrices."""
    product = np.eye(full_matrix(maps.attentions[0]).shape[-1])[None]
    for attention in maps.attentions:
        matrix = full_matrix(attention)
        product = (0.5 * np.eye(matrix.shape[-1]) + 0.5 * matrix) @ product
    row = product[:, 0, 1:] if readout == "cls" else product.mean(axis=1)
    return row / row.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_rollout_of_a_joint_model_is_the_product_of_its_matrices(readout):
    maps = look("joint", readout)
    ours = np.asarray(rollout(maps)).reshape(2, -1)
    np.testing.assert_allclose(ours, explicit_joint_rollout(maps, readout), atol=1e-5)


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_rollout_of_a_factorised_encoder_goes_through_both_stages(readout):
    """Share of (t, s): the share of step t in the second stage, times that of s within the step."""
    maps = look("factorised_encoder", readout)
    cls = readout == "cls"

    def stage_rows(stage):
        product = None
        for attention in (a for a in maps.attentions if a.stage == stage):
            b, t, s, h, _ = attention.q.shape
            matrix = full_matrix(attention)  # over (t, s) with class tokens
            mixed = 0.5 * np.eye(t * s) + 0.5 * matrix
            product = mixed if product is None else mixed @ product
        return product, (t, s)

    temporal, _ = stage_rows(1)
    spatial, (t, s) = stage_rows(0)
    over_steps = temporal[:, 0, 1:] if cls else temporal.mean(axis=1)  # [B, T]
    spatial = spatial.reshape(2, t, s, t, s)
    expected = np.zeros((2, 2, 4))
    for step in range(t):
        own = spatial[:, step, :, step]  # [B, s, s]
        row = own[:, 0, 1:] if cls else own.mean(axis=1)
        expected[:, step] = over_steps[:, step, None] * row
    expected /= expected.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(rollout(maps), expected, atol=1e-5)


@pytest.mark.parametrize(("family", "readout"), CASES)
def test_rollout_is_a_distribution_over_the_clip(family, readout):
    shares = np.asarray(rollout(look(family, readout)))
    assert shares.shape == (2, 2, 4)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), 1, atol=1e-5)


def test_with_the_whole_residual_kept_rollout_is_the_readout_alone():
    np.testing.assert_allclose(rollout(look(), residual=0.999999), 1 / 8, atol=1e-5)
    with pytest.raises(ValueError, match=r"residual=1.0 is not in \[0, 1\)"):
        rollout(look(), residual=1.0)


def test_layers_are_chosen_by_pattern_and_stage():
    maps = look("factorised_encoder(2)")
    assert maps.weights(pattern="time").shape == (2, 2, 2, 2, 1, 2, 1)
    assert maps.over_time(stage=1).shape == (2, 2, 2, 2, 2)
    with pytest.raises(ValueError, match="no attention with pattern='joint'"):
        maps.of(pattern="joint")


def test_heat_lies_on_its_frames_and_places():
    heat = np.zeros((2, 4), np.float32)
    heat[1, 3] = 1  # the second tubelet, bottom right
    frames = heat_on_frames(heat, grid=(2, 2, 2), clip=(4, 8, 8))
    assert frames.shape == (4, 8, 8)
    assert frames[:2].max() == 0
    assert np.unravel_index(frames[2].argmax(), (8, 8)) >= (6, 6)
    assert frames[2, :2, :2].max() == 0


def test_an_overlay_is_drawn_against_the_uniform_map():
    clip = np.full((2, 4, 4, 3), 100, np.uint8)
    heat = np.full((2, 4, 4), 0.25, np.float32)
    np.testing.assert_array_equal(overlay(clip, heat), clip)  # a uniform map looks uniform
    heat[1, 2, 3], heat[0, 1, 1] = 0.5, 0.125
    covered = overlay(clip, heat, mean=0.25).astype(int)
    changed = (covered != clip).any(axis=-1)
    assert changed.sum() == 2
    assert covered[1, 2, 3, 0] > 100  # coloured: twice as much
    assert covered[0, 1, 1].max() < 100  # dark: half as much
    heat[1, 2, 3] = 0.26  # nearly uniform looks nearly so
    assert abs(overlay(clip, heat, mean=0.25)[1, 2, 3].astype(int) - 100).max() <= 5


def test_entropy_by_hand():
    assert relative_entropy(np.full((2, 4), 1 / 8)) == pytest.approx(1)
    assert relative_entropy(np.eye(1, 8).reshape(2, 4)) == 0
    half = np.array([[0.5, 0.5, 0, 0]])
    assert relative_entropy(half) == pytest.approx(0.5)


@pytest.mark.parametrize("family", ["joint", "factorised_self_attention", "divided"])
def test_tokens_that_are_seen_are_put_back_on_the_clips_grid(family):
    """Of all places, maps and rollout are those of the whole grid; hidden tokens have none."""
    model = vivit.build({
        "clip": (4, 16, 16), "classes": 3, "width": 24, "depth": 2, "heads": 2, "mlp_dim": 32,
        "tubelet": (2, 4, 4), "family": family, "readout": "cls" if family == "divided" else "mean",
    })  # fmt: skip
    params = model.init(jax.random.key(0), *model.example())["params"]
    params = jax.tree.map(lambda x: x + 0.1, params)
    clips = np.random.default_rng(0).normal(size=(2, 4, 16, 16, 3)).astype(np.float32)
    everything = jnp.broadcast_to(jnp.arange(32).reshape(2, 16), (2, 2, 16))
    whole, same = capture(model, params, clips), capture(model, params, clips, everything)
    for a, b in zip(whole.attentions, same.attentions, strict=True):
        np.testing.assert_allclose(a.weights(), b.weights(), atol=1e-5)
        np.testing.assert_allclose(a.over_time(), b.over_time(), atol=1e-5)
    np.testing.assert_allclose(rollout(whole), rollout(same), atol=1e-6)
    seen = MASKS["tube(0.5)"](jax.random.split(jax.random.key(1), 2), model.config.grid).seen
    some = capture(model, params, clips, seen)
    hidden = np.ones((2, 32), bool)
    np.put_along_axis(hidden, np.asarray(seen).reshape(2, -1), False, axis=1)
    parts = np.asarray(rollout(some)).reshape(2, 32)
    np.testing.assert_allclose(parts.sum(axis=1), 1, atol=1e-5)
    assert ((parts == 0) == hidden).all()
    for attention in some.attentions:
        maps = np.asarray(attention.weights()).reshape(2, 2, 32, 32)
        over_time = np.asarray(attention.over_time())
        assert over_time.shape == (2, 2, 2, 2)
        for clip in range(2):
            assert not maps[clip][:, hidden[clip]].any()
            assert not maps[clip][:, :, hidden[clip]].any()
            rows = maps[clip][:, ~hidden[clip]]
            by_step = rows.reshape(2, 2, 8, 2, 16).sum(axis=4).mean(axis=2)
            np.testing.assert_allclose(over_time[clip], by_step, atol=1e-5)


def test_a_model_that_needs_all_tokens_captures_no_part_of_them():
    model = vivit.build({
        "clip": (4, 16, 16), "classes": 3, "width": 24, "depth": 2, "heads": 2, "mlp_dim": 32,
        "tubelet": (2, 4, 4), "family": "axial",
    })  # fmt: skip
    with pytest.raises(ValueError, match="which needs the whole grid"):
        capture(model, {}, np.zeros((1, 4, 16, 16, 3)), jnp.zeros((1, 2, 4), jnp.int32))


def test_maps_of_other_clips_compile_nothing():
    model = vivit.build({**TINY, "family": "factorised_encoder", "readout": "cls"})
    params = init(model)

    def looked(clips):
        maps = capture(model, params, clips)
        return rollout(maps, residual=0.3), maps.over_time(stage=0), maps.attentions[0].weights()

    looked(CLIPS)
    compiled = [f._cache_size() for f in (_rollout, _over_time, _weights)]
    first, *_ = looked(np.flip(CLIPS, axis=1))
    assert [f._cache_size() for f in (_rollout, _over_time, _weights)] == compiled
    again = capture(model, params, np.flip(CLIPS, axis=1))
    np.testing.assert_allclose(first, rollout(again, residual=0.3), atol=1e-6)
    # Maps are pytrees: a function of them may be compiled with the pass that makes them.
    whole = jax.jit(lambda params, clips: rollout(capture(model, params, clips), residual=0.3))
    np.testing.assert_allclose(whole(params, np.flip(CLIPS, axis=1)), first, atol=1e-5)
