"""Predictions for files: the same numbers as evaluation, for every form of input and output."""

import csv
import io
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.films import film
from vivit.data import decode_pool
from vivit.data.geometry import view
from vivit.predict import find_videos, main, parse_seconds, predictor_of_run
from vivit.run import Run


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two good films, one longer, and one that is damaged."""
    folder = tmp_path_factory.mktemp("films")
    film(folder / "a.mp4", frames=40, size=(64, 96))
    film(folder / "b.mkv", container="matroska", frames=60, size=(80, 128))
    (folder / "broken.mp4").write_bytes(b"not a film")
    return folder


def run_main(capsys, *arguments):
    """Returns what the command prints, and what it says on leaving."""
    capsys.readouterr()
    try:
        main(list(arguments))
        status = ""
    except SystemExit as left:
        status = str(left)
    return capsys.readouterr(), status


def test_a_folder_of_films(films, tiny_run, capsys):
    printed, status = run_main(
        capsys, f"--workdir={tiny_run}", "--checkpoint=latest", "--json", str(films)
    )
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["video"] for row in rows] == [str(films / "a.mp4"), str(films / "b.mkv")]
    for row in rows:
        ps = [c["probability"] for c in row["classes"]]
        assert ps == sorted(ps, reverse=True)
        assert len(ps) == 5
    assert "broken.mp4: damaged" in printed.err
    assert status == "1 of 3 videos could not be read"


def test_a_film_has_the_probabilities_of_its_middle_clip(films, tiny_run):
    run = Run(tiny_run, "latest")
    predictor = predictor_of_run(run, batch_size=2)
    rows, root = find_videos([str(films / "a.mp4")])
    (found,) = predictor.videos(rows, root)
    video = decode_pool.read(str(films / "a.mp4"), pts=decode_pool.index(str(films / "a.mp4")).pts)
    clip = video[12 : 12 + 16]  # 16 of 40 frames
    extent = jnp.array([64, 96])
    seen = view(jnp.asarray(clip), extent, place=0.5, short_side=32, size=(32, 32))
    wanted = run.predict(np.asarray(seen)[None])[0]
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)


def test_over_time_is_the_clips_one_by_one(films, tiny_run, monkeypatch):
    run = Run(tiny_run, "latest")
    predictor = predictor_of_run(run, batch_size=2)
    rows, root = find_videos([str(films / "b.mkv")])
    whole = list(predictor.over_time(rows[0], root, every=0.4))
    assert [p.seconds for p in whole] == pytest.approx(np.arange(0, 2.4, 0.4))
    monkeypatch.setattr("vivit.predict.CHUNK_BYTES", 20 * 80 * 128 * 3)  # frames of a clip or so
    chunked = list(predictor.over_time(rows[0], root, every=0.4))
    for one, other in zip(whole, chunked, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert not np.allclose(whole[0].probabilities, whole[3].probabilities, atol=1e-9)


def test_csv_and_table_over_time(films, tiny_run, capsys):
    common = [f"--workdir={tiny_run}", "--checkpoint=latest", "--every=1s", "--top=2"]
    printed, _ = run_main(capsys, *common, "--csv", str(films / "b.mkv"))
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert list(rows[0]) == ["video", "seconds", "class_1", "p_1", "class_2", "p_2"]
    assert [row["seconds"] for row in rows] == ["0", "1", "2"]
    printed, _ = run_main(capsys, *common, str(films / "b.mkv"))
    assert printed.out.splitlines()[1].startswith(f"{films}/b.mkv      1.00 s  ")


def test_a_manifest_and_its_splits(films, tiny_run, tmp_path, capsys):
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,split,start,end,x\na.mp4,train,0,1,u\nb.mkv,test,,,v\n")
    common = [f"--workdir={tiny_run}", "--checkpoint=latest", "--json", f"--data-root={films}"]
    printed, status = run_main(capsys, *common, str(manifest))
    assert status == ""
    names = [json.loads(line)["video"] for line in printed.out.splitlines()]
    assert names == ["a.mp4 (0 s to 1 s)", "b.mkv"]
    printed, _ = run_main(capsys, *common, "--split=test", str(manifest))
    assert [json.loads(line)["video"] for line in printed.out.splitlines()] == ["b.mkv"]


def test_portable_weights_predict_as_their_run(films, tiny_run, tmp_path, capsys):
    from vivit.pretrained.__main__ import main as pretrained

    out = tmp_path / "weights"
    pretrained(["convert", str(tiny_run), str(out), "--checkpoint=latest"])
    video = str(films / "a.mp4")
    ours, _ = run_main(capsys, f"--weights={out}", "--json", video)
    theirs, _ = run_main(capsys, f"--workdir={tiny_run}", "--checkpoint=latest", "--json", video)
    ours, theirs = (json.loads(x.out)["classes"] for x in (ours, theirs))
    np.testing.assert_allclose(
        [c["probability"] for c in ours], [c["probability"] for c in theirs], atol=1e-5
    )
    assert [c["class"] for c in ours] == [c["class"] for c in theirs]


def test_paths_from_several_folders(films, tmp_path):
    shutil.copy(films / "a.mp4", tmp_path / "c.mp4")
    rows, root = find_videos([str(films / "a.mp4"), str(tmp_path / "c.mp4")])
    assert [f"{root.rstrip('/')}/{row.path}" for row in rows] == [
        str(films / "a.mp4"),
        str(tmp_path / "c.mp4"),
    ]
    assert [row.id for row in rows] == [str(films / "a.mp4"), str(tmp_path / "c.mp4")]  # as given
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,split,x\nnowhere.mp4,train,u\n")
    with pytest.raises(ValueError, match="none of the 1 clips is below .*--data-root"):
        find_videos([str(manifest)])
    with pytest.raises(ValueError, match=r"m.csv is a manifest; give it alone"):
        find_videos([str(manifest), str(films)])
    with pytest.raises(ValueError, match="choose clips of a manifest"):
        find_videos([str(films)], split="test")


def test_times():
    assert [parse_seconds(x) for x in ("1s", "0.5 s", "2")] == [1.0, 0.5, 2.0]
