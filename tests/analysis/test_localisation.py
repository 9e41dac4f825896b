"""The pointing game and IoU against loops over pixels; ranks; a run whose data set says the truth;
and what random parameters find."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import TINY, with_head
from vivit.analysis import attribute
from vivit.analysis.attribution import METHODS
from vivit.analysis.faithfulness import agreement, main, measure_run
from vivit.analysis.localisation import coverage, localisation, ranks
from vivit.run import Run


@pytest.fixture(scope="module")
def model():
    return vivit.build({**TINY, "clip": (4, 16, 16), "tubelet": (2, 4, 4), "family": "joint"})


@pytest.fixture(scope="module")
def masks():
    """A square that moves to the right, and one that stands still."""
    found = np.zeros((2, 4, 16, 16), bool)
    for frame in range(4):
        found[0, frame, 3:9, 2 + frame : 9 + frame] = True
    found[1, :, 8:12, 8:12] = True
    return found


def test_pointing_and_iou_are_those_of_pixels(model, masks):
    heat = np.random.default_rng(0).normal(size=(2, 2, 16))
    found = localisation(heat, masks, model.config)
    for clip in range(2):
        hits = []
        for frame in range(4):
            y, x = divmod(int(heat[clip, frame // 2].argmax()), 4)
            hits.append(masks[clip, frame, 4 * y + 2, 4 * x + 2])
        assert found["pointing"][clip] == pytest.approx(np.mean(hits))
        count = round(masks[clip].sum() / 32)  # pixels of a token
        chosen = np.zeros((4, 16, 16), bool)
        for token in np.argsort(-heat[clip].ravel())[:count]:
            step, place = divmod(int(token), 16)
            y, x = divmod(place, 4)
            chosen[2 * step : 2 * step + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = True
        iou = (chosen & masks[clip]).sum() / (chosen | masks[clip]).sum()
        assert found["iou"][clip] == pytest.approx(iou)


def test_the_truth_is_found_and_a_uniform_map_is_chance(model, masks):
    best = localisation(coverage(masks, model.config), masks, model.config)
    np.testing.assert_allclose(best["pointing"], 1)
    assert best["iou"][1] == pytest.approx(1)  # a whole token
    assert 0.5 < best["iou"][0] < 1
    uniform = localisation(np.ones((2, 2, 16)), masks, model.config)
    middles = masks[:, :, 2::4, 2::4].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(uniform["pointing"], middles)


def test_equal_values_are_in_no_order():
    equal = ranks(np.zeros((8, 2, 3)))
    assert len(np.unique(equal, axis=0)) > 4
    np.testing.assert_array_equal(np.sort(equal, axis=1), np.tile(np.arange(6), (8, 1)))
    np.testing.assert_array_equal(ranks(np.array([[3.0, 1.0, 2.0]])), [[0, 2, 1]])


def test_agreement_is_spearmans(model):
    x, y = np.random.default_rng(0).normal(size=(2, 3, 2, 16))
    from scipy.stats import spearmanr

    expected = [spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(agreement(x, y), expected)
    np.testing.assert_allclose(agreement(x, np.exp(x)), 1)
    np.testing.assert_array_equal(agreement(np.ones((2, 1, 3)), np.ones((2, 1, 3))), 1)


def test_attributions_follow_the_parameters(model):
    """The sanity check of Adebayo et al. (1810.03292): a method whose maps of other parameters are
    the same explains nothing of them. Baselines are the same."""
    clips = np.random.default_rng(0).uniform(-1, 1, (4, *model.config.clip, 3)).astype(np.float32)
    classes = np.arange(4)
    one, other = (with_head(model, scale=40, seed=seed) for seed in (0, 1))
    for name in METHODS:
        maps = (np.asarray(attribute(name, model, p, clips, classes)) for p in (one, other))
        alike = agreement(*maps).mean()
        if name in ("random", "uniform", "centre"):
            assert alike == 1, name
        else:
            assert abs(alike) < 0.5, (name, alike)


def test_a_run_on_data_that_say_the_truth(tiny_run, tmp_path, capsys):
    run = Run(tiny_run, "latest")
    masks = run.masks([0, 5])
    assert masks is not None
    assert masks.shape == (2, 16, 32, 32)
    clips, _ = run.clips([0, 5])
    assert clips[masks].mean() > clips[~masks].mean()
    path = tmp_path / "all.json"
    main([
        f"--workdir={tiny_run}", "--checkpoint=latest", "--clips=2", "--methods=rollout,uniform",
        "--random-seed=1", f"--out={path}",
    ])  # fmt: skip
    head = "| method | deletion | insertion | pointing | iou | agreement |"
    shown = capsys.readouterr().out.splitlines()
    assert head in shown
    assert any(line.startswith("| track |") for line in shown)
    found = json.loads(path.read_text())
    assert set(found) == {"rollout", "uniform", "track"}
    assert found["uniform"]["agreement"] == [1, 1]
    assert found["track"]["agreement"] == [1, 1]
    assert -1 < found["rollout"]["agreement"][0] < 1
    options = {"clips": 2, "region": "tubes", "fill": "diffused"}
    trained = measure_run(run, ["rollout"], **options)
    assert set(trained["rollout"].scores) == {"deletion", "insertion", "pointing", "iou"}
    heat = attribute("rollout", run.model, run.params, *_first_two(run))
    expected = localisation(np.asarray(heat), run.masks([0, 1]), run.model.config)
    np.testing.assert_allclose(trained["rollout"].scores["iou"], expected["iou"])


def _first_two(run):
    clips, _ = run.clips([0, 1])
    return jnp.asarray(clips), run.predict(clips).argmax(axis=1)
