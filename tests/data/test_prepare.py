import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from av import VideoFrame

from tests.data.conftest import FORMATS, opened
from tests.data.films import film, number_of, turned
from vivit.data.decode import CLOCK
from vivit.data.manifest import Classes, ClipRow, Manifest, read_manifest
from vivit.data.settings import DataSettings
from vivit.data.sources import open_split
from vivit.data.video import ClipReadError
from vivit.dataprep import prepare as prepare_module
from vivit.dataprep import shards, staging
from vivit.dataprep.__main__ import main
from vivit.dataprep.check import check
from vivit.dataprep.encode import ENCODERS
from vivit.dataprep.manifest_files import write_manifest
from vivit.dataprep.pictures import describe
from vivit.dataprep.prepare import prepare_manifest
from vivit.dataprep.staging import Spec
from vivit.tasks import Classify, MultiLabel


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_of_every_clip_is_kept(prepared, videos, name):
    rows = read_manifest(videos / "films.csv")
    for split in ("train", "validation", "test"):
        data = opened(name, prepared, split=split, label="label")
        clips = rows.split(split)
        assert len(data) == len(clips)
        for i, clip in enumerate(clips):
            video = data.reader.open(i)
            assert data.reader.name(i) == clip.path
            assert video.labels["label"] == data.labels_of(i)["label"] == clip.labels["label"]
            count = len(video.times)
            frames = video.read(np.arange(count), None)
            assert [number_of(frame) for frame in frames] == list(range(count))
            np.testing.assert_allclose(video.times, np.arange(count) / 25, atol=1e-4)
            assert video.seconds == pytest.approx(count / 25, abs=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_any_order_and_any_window(prepared, name):
    video = opened(name, prepared, split="train", label="label").reader.open(3)
    numbers = np.array([20, 3, 3, 29, 0])
    whole = video.read(numbers, None)
    assert [number_of(frame) for frame in whole] == numbers.tolist()
    part = video.read(numbers, (10, 7, 32, 40))
    np.testing.assert_array_equal(part, whole[:, 10:42, 7:47])


@pytest.mark.parametrize("name", FORMATS)
def test_tfds_opens_it_without_tensorflow(prepared, name):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.data_source({name!r}, data_dir={str(prepared)!r}, split='train')\n"
        "print(len(source), sorted(source[0]), 'tensorflow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *_, has_tensorflow = out.stdout.split()
    assert (count, has_tensorflow) == ("10", "False")
    assert "'ticks'" in out.stdout
    if name != "h264":
        frames = tfds.builder_from_directory(prepared / name / "1.0.0" / "frames")
        source = frames.as_data_source(split="train")
        assert len(source) == sum(range(30, 40))
        if name == "jpeg":
            assert number_of(source[5]["frame"]) == 5


def test_clips_of_other_times_sizes_and_sides(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(10, 90, 40)).tolist()
    film(tmp_path / "uneven.mp4", frames=40, times=times, options={"bf": "2"})
    (tmp_path / "phone.mp4").write_bytes(turned(film(frames=20), 90))
    film(tmp_path / "large.mp4", frames=20, size=(301, 403), pix_fmt="yuv444p")
    clips = tuple(
        ClipRow(name, "train", {"label": 0}, start, end, f"{name}{start}")
        for name, start, end in (
            ("uneven.mp4", 0.3, 1.1),
            ("phone.mp4", None, None),
            ("large.mp4", None, None),
        )
    )
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("a",))}))
    for name in FORMATS:
        spec = Spec(format=name, short_side=128)
        prepare_manifest(tmp_path / "m.csv", tmp_path / "out", name=name, spec=spec)
        data = opened(name, tmp_path / "out", split="train", label="label")
        uneven, phone, large = (data.reader.open(i) for i in range(3))
        shown = np.array(times) / 1000 - times[0] / 1000
        inside = np.flatnonzero((np.append(shown[1:], 9) > 0.3) & (shown < 1.1))
        frames = uneven.read(np.arange(len(inside)), None)
        assert [number_of(frame) for frame in frames] == inside.tolist()
        np.testing.assert_allclose(uneven.times, shown[inside] - shown[inside[0]], atol=1e-3)
        assert (phone.height, phone.width) == (96, 64)
        assert number_of(np.rot90(phone.read(np.array([7]), None)[0])) == 7
        assert (large.height, large.width) == (128, 170)
        assert data.largest == (128, 170)
        assert data.smallest == 64


def test_square_and_fewer_frames(videos, tmp_path):
    spec = Spec(format="raw", square=True, fps=12.5)
    prepare_manifest(videos / "films.csv", tmp_path, spec=spec)
    data = opened("films", tmp_path, split="test", label="label")
    assert data.largest == (64, 64)
    whole = opened(str(videos / "films.csv"), videos, split="test", label="label")
    few, many = (x.reader.open(0) for x in (data, whole))
    assert len(few.times) == -(-len(many.times) // 2)
    expected = many.read(np.array([0, 2, 4]), (0, 16, 64, 64))
    np.testing.assert_array_equal(few.read(np.arange(3), None), expected)


def prepare_in_the_background(videos, out):
    code = (
        "import time\nfrom vivit.dataprep import prepare\n"
        "real = prepare.encode_staged\n"
        "def slow(plan, i):\n    real(plan, i)\n    time.sleep(0.3)\n"
        "prepare.encode_staged = slow\n"
        f"prepare.prepare_manifest({str(videos / 'films.csv')!r}, {str(out)!r})"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_killed_prepare_goes_on_and_does_nothing_twice(videos, tmp_path, monkeypatch):
    process = prepare_in_the_background(videos, tmp_path)
    done = lambda: len(list((tmp_path / "films").glob("incomplete/clips/*/*.json")))
    while done() < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = done()
    with pytest.raises(ValueError, match="no data set 'films'"):
        opened("films", tmp_path, split="train", label="label")
    encoded = []
    real = staging.encode_clip
    monkeypatch.setattr(
        staging, "encode_clip", lambda row, *args: encoded.append(row.path) or real(row, *args)
    )
    prepare_manifest(videos / "films.csv", tmp_path)
    assert len(encoded) == 16 - kept
    assert len(set(encoded)) == len(encoded)
    prepare_manifest(videos / "films.csv", tmp_path)  # again: nothing to do
    assert len(encoded) == 16 - kept


def test_a_kill_between_shards_loses_none(videos, prepared, tmp_path, monkeypatch):
    real = shards.assemble

    def once(plan, number):
        if number:
            raise KeyboardInterrupt
        real(plan, number)

    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(prepare_module, "assemble", once)
    with pytest.raises(KeyboardInterrupt):
        prepare_manifest(videos / "films.csv", tmp_path, name="h264")
    monkeypatch.setattr(prepare_module, "assemble", real)
    prepare_manifest(videos / "films.csv", tmp_path, name="h264")
    builder = tfds.builder_from_directory(tmp_path / "h264" / "1.0.0")
    assert builder.info.splits["train"].num_shards == 10
    one, many = (
        opened("h264", root, split="train", label="label").reader for root in (prepared, tmp_path)
    )
    for i in range(10):
        assert one.name(i) == many.name(i)
        np.testing.assert_array_equal(
            one.open(i).read(np.arange(30), None), many.open(i).read(np.arange(30), None)
        )
    assert not list((tmp_path / "h264" / "1.0.0").glob("**/*.clip"))


def test_damaged_clips_are_left_out_and_listed(videos, tmp_path):
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    (root / "train/up/0.mp4").write_bytes(b"<html>")
    (root / "val/up/0.mp4").unlink()
    folder = prepare_manifest(root / "films.csv", tmp_path / "out", max_bad_fraction=0.2)
    data = opened("films", tmp_path / "out", split="train", label="label")
    assert len(data) == 9
    listed = (folder / "skipped.csv").read_text().splitlines()
    assert len(listed) == 3
    assert '"train/up/0.mp4","train/up/0.mp4","damaged"' in listed[1]
    assert '"missing","does not exist"' in listed[2]
    with pytest.raises(
        ValueError, match=r"2 of 16 clips below .* can't be read \(1 damaged, 1 missing\)"
    ):
        prepare_manifest(root / "films.csv", tmp_path / "strict", max_bad_fraction=0.05)
    for path in root.glob("test/*/*.mp4"):
        path.unlink()
    with pytest.raises(ValueError, match="splits without a clip that can be read"):
        prepare_manifest(root / "films.csv", tmp_path / "third", max_bad_fraction=0.5)


def test_what_failed_is_tried_again(videos, tmp_path):
    with pytest.raises(ValueError, match=r"16 of 16 clips below .* can't be read \(16 missing\)"):
        prepare_manifest(videos / "films.csv", tmp_path, root=tmp_path)
    prepare_manifest(videos / "films.csv", tmp_path, root=videos)  # the right one, then
    with pytest.raises(ValueError, match="'nowhere' is not a folder"):
        prepare_manifest(videos / "films.csv", tmp_path / "other", root="nowhere")
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    moved = (root / "train/up/0.mp4").rename(root / "later.mp4")
    with pytest.raises(ValueError, match="1 missing"):
        prepare_manifest(root / "films.csv", tmp_path / "out", max_bad_fraction=0.0)
    moved.rename(root / "train/up/0.mp4")
    prepare_manifest(root / "films.csv", tmp_path / "out", max_bad_fraction=0.0)
    assert len(opened("films", tmp_path / "out", split="train", label="label")) == 10


def test_a_kill_after_the_last_shard_loses_nothing(videos, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_manifest(videos / "films.csv", tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(staging, "encode_clip", stop)
    prepare_manifest(videos / "films.csv", tmp_path)
    assert len(opened("films", tmp_path, split="train", label="label")) == 10


def test_files_behind_a_uri(videos, tmp_path):
    import fsspec

    rows = read_manifest(videos / "films.csv")
    for clip in rows.clips:
        fsspec.filesystem("memory").pipe(f"/films/{clip.path}", (videos / clip.path).read_bytes())
    write_manifest(tmp_path / "m.csv", rows)
    prepare_manifest(tmp_path / "m.csv", tmp_path / "out", root="memory://films")
    direct = opened(str(tmp_path / "m.csv"), "memory://films", split="train", label="label")
    for data in (direct, opened("m", tmp_path / "out", split="train", label="label")):
        numbers = np.array([9, 2])
        assert [number_of(x) for x in data.reader.open(4).read(numbers, None)] == [9, 2]
    assert check(tmp_path / "m.csv", root="memory://films").kinds == {}


def test_a_kill_after_the_last_name_leaves_nothing_behind(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shards, "remove_staging", lambda plan: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        prepare_manifest(videos / "films.csv", tmp_path)
    assert len(opened("films", tmp_path, split="train", label="label")) == 10
    assert (tmp_path / "films/1.0.0/clips").exists()
    monkeypatch.undo()
    prepare_manifest(videos / "films.csv", tmp_path)
    assert not (tmp_path / "films/1.0.0/clips").exists()


@pytest.mark.parametrize("tags", [{"colorspace": 1, "color_range": 1}, {"color_range": 2}])
def test_colours_are_the_same_in_every_format(tmp_path, tags):
    """Whatever colour space and range a file is tagged with."""
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        patch = np.zeros((64, 96, 3), np.uint8)
        patch[:] = (200, 90, 40)
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(patch, format="rgb24").reformat(format="yuv420p")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    clips = (ClipRow("a.mp4", "train", {"label": 0}),)
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("a",))}))
    direct = opened(str(tmp_path / "m.csv"), tmp_path, split="train", label="label")
    expected = direct.reader.open(0).read(np.array([1]), None)[0, 30, 40].astype(int)
    for name in FORMATS:
        prepare_manifest(tmp_path / "m.csv", tmp_path / "out", name=name, spec=Spec(format=name))
        data = opened(name, tmp_path / "out", split="train", label="label")
        pixel = data.reader.open(0).read(np.array([1]), None)[0, 30, 40]
        np.testing.assert_allclose(pixel, expected, atol=4)


def test_one_frame_and_fewer_frames_a_second(tmp_path):
    film(tmp_path / "a.mp4", frames=1)
    clips = (ClipRow("a.mp4", "train", {"label": 0}),)
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("a",))}))
    prepare_manifest(tmp_path / "m.csv", tmp_path / "out", spec=Spec(fps=5.0))
    assert len(opened("m", tmp_path / "out", split="train", label="label")) == 1


def test_the_same_clip_in_two_splits_is_refused(videos, tmp_path):
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    shutil.copy(root / "train/up/1.mp4", root / "test/up/0.mp4")
    with pytest.raises(ValueError, match=r"test/up/0.mp4 \(test\) is train/up/1.mp4 \(train\)"):
        prepare_manifest(root / "films.csv", tmp_path / "out", max_bad_fraction=0.0)
    prepare_manifest(root / "films.csv", tmp_path / "out", allow_shared=True)


def test_equal_frames_give_equal_bytes_whatever_was_encoded_before():
    draw = np.random.default_rng(0)
    starts = np.kron(draw.integers(0, 256, (3, 8, 12, 3)), np.ones((1, 8, 8, 1), int))
    noise = draw.integers(-6, 7, (30, 64, 96, 3))

    def written(first):
        pictures = (np.roll(starts[(first + i // 10) % 3], i, (0, 1)) + noise[i] for i in range(30))
        frames = (VideoFrame.from_ndarray(x.clip(0, 255).astype(np.uint8)) for x in pictures)
        return ENCODERS["h264"].encode(frames, [i * CLOCK // 25 for i in range(30)], 64, 20)[1]

    rounds = [[written(first) for first in range(3)] for _ in range(8)]
    assert len(set(rounds[0])) == 3
    assert all(one == rounds[0] for one in rounds)


def test_a_full_disk_is_told_before_the_work(videos, tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: Usage(1, 1, 1000))
    with pytest.raises(ValueError, match="needs about 0.0 GB more .* and its disk has 0.0 GB left"):
        prepare_manifest(videos / "films.csv", tmp_path)
    assert len(list(tmp_path.glob("films/incomplete/clips/*/*.json"))) == prepare_module.TRIED


def test_another_manifest_or_spec_does_not_mix(videos, tmp_path):
    prepare_manifest(videos / "films.csv", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="made from another manifest or with other options"):
        prepare_manifest(videos / "films.csv", tmp_path, spec=Spec(format="jpeg"))
    for format, quality in (("h264", 52), ("jpeg", 0), ("raw", 1)):
        with pytest.raises(ValueError, match=f"quality={quality} of {format} is not in"):
            Spec(format=format, quality=quality)
    with pytest.raises(ValueError, match="can't name a TFDS data set"):
        prepare_manifest(videos / "films.csv", tmp_path, name="My Data")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", FORMATS)
def test_no_flipped_bit_of_a_shard_goes_unseen(prepared, tmp_path, name):
    """ArrayRecord's checksums: every flip is an error, or in bytes that nobody reads."""
    root = tmp_path / "data"
    shutil.copytree(prepared / name, root / name)
    shard = next(
        path
        for path in root.rglob("*train.array_record*")
        if (path.parent.name == "frames") == (name != "h264")
    )
    data = shard.read_bytes()
    good = opened(name, prepared, split="train", label="label").reader
    frames = [good.open(i).read(np.arange(30), None) for i in range(10)]
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(0, len(data) * 8, 12):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        shard.write_bytes(flipped)
        try:
            reader = opened(name, root, split="train", label="label").reader
            for i in range(10):
                np.testing.assert_array_equal(reader.open(i).read(np.arange(30), None), frames[i])
        except (ClipReadError, ValueError):
            refused += 1
    assert refused >= 5  # the others lie in what pads a small file


def test_a_shard_that_is_cut_off_is_refused_at_once(prepared, tmp_path):
    shutil.copytree(prepared / "h264", tmp_path / "h264")
    shard = next(tmp_path.rglob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"is not complete \(h264-train.* bytes"):
        opened("h264", tmp_path, split="train", label="label")


def test_describe_shows_numbers_and_a_contact_sheet(prepared, tmp_path, capsys):
    for name in FORMATS:
        main(["describe", str(prepared / name), f"--sheet={tmp_path}/{name}.png"])
        out = capsys.readouterr().out
        assert f"{name} 1.0.0: {name}" in out
        assert "train: 10 clips" in out
        assert "30 to 39 frames" in out
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_unlabelled_clips_are_kept_and_refused_for_training(videos, tmp_path):
    rows = read_manifest(videos / "films.csv")
    clips = tuple(
        ClipRow(c.path, c.split, {"label": -1} if c.split == "test" else c.labels)
        for c in rows.clips
    )
    write_manifest(videos / "some.csv", Manifest(clips, rows.classes))
    prepare_manifest(videos / "some.csv", tmp_path)
    assert len(opened("some", tmp_path, split="train", label="label")) == 10
    with pytest.raises(ValueError, match="2 clips of split 'test' of some have no 'label'"):
        opened("some", tmp_path, split="test", label="label")
    assert "2 without label" in describe(tmp_path / "some")


@pytest.mark.beam
def test_beam_writes_the_same_bytes(videos, prepared, tmp_path):
    from vivit.dataprep.beam import run_on_beam

    for name in FORMATS:
        run = run_on_beam(["--runner=DirectRunner", "--direct_num_workers=2"])
        folder = prepare_manifest(
            videos / "films.csv", tmp_path, name=name, spec=Spec(format=name), run=run
        )
        for path in (prepared / name).rglob("*"):
            if path.is_file() and ".lock" not in path.name:
                other = tmp_path / path.relative_to(prepared)
                if path.suffix == ".json":
                    assert json.loads(path.read_text()) == json.loads(other.read_text())
                else:
                    assert path.read_bytes() == other.read_bytes(), path
        assert folder.name == "1.0.0"


def test_without_beam_the_command_says_what_to_install(videos, tmp_path):
    if "apache_beam" in sys.modules or os.environ.get("HAS_BEAM"):
        pytest.skip("Beam is here")
    with pytest.raises(ValueError, match="pip install 'vivit\\[beam\\]'"):
        main(["prepare", str(videos / "films.csv"), str(tmp_path), "--beam"])


def test_replaced_files_are_noticed(videos, tmp_path):
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    prepare = lambda: prepare_manifest(root / "films.csv", tmp_path / "out")
    final = prepare()
    assert prepare() == final
    (root / "val/up/0.mp4").unlink()  # files may be deleted when the clips are written
    assert prepare() == final
    shutil.copy(root / "train/up/2.mp4", root / "train/up/1.mp4")
    with pytest.raises(ValueError, match=r"1 files have changed since .*:\n  train/up/1.mp4"):
        prepare()


def test_clips_with_several_classes_are_prepared(videos, tmp_path):
    films = read_manifest(videos / "films.csv")
    tags = [(0, 2), (), (1,)]
    rows = [
        replace(clip, labels={**clip.labels, "tags": of})
        for clip, of in zip(films.split("train"), tags, strict=False)
    ]
    names = {**films.classes, "tags": Classes(("a", "b", "c"), several=True)}
    write_manifest(tmp_path / "several.csv", Manifest(tuple(rows), names))
    prepare_manifest(tmp_path / "several.csv", tmp_path, root=str(videos))
    data = open_split(DataSettings("several", str(tmp_path), "tags"), "train")
    assert isinstance(data.task, MultiLabel)
    assert [tuple(data.labels_of(i)["tags"]) for i in range(3)] == tags
    assert data.task.encode(data.reader.open(0).labels).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="several classes of 'tags'; predict them with task.name="):
        open_split(DataSettings("several", str(tmp_path)), "train", Classify({"tags": 3}))
    assert "a, c 1, none 1, b 1" in describe(tmp_path / "several", label="tags")


def test_what_earlier_versions_began_is_recognised(videos):
    """The digest of a manifest's classes has no field that they did not have."""
    manifest = read_manifest(videos / "films.csv")
    plan = staging.Plan(manifest, str(videos), Path("x"), Spec())
    clips = json.dumps([asdict(clip) for clip in manifest.clips])
    classes = {k: {"names": v.names, "flip": v.flip} for k, v in manifest.classes.items()}
    digest = hashlib.sha256((clips + json.dumps(classes)).encode()).hexdigest()
    assert prepare_module._plan_json(plan)["manifest"] == digest
