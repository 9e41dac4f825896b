import json
import shutil

import pytest

from tests.data.films import film, sound
from vivit.data.manifest import Classes, ClipRow, Manifest, read_manifest
from vivit.dataprep.__main__ import main
from vivit.dataprep.check import check
from vivit.dataprep.manifest_files import write_manifest


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


def test_decoding_finds_what_the_packets_do_not_show(tmp_path):
    data = bytearray(film(frames=60, options={"g": "60"}))
    start = data.index(b"mdat") + 3000
    data[start : start + 800] = bytes(800)
    (tmp_path / "holes.mp4").write_bytes(data)
    clips = (ClipRow("holes.mp4", "train", {"label": 0}),)
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("a",))}))
    assert check(tmp_path / "m.csv").kinds == {}
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
