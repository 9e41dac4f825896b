import csv

import numpy as np
import pytest

from experiments import footage_baselines, real_video
from tests.data.films import film, number_of
from vivit.data import decode
from vivit.data.manifest import read_manifest


def test_no_frame_is_in_two_splits_and_labels_are_true(tmp_path, monkeypatch):
    monkeypatch.setattr(real_video, "CLIP_FRAMES", 5)
    monkeypatch.setattr(real_video, "STARTS", {"train": 6, "validation": 4, "test": 4})
    source = film(tmp_path / "film.mp4", frames=120, size=(144, 216))
    manifest = real_video.cut_clips([source], tmp_path / "clips")
    assert real_video.cut_clips([source], tmp_path / "clips") == manifest
    seen = {}
    with open(manifest, newline="") as file:
        for row in csv.DictReader(file):
            data = (tmp_path / "clips" / row["path"]).read_bytes()
            frames = decode.read(data, decode.index(data).pts)
            scale = frames.shape[1] // 144
            numbers = [number_of(frame[::scale, ::scale]) for frame in frames]
            step = numbers[1] - numbers[0]
            assert set(np.diff(numbers)) == {step}
            assert (step > 0) == (row["direction"] == "forward")
            assert abs(step) == int(row["speed"][0])
            seen.setdefault(row["split"], set()).update(numbers)
    assert set(seen) == {"train", "validation", "test"}
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    classes = read_manifest(manifest).classes
    assert classes["direction"].names == ("backward", "forward")
    assert classes["speed"].names == ("1x", "3x")


def test_baselines_by_hand():
    frames = np.arange(8.0)[:, None, None] * np.ones((8, 4, 4))  # each one brighter by 1
    np.testing.assert_allclose(footage_baselines.difference(frames, 2), 2 * np.ones(6))
    first, twice, four = footage_baselines.by_lag(frames)
    least = footage_baselines.LEAST
    np.testing.assert_allclose(
        [first, first + twice, first + four], np.log(np.array([1, 2, 4]) + least)
    )


def test_baselines_see_how_fast_but_not_which_way(tmp_path, monkeypatch, capsys):
    """A film of even motion: frames that are further apart differ more, in both directions."""
    monkeypatch.setattr(real_video, "CLIP_FRAMES", 6)
    monkeypatch.setattr(real_video, "STARTS", {"train": 6, "validation": 1, "test": 4})
    stripes = np.sin(np.arange(400) / 30)[None, :, None] * 100 + 128
    moving = [stripes[:, t : t + 192].repeat(144, 0).repeat(3, 2) for t in range(100)]
    film = tmp_path / "film.mp4"
    real_video.write_clip(film, [x.astype(np.uint8) for x in moving])
    manifest = real_video.cut_clips([film], tmp_path / "clips")
    found = {(label, name): rest for label, name, *rest in footage_baselines.compare(manifest)}
    assert found["speed", "mean difference of frames"] == [1.0, 1.0]
    assert 0.3 < found["direction", "mean difference of frames"][1] < 0.7
    footage_baselines.main([str(manifest)])
    assert "| speed | mean difference of frames | 100.0 | 100.0 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no manifest 'nowhere.csv'; python -m experiments"):
        footage_baselines.main(["nowhere.csv"])
