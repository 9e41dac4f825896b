"""Deletion and insertion, against explicit loops; fillings, baselines and the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import TINY, init, with_head
from vivit.analysis import attribute
from vivit.analysis.faithfulness import FILLS, Faithfulness, faithfulness, main, measure_run
from vivit.run import Run

CLASSES = np.array([1, 2])


@pytest.fixture(scope="module")
def model():
    return vivit.build({**TINY, "family": "factorised_encoder", "readout": "cls"})


@pytest.fixture(scope="module")
def params(model):
    return with_head(model, scale=40)


@pytest.fixture(scope="module")
def clips(model):
    return np.random.default_rng(0).uniform(-1, 1, (2, *model.config.clip, 3)).astype(np.float32)


@pytest.mark.parametrize("region", ["tokens", "tubes", "steps"])
def test_curves_are_those_of_clips_with_regions_out_and_in(model, params, clips, region):
    heat = np.random.default_rng(1).normal(size=(2, 2, 4)).astype(np.float32)
    found = faithfulness(
        model, params, clips, jnp.asarray(heat), CLASSES, region=region, fill="mean", parts=2
    )
    apply = jax.jit(lambda x: jax.nn.softmax(model.apply({"params": params}, x)))
    sums = {"tokens": heat.reshape(2, -1), "tubes": heat.sum(1), "steps": heat.sum(2)}[region]
    count = sums.shape[1]
    for inserted, curve in ((False, found.deletion), (True, found.insertion)):
        assert curve.shape == (2, 3)
        for part, number in enumerate((0, round(count / 2), count)):
            changed = clips.copy()
            for clip in range(2):
                first = np.argsort(-sums[clip])[:number]
                for k in range(count):
                    if (k in first) == inserted:
                        continue
                    step, place = {"tokens": divmod(k, 4), "tubes": (None, k), "steps": (k, None)}[
                        region
                    ]
                    frames = slice(None) if step is None else slice(2 * step, 2 * step + 2)
                    rows = columns = slice(None)
                    if place is not None:
                        y, x = divmod(place, 2)
                        rows, columns = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
                    changed[clip, frames, rows, columns] = 0
            expected = np.asarray(apply(changed))[np.arange(2), CLASSES]
            np.testing.assert_allclose(curve[:, part], expected, atol=1e-5)
    np.testing.assert_allclose(found.deletion[:, 0], found.insertion[:, -1], atol=1e-6)
    np.testing.assert_allclose(found.deletion[:, -1], found.insertion[:, 0], atol=1e-6)


def test_equal_attributions_have_no_order(model, params, clips):
    """Zeros of a relu are not taken from the top left."""
    many = np.concatenate([clips] * 4)
    flatter = {**params, "head": jax.tree.map(lambda x: x / 40, params["head"])}
    equal, classes = jnp.zeros((8, 2, 4)), np.tile(CLASSES, 4)
    options = {"region": "tokens", "fill": "mean", "parts": 2}
    found = faithfulness(model, flatter, many, equal, classes, **options)
    assert len(np.unique(found.deletion[:, 1].round(5))) > 2  # of two clips, in four orders each


def test_areas_are_those_of_trapezoids():
    curves = Faithfulness(np.array([[1.0, 0.5, 0.0]]), np.array([[0.0, 1.0, 1.0]]))
    assert curves.scores["deletion"] == pytest.approx([0.5])
    assert curves.scores["insertion"] == pytest.approx([0.75])


def test_holes_are_filled_by_what_is_around_them():
    clip = jnp.broadcast_to(jnp.linspace(-1, 1, 9)[:, None], (1, 5, 7, 9, 3))
    out = jnp.zeros((1, 5, 7, 9, 1), bool).at[:, :, 2:5, 3:6].set(True)
    filled = FILLS["diffused"](clip, out)
    np.testing.assert_array_equal(jnp.where(out, 0, filled), jnp.where(out, 0, clip))
    np.testing.assert_allclose(filled, clip, atol=0.02)  # a ramp is its neighbours' mean
    assert np.abs(FILLS["mean"](clip, out) - clip).max() > 0.2
    whole = FILLS["diffused"](clip, jnp.ones_like(out))
    assert not np.any(whole)  # nothing is left to be spread


def test_baselines_are_of_no_clip(model, params, clips):
    first = attribute("random", model, params, clips, CLASSES)
    np.testing.assert_array_equal(first, attribute("random", model, params, -clips, CLASSES))
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(first, attribute("random(2)", model, params, clips, CLASSES))
    wide = vivit.build({**TINY, "clip": (4, 20, 20), "family": "joint", "readout": "mean"})
    middle = attribute("centre", wide, init(wide), np.zeros((1, 4, 20, 20, 3)), [0])
    middle = np.asarray(middle).reshape(2, 5, 5)
    assert np.unravel_index(middle[0].argmax(), (5, 5)) == (2, 2)
    np.testing.assert_allclose(middle, middle[::-1, ::-1, ::-1], atol=1e-6)


def test_a_run_is_measured_and_a_random_model_is_another(tiny_run, tmp_path, capsys):
    path = tmp_path / "curves.json"
    common = [
        f"--workdir={tiny_run}",
        "--checkpoint=latest",
        "--clips=3",
        "--methods=rollout,random",
    ]
    main([*common, f"--out={path}"])
    shown = capsys.readouterr().out
    assert "| rollout |" in shown
    assert "3 clips" in shown
    curves = json.loads(path.read_text())
    assert np.shape(curves["rollout"]["deletion"]) == (3, 9)
    run = Run(tiny_run, "latest")
    options = {"clips": 3, "region": "tubes", "fill": "diffused"}
    other = measure_run(run, ["rollout", "random"], random_seed=1, **options)
    np.testing.assert_allclose(other["random"].deletion, curves["random"]["deletion"], atol=1e-5)
    assert not np.allclose(other["rollout"].deletion, curves["rollout"]["deletion"], atol=1e-6)
    with pytest.raises(ValueError, match="unknown method of attribution 'rolout'"):
        measure_run(run, ["rolout"], **options)
    with pytest.raises(ValueError, match="clips=0 of a split of 21 clips"):
        main([*common, "--clips=0"])
    with pytest.raises(ValueError, match="curves.json exists"):
        main([*common, f"--out={path}"])
