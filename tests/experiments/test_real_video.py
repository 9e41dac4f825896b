import csv

import numpy as np

from experiments import real_video
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
