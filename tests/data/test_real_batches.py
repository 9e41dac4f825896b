"""Batches of real videos: the same for any threads, workers, processes; damage and mistakes."""

import os
import pickle
import shutil

import numpy as np
import pytest

from tests.data.conftest import FORMATS, load, load_views, opened
from tests.data.films import film, number_of
from vivit.data import decode_pool
from vivit.data.manifest import Classes, ClipRow, Manifest, read_manifest
from vivit.data.settings import SamplingSettings
from vivit.data.video import ClipReadError
from vivit.dataprep.manifest_files import write_manifest


def take(split, count, **kwargs):
    options = {"frames": 4, "batch_size": 4, "seed": 3, "sampling": SamplingSettings("clip", 2)}
    batches = load(split, **{**options, **kwargs})
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def same(a, b):
    return all((a[key] == b[key]).all() for key in a)


@pytest.fixture(scope="module")
def train_split(prepared):
    return opened("h264", prepared, split="train", label="label")


def numbers(clips):
    return np.array([[number_of(frame) for frame in clip] for clip in clips])


@pytest.mark.parametrize("name", FORMATS)
def test_clips_have_the_stride_that_was_asked_for(prepared, name):
    split = opened(name, prepared, split="train", label="label")
    for batch in take(split, 3):
        assert batch["clips"].shape == (4, 4, 64, 96, 3)
        assert (np.diff(numbers(batch["clips"])) == 2).all()


def test_the_formats_and_the_files_give_the_same_frames(prepared, videos):
    batches = [
        take(opened(name, root, split="train", label="label"), 2)
        for name, root in (*((f, prepared) for f in FORMATS), (str(videos / "films.csv"), videos))
    ]
    for other in batches[1:]:
        for a, b in zip(batches[0], other, strict=True):
            np.testing.assert_array_equal(numbers(a["clips"]), numbers(b["clips"]))
            np.testing.assert_array_equal(a["labels"], b["labels"])


def test_a_batch_is_a_function_of_seed_and_step(train_split):
    batches = take(train_split, 7)
    assert same(take(train_split, 1, start=6)[0], batches[6])
    assert same(take(train_split, 1, start=6, threads=1)[0], batches[6])
    assert not same(take(train_split, 1, seed=4)[0], batches[0])
    # A clip comes again in a later epoch, at another place.
    assert not (numbers(batches[0]["clips"]) == numbers(batches[5]["clips"])).all()


def test_processes_share_a_batch(train_split):
    whole = take(train_split, 3)[2]
    parts = [take(train_split, 1, start=2, process=p, processes=2)[0] for p in (0, 1)]
    assert same({k: np.concatenate([part[k] for part in parts]) for k in whole}, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(prepared, name, workers):
    split = opened(name, prepared, split="train", label="label")
    for a, b in zip(take(split, 4, workers=workers), take(split, 4), strict=True):
        assert same(a, b)


def test_a_smaller_canvas_cuts_windows_at_random(train_split):
    whole, cut = take(train_split, 2), take(train_split, 2, canvas=(48, 64))
    places = set()
    for a, b in zip(whole, cut, strict=True):
        assert b["extents"].tolist() == [[48, 64]] * 4
        for clip, window in zip(a["clips"], b["clips"], strict=True):
            found = [
                (y, x)
                for y in range(17)
                for x in range(33)
                if (clip[:, y : y + 48, x : x + 64] == window).all()
            ]
            assert len(found) == 1
            places.add(found[0])
    assert len(places) > 4


def test_frames_of_other_sizes_lie_on_one_canvas(tmp_path):
    film(tmp_path / "a.mp4", frames=8, size=(64, 96))
    film(tmp_path / "b.mp4", frames=8, size=(80, 64))
    clips = tuple(ClipRow(f"{n}.mp4", "train", {"label": 0}) for n in "ab")
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("x",))}))
    split = opened(str(tmp_path / "m.csv"), tmp_path, split="train", label="label")
    assert (split.largest, split.smallest) == ((80, 96), 64)
    (batch,) = take(split, 1, batch_size=2)
    assert sorted(batch["extents"].tolist()) == [[64, 96], [80, 64]]
    for clip, (height, width) in zip(batch["clips"], batch["extents"], strict=True):
        assert not clip[:, height:].any()
        assert not clip[:, :, width:].any()
        assert clip[:, :height, :width].std() > 10


@pytest.fixture
def damaged(videos, tmp_path):
    """The manifest's files, two of the ten for training no longer videos."""
    root = tmp_path / "damaged"
    shutil.copytree(videos, root)
    (root / "train/up/0.mp4").write_bytes(b"<html>")
    (root / "train/down/3.mp4").unlink()
    return opened(str(root / "films.csv"), root, split="train", label="label")


def test_damaged_clips_are_replaced_counted_and_named(damaged, caplog):
    def batches(**kwargs):
        options = {"frames": 4, "batch_size": 4, "seed": 0, "max_bad_fraction": 0.2, **kwargs}
        found = load(damaged, **options)
        return [next(found) for _ in range(5)], found

    first, found = batches()
    named = {damaged.reader.name(i): kind for i, kind in found.damaged.items()}
    assert named == {"train/up/0.mp4": "damaged", "train/down/3.mp4": "missing"}
    assert "train/up/0.mp4: damaged" in caplog.text
    assert "train/down/3.mp4: missing" in caplog.text
    assert all(batch["valid"].all() for batch in first)
    for again in (batches(threads=1)[0], batches()[0]):
        assert all(same(a, b) for a, b in zip(first, again, strict=True))
    later, _ = batches(start=3)
    assert same(later[0], first[3])


def test_a_run_stops_over_the_share_of_bad_clips(damaged):
    with pytest.raises(ValueError, match=r"2 of the 10 clips of split 'train' can't be read, more"):
        take(damaged, 10, max_bad_fraction=0.1)


def test_evaluation_leaves_damaged_clips_out_and_says_so(damaged):
    batches = load_views(damaged, frames=4, batch_size=4, max_bad_fraction=0.2)
    mask = np.concatenate([batch["valid"] for batch in batches])
    assert mask.sum() == 8
    assert len(mask) == 12
    assert sorted(batches.damaged.values()) == ["damaged", "missing"]


def test_views_of_an_evaluation_span_the_video(prepared):
    split = opened("jpeg", prepared, split="test", label="label")
    (batch,) = load_views(split, frames=4, batch_size=2, views=3)
    assert batch["clips"].shape == (2, 3, 4, 64, 96, 3)
    for clip, count in zip(batch["clips"], (45, 44), strict=True):
        starts = [numbers(view[None])[0, 0] for view in clip]
        assert starts == np.linspace(0, count - 4, 3).astype(int).tolist()


def test_a_clip_that_hangs_is_tried_again_once_and_then_replaced(videos, monkeypatch):
    split = opened(videos / "films.csv", videos, split="train", label="label")
    real, calls = decode_pool.read, []

    def read(path=None, data=b"", **kwargs):
        calls.append(path)
        if len(calls) <= 2:
            raise ClipReadError("timed out", "was not decoded within 1 s")
        return real(path, data, **kwargs)

    monkeypatch.setattr(decode_pool, "read", read)
    found = load(split, frames=4, batch_size=4, threads=1, max_bad_fraction=0.2)
    batch = next(found)
    assert batch["valid"].all()
    assert list(found.damaged.values()) == ["timed out"]
    assert calls[0] == calls[1] != calls[2]


def test_a_manifest_is_trained_on_as_it_is(videos):
    split = opened(videos / "films.csv", videos, split="train", label="label", short_side=32)
    assert (split.largest, split.smallest) == ((32, 48), 32)
    batch = next(load(split, frames=4, batch_size=4))
    assert batch["clips"].shape == (4, 4, 32, 48, 3)


def test_prepared_clips_are_decoded_in_this_process(train_split, monkeypatch):
    monkeypatch.setattr(decode_pool, "call", None)
    assert take(train_split, 1)[0]["valid"].all()


def test_mistakes_with_labels_are_told_before_anything_is_read(videos, tmp_path):
    rows = read_manifest(videos / "films.csv")
    open_it = lambda split="train", label="label": opened(
        str(tmp_path / "m.csv"), videos, split=split, label=label
    )
    unlabelled = tuple(ClipRow(c.path, c.split, {"label": -1}) for c in rows.clips)
    write_manifest(tmp_path / "m.csv", Manifest(unlabelled, rows.classes))
    with pytest.raises(ValueError, match="10 clips of split 'train'.* have no 'label'"):
        open_it()
    write_manifest(tmp_path / "m.csv", rows)
    with pytest.raises(ValueError, match="has no label 'verb'; it has: label"):
        open_it(label="verb")
    with pytest.raises(ValueError, match="no clip is of split 'dev'; there are: test, train"):
        open_it(split="dev")
    with pytest.raises(ValueError, match="batch_size=11 is larger than the 10 clips"):
        take(open_it(), 1, batch_size=11)


def test_the_index_of_a_file_is_read_once(videos, tmp_path, monkeypatch):
    """By the process that opens the split; those that load batches get it."""
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    split = opened(root / "films.csv", root, split="train", label="label")
    reader = pickle.loads(pickle.dumps(split.reader))
    monkeypatch.setattr(decode_pool, "index", None)
    for i in range(len(split)):
        assert len(reader.open(i).times) == len(split.reader.open(i).times)
    os.utime(root / split.reader.name(0), ns=(1, 1))  # a file that changed is read again
    with pytest.raises(TypeError):
        reader.open(0)


def test_batches_of_one_clip(train_split):
    batch = take(train_split, 1, batch_size=1)[0]
    assert batch["clips"].shape[0] == 1
