"""Values of frames, moments and regions, against explicit loops and made curves; their files; and
their scores on films whose truth is known."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, TINY
from tests.data.films import film
from vivit.analysis import attribute
from vivit.analysis.moment_scores import differences, measure_run, scores_of
from vivit.analysis.moment_scores import main as main_of_scores
from vivit.analysis.moments import (
    blend,
    find_moments,
    follow,
    in_pixels,
    main,
    values_of,
    write_moments,
)
from vivit.analysis.windows import Window, windows
from vivit.config import read_config
from vivit.run import Run
from vivit.train import train


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, long_root):
    """The folder of a run on long digits."""
    workdir = tmp_path_factory.mktemp("runs") / "long"
    arguments = [
        *TINY,
        f"--config.data.root={long_root}",
        "--config.train.steps=2",
        "--config.data.batch_size=4",
    ]
    train(read_config(str(ROOT / "configs/long_digits.py"), arguments), workdir)
    return workdir


@pytest.fixture(scope="module")
def run(long_run):
    return Run(long_run, "latest")


def test_windows_overlap_and_end_with_the_film(run):
    video = run.data.reader.open(0)
    found = windows(video, run.config.data.sampling, 16, overlap=4)
    np.testing.assert_array_equal(np.diff([w.frames[0] for w in found])[:-1], 8)
    np.testing.assert_array_equal(found[0].frames, np.arange(0, 32, 2))
    assert found[-1].frames[-1] == 95
    assert len({w.frames[0] for w in found}) == len(found)


def test_blended_values_are_weighted_means_of_steps():
    rng = np.random.default_rng(0)
    heats = rng.uniform(size=(3, 4, 1, 2))
    parts = [Window(s, np.arange(s, s + 16, 2)) for s in (0, 8, 11)]
    found = blend(heats, parts, 30)
    for frame in range(30):
        total = weight = 0.0
        for i, (_, clip) in enumerate(parts):
            end = 30 if i == 2 else clip[-1] + 2
            if clip[0] <= frame < end:
                step = [k for k in range(8) if clip[k] <= frame][-1] // 2
                total = total + min(step + 1, 4 - step) * heats[i, step]
                weight += min(step + 1, 4 - step)
        np.testing.assert_allclose(found[frame], total / weight)
    np.testing.assert_allclose(blend(np.ones((3, 4, 1, 2)), parts, 30), 1)
    apart = [Window(0, np.array([0, 2, 3])), Window(7, np.array([7, 7, 9]))]  # of a varying rate
    np.testing.assert_allclose(blend(np.ones((2, 3, 1, 1)), apart, 14), 1)
    np.testing.assert_allclose(
        blend(np.ones((2, 1, 1, 1)), [Window(0, np.array([0])), Window(5, np.array([5]))], 9), 1
    )


def test_a_window_shares_its_probability(run):
    """Windows in which the class is not seen are worth little, whatever their maps."""
    video = run.data.reader.open(3)
    values = values_of(run, video, "rollout", number=2, overlap=2)
    sure = values_of(run, video, "uniform", number=2, overlap=2)
    parts = windows(video, run.config.data.sampling, 16, overlap=2)
    clips = np.stack([np.repeat(video.read(w.frames, None), 3, axis=-1) for w in parts])
    probabilities = run.predict(clips)[:, 2]
    heat = np.asarray(attribute("rollout", run.model, run.params, clips, [2] * len(parts)))
    shares = heat / heat.mean(axis=(1, 2), keepdims=True) * probabilities[:, None, None]
    grid = blend(shares.reshape(-1, *run.model.config.grid), parts, 96)
    at = slice(40, 50)  # length 30 / 4 = 7: three frames on both sides
    smooth = np.stack([grid[n - 3 : n + 4].mean(axis=0) for n in range(40, 50)])
    np.testing.assert_allclose(values.grid[at], smooth, rtol=1e-4)
    np.testing.assert_allclose(values.probabilities[:, 2], probabilities, rtol=1e-5)
    expected = blend(np.tile(probabilities[:, None, None, None], (1, 4, 2, 2)), parts, 96)
    smooth = np.stack([expected[n - 3 : n + 4].mean(axis=0) for n in range(40, 50)])
    np.testing.assert_allclose(sure.grid[at], smooth, rtol=1e-4)
    assert values_of(run, video, "uniform").number == values.probabilities.mean(axis=0).argmax()


def curve(*values):
    return np.array(values, float)[:, None, None]


def test_moments_are_ranked_and_their_slopes_are_none():
    grid = curve(1, 1, 2, 5, 9, 10, 8, 3, 2, 1, 1, 1, 1, 1, 4, 6, 4, 1, 1, 1)
    first, second = find_moments(grid)
    assert (first.begin, first.end, first.peak, first.value) == (4, 7, 5, 10)
    assert (second.begin, second.end, second.peak) == (14, 17, 15)
    assert len(first.regions) == 3
    assert find_moments(grid, most=1) == [first]
    assert find_moments(curve(2, 2, 2)) == []
    end = find_moments(curve(0, 0, 0, 0, 1, 2))
    assert [(m.begin, m.end) for m in end] == [(5, 6)]


def test_a_region_is_followed_where_another_is_brighter():
    grid = np.zeros((4, 6, 8))
    for n in range(4):
        grid[n, 2:4, n : n + 2] = 1.0
    grid[3, 0, 7] = 1.5
    assert follow(grid, 0) == [(2, n, 2, 2) for n in range(4)]
    assert follow(grid, 3) == [(0, 7, 1, 1) if n == 3 else (2, n, 2, 2) for n in range(4)]
    grid[1] = 0
    grid[1, 5, 0] = 1  # nothing is left of it
    assert follow(grid, 0)[1] == (5, 0, 1, 1)


def test_regions_in_pixels():
    assert in_pixels((1, 2, 1, 2), (2, 4), (10, 20, 40, 80)) == (30, 60, 20, 40)
    edges = [in_pixels((0, k, 1, 1), (1, 3), (0, 0, 10, 10)) for k in range(3)]
    assert [e[1] for e in edges] + [edges[-1][1] + edges[-1][3]] == [0, 3, 7, 10]


def test_files_of_a_film(run, long_run, tmp_path, capsys):
    video = film(tmp_path / "a.mp4", frames=70, audio=True)
    out = tmp_path / "out"
    main([
        f"--workdir={long_run}", "--checkpoint=latest", f"--video={video}", f"--out={out}",
        "--class=left", "--most=2", "--method=random",
    ])  # fmt: skip
    assert "left" in capsys.readouterr().out
    found = json.loads((out / "moments.json").read_text())
    assert found["class"] == "left"
    assert len(found["frames"]["values"]) == len(found["frames"]["seconds"]) == 70
    assert 1 <= len(found["moments"]) <= 2
    values = np.array(found["frames"]["values"])
    for moment in found["moments"]:
        assert moment["begin"] <= moment["peak"] < moment["end"] <= 70 / 25
        assert moment["value"] == pytest.approx(values[round(moment["peak"] * 25)])
        seconds = [box["seconds"] for box in moment["boxes"]]
        np.testing.assert_allclose(np.diff(seconds), 1 / 25, atol=1e-6)
        for box in moment["boxes"]:  # in the square in the middle of 64 x 96 that the model sees
            assert box["top"] >= 0
            assert box["left"] >= 16
            assert box["top"] + box["height"] <= 64
            assert box["left"] + box["width"] <= 80
    with Image.open(out / "moments.png") as sheet:
        assert sheet.width > 1000
    with av.open(str(out / "moments.mp4")) as file:
        frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
        assert file.streams.audio
    assert len(frames) == 70
    assert frames[0].shape[1] == 96
    with av.open(str(video)) as file:
        plain = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    changed = {n for n in range(70) if np.abs(frames[n][:64].astype(int) - plain[n]).max() > 90}
    boxed = {box["frame"] for moment in found["moments"] for box in moment["boxes"]}
    assert len(changed ^ boxed) <= 2  # where the outline has the colour of what is below it
    with pytest.raises(ValueError, match="out exists; choose another --out"):
        write_moments(run, video, out)


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        ({"frames": 40}, {"class_name": "lft"}, "no class 'lft'; the run has: left, right"),
        (
            {"frames": 20},
            {},
            "the film has 20 frames in 0.80 s, fewer than a clip",
        ),
        ({"frames": 40}, {"overlap": 0}, "overlap=0 must be at least 1"),
        ({"frames": 40}, {"method": "rolout"}, "unknown method of attribution 'rolout'"),
        (None, {}, "a.mp4: Invalid data"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(run, tmp_path, made, options, message):
    path = tmp_path / "a.mp4"
    if made is None:
        path.write_bytes(b"nothing")
    else:
        film(path, **made)
    with pytest.raises(ValueError, match=message):
        write_moments(run, path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_scores_of_the_truth_of_nothing_and_of_the_wrong_frames():
    masks = np.zeros((12, 8, 8), bool)
    masks[4:6, 0:4, 4:8] = True
    truth = masks[:, ::4, ::4] * np.linspace(1, 2, 12)[:, None, None]
    best = scores_of(truth.astype(float), masks)
    assert (best["hit"], best["pointing"]) == (1, 1)
    constant = scores_of(np.ones((12, 2, 2)), masks)
    assert constant == {"hit": pytest.approx(2 / 12), "tau": 0, "pointing": pytest.approx(1 / 4)}
    wrong = scores_of(1 - truth, masks)
    assert wrong["hit"] == 0
    assert wrong["tau"] < 0
    assert wrong["pointing"] == 0
    # All pairs are right, and those of equal truth are ties: sqrt(2 * 10 / (12 * 11 / 2)).
    ranked = masks[:, :1, 4:5] + np.linspace(0, 0.5, 12)[:, None, None]
    assert scores_of(ranked, masks)["tau"] == pytest.approx(np.sqrt(20 / 66))


def test_frame_differences():
    frames = np.zeros((3, 4, 4, 1), np.uint8)
    frames[1:, 0, 0] = 40
    found = differences(frames, (2, 2))
    np.testing.assert_allclose(found[1], [[10, 0], [0, 0]])
    assert not found[0].any()
    assert not found[2].any()


def test_a_run_is_scored(run, long_run, tmp_path, capsys):
    path = tmp_path / "scores.json"
    common = [f"--workdir={long_run}", "--checkpoint=latest", "--methods=uniform,rollout"]
    main_of_scores([*common, "--clips=3", f"--out={path}"])
    shown = capsys.readouterr().out
    assert "| frame difference |" in shown
    found = json.loads(path.read_text())
    assert list(found["rollout"]) == ["hit", "tau", "pointing"]
    video, masks = run.data.reader.open(2), run.data.masks.open(2)
    truth = masks.read(np.arange(96), None)[..., 0] > 127
    expected = scores_of(values_of(run, video, "rollout").grid, truth)
    assert found["rollout"]["tau"][2] == pytest.approx(expected["tau"])
    other = measure_run(run, ["rollout"], clips=3, random_seed=1)
    assert not np.allclose(other["rollout"]["tau"], found["rollout"]["tau"])
    with pytest.raises(ValueError, match="clips=0 of a split of 10 clips"):
        main_of_scores([*common, "--clips=0"])
