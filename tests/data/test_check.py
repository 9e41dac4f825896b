import json
import shutil

import numpy as np
import pytest

from tests.data.films import film, sound
from vivit.data.manifest import Classes, ClipRow, Manifest, read_manifest
from vivit.dataprep.__main__ import main
from vivit.dataprep.check import check
from vivit.dataprep.manifest_files import write_manifest
from vivit.dataprep.similar import FLAT_HASH, hash_frame, similar_pairs


@pytest.fixture
def messy(tmp_path):
    """A folder with one of everything."""
    for i in range(4):
        film(tmp_path / f"good{i}.mp4", frames=30 + i)
    film(tmp_path / "fast.mp4", frames=30, rate=60)
    film(tmp_path / "short.mp4", frames=3)
    shutil.copy(tmp_path / "good0.mp4", tmp_path / "copy.mp4")
    shutil.copy(tmp_path / "good1.mp4", tmp_path / "leak.mp4")
    sound(tmp_path / "sound.mp4")
    (tmp_path / "page.mp4").write_bytes(b"<html>")
    names = ["good0", "good1", "good2", "good3", "fast", "short", "copy", "leak", "sound", "page"]
    clips = [
        ClipRow(f"{name}.mp4", "test" if name == "leak" else "train", {"label": i % 2}, id=name)
        for i, name in enumerate([*names, "gone"])
    ]
    write_manifest(tmp_path / "m.csv", Manifest(tuple(clips), {"label": Classes(("<b>", "c"))}))
    return tmp_path


def test_everything_that_is_wrong_is_found(messy):
    report = check(messy / "m.csv", frames=16)
    kinds = {finding.clip: finding.kind for finding in report.findings}
    assert kinds == {
        "good0.mp4": "",
        "good1.mp4": "",
        "good2.mp4": "",
        "good3.mp4": "",
        "fast.mp4": "odd frame rate",
        "short.mp4": "too short",
        "copy.mp4": "",
        "leak.mp4": "",
        "sound.mp4": "audio only",
        "page.mp4": "damaged",
        "gone.mp4": "missing",
    }
    assert report.leaks == [["good1.mp4 (train)", "leak.mp4 (test)"]]
    assert ["good0.mp4 (train)", "copy.mp4 (train)"] in report.duplicates
    assert report.histogram["label"]["train"] == {"<b>": 6, "c": 4}
    first = report.findings[0]
    assert (first.frames, first.width, first.height) == (30, 96, 64)
    assert first.rate == pytest.approx(25, abs=0.1)


def test_findings_are_listed_by_severity_and_kind(tmp_path, capsys):
    names = [f"gone{i}" for i in range(8)]
    for i in range(5):
        film(tmp_path / f"good{i}.mp4", frames=30)
    film(tmp_path / "fast.mp4", frames=30, rate=60)
    (tmp_path / "page.mp4").write_bytes(b"<html>")
    kept = ["fast", *names, *(f"good{i}" for i in range(5)), "page"]
    clips = tuple(ClipRow(f"{name}.mp4", "train", {"label": -1 if name == "good0" else 0})
                  for name in kept)  # fmt: skip
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("a",))}))
    main(["check", str(tmp_path / "m.csv")])
    text = capsys.readouterr().out
    heads = ["damaged (1):", "missing (8):", "odd frame rate (1):"]
    assert [text.index(head) for head in heads] == sorted(text.index(head) for head in heads)
    assert "gone4.mp4: does not exist\n    and 3 more" in text
    assert "1 clips of train have no label" in text
    page = (tmp_path / "m.check.html").read_text()
    assert page.index("<h2>damaged") < page.index("<h2>missing") < page.index("<h2>odd frame rate")
    assert "(none)" not in text + page


def test_clips_that_look_alike_in_several_splits_are_found(tmp_path):
    film(tmp_path / "a.mp4", frames=60)
    film(tmp_path / "b.mkv", container="matroska", frames=60, options={"crf": "34"})
    rows = [("a.mp4", "train"), ("b.mkv", "test")]
    clips = tuple(ClipRow(path, split, {"label": 0}) for path, split in rows)
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("a",))}))
    report = check(tmp_path / "m.csv")
    assert report.leaks == []
    assert ["a.mp4 (train)", "b.mkv (test)"] in report.similar


def test_frames_without_structure_look_like_nothing():
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert hash_frame(grey) == FLAT_HASH
    hashes = np.full((2, 3), FLAT_HASH)
    assert similar_pairs(hashes, ["train", "test"]) == []
    alike = np.array([[1, 2, 4], [1, 2, 1 << 40], [3, 5, 9]], np.uint64)
    assert similar_pairs(alike, ["train", "train", "train"]) == []


def test_pairs_are_found_over_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 1 << 63, (40, 3), np.uint64)
    hashes[31] = hashes[4] ^ np.uint64(0b111)
    hashes[7] = hashes[5]  # in one split
    monkeypatch.setattr("vivit.dataprep.similar.BLOCK", 100)
    splits = ["train"] * 30 + ["test"] * 10
    assert similar_pairs(hashes, splits) == [(4, 31)]


def test_segments_and_names_show_sources_in_several_splits(tmp_path):
    rows = [
        ("x.mp4", 0.0, 1.0, "train"),
        ("x.mp4", 2.0, 3.0, "test"),
        ("film_1.mp4", None, None, "train"),
        ("film_2.mp4", None, None, "test"),
        ("3.mp4", None, None, "test"),
    ]
    clips = tuple(ClipRow(p, split, {"label": 0}, start, end) for p, start, end, split in rows)
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("a",))}))
    report = check(tmp_path / "m.csv")
    assert report.sources == ["x.mp4: 1 in test, 1 in train", "film: 1 in test, 1 in train"]


def test_decoding_finds_what_the_packets_do_not_show(tmp_path):
    data = bytearray(film(frames=60, options={"g": "60"}))
    start = data.index(b"mdat") + 3000
    data[start : start + 800] = bytes(800)
    (tmp_path / "holes.mp4").write_bytes(data)
    clips = (ClipRow("holes.mp4", "train", {"label": 0}),)
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("a",))}))
    assert check(tmp_path / "m.csv", similar=False).kinds == {}
    assert check(tmp_path / "m.csv", decode=True).kinds == {"damaged": 1}


def test_the_command_writes_json_a_page_and_hashes(messy, capsys):
    with pytest.raises(SystemExit):  # two splits share a clip
        main(["check", str(messy / "m.csv"), "--frames=16", f"--write-hashes={messy}/hashed.csv"])
    out = capsys.readouterr().out
    assert "11 clips, 6 good" in out
    assert "shared between splits: 1 groups" in out
    report = json.loads((messy / "m.check.json").read_text())
    assert report["kinds"]["missing"] == 1
    page = (messy / "m.check.html").read_text()
    assert "data:image/jpeg;base64" in page
    assert "&lt;b&gt;" in page
    assert "<b></td>" not in page
    hashed = {clip.path: clip.sha256 for clip in read_manifest(messy / "hashed.csv").clips}
    assert hashed["good0.mp4"] == hashed["copy.mp4"] != ""
    assert hashed["gone.mp4"] == ""
