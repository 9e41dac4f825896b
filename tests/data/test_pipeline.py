import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.conftest import load, load_views, opened
from vivit.data.settings import DataSettings
from vivit.data.sources import DATA_SETS, OPENERS, DataSet
from vivit.data.whole_clips import open_whole_clips
from vivit.dataprep.__main__ import main
from vivit.dataprep.prepare import prepare_registered


@pytest.fixture(scope="module")
def train_split(data_root):
    return opened("moving_digits", data_root, split="train", label="motion")


def take(split, count, **kwargs):
    batches = load(split, **{"batch_size": 8, "seed": 3, "frames": 16, **kwargs})
    return [next(batches) for _ in range(count)]


def same(a, b):
    return all((a[key] == b[key]).all() for key in a)


def test_batches_have_the_documented_shapes(train_split):
    (batch,) = take(train_split, 1)
    assert batch["clips"].shape == (8, 16, 32, 32, 3)
    assert batch["clips"].dtype == np.uint8
    assert batch["labels"].dtype == np.int32
    assert batch["valid"].tolist() == [1.0] * 8


def test_a_batch_is_a_function_of_seed_and_step(train_split):
    batches = take(train_split, 9)
    assert same(take(train_split, 1, start=6)[0], batches[6])
    assert same(take(train_split, 1, start=6, threads=1)[0], batches[6])
    assert not same(take(train_split, 1, seed=4)[0], batches[0])


def test_every_epoch_has_every_clip_once_in_a_new_order(train_split):
    batches = take(train_split, 8)  # two epochs of 32 clips
    epochs = [np.concatenate([b["clips"] for b in part]) for part in (batches[:4], batches[4:])]
    prints = [[clip.tobytes() for clip in epoch] for epoch in epochs]
    assert len(set(prints[0])) == 32
    assert set(prints[0]) == set(prints[1])
    assert prints[0] != prints[1]


def test_some_clips_of_a_split_are_always_the_same_ones(train_split):
    few, more = train_split.some(8), train_split.some(20)
    ids = [{split.reader.id(i) for i in range(len(split))} for split in (few, more, train_split)]
    assert [len(x) for x in ids] == [8, 20, 32]
    assert ids[0] < ids[1] < ids[2]
    assert ids[0] != {train_split.reader.id(i) for i in range(8)}
    assert train_split.some(0) is train_split
    for i in range(8):
        number = few.reader.numbers[i]
        assert few.labels_of(i) == train_split.labels_of(number)
        assert few.reader.name(i) == train_split.reader.name(number)
    epochs = take(few, 2)
    prints = [sorted(clip.tobytes() for clip in batch["clips"]) for batch in epochs]
    assert prints[0] == prints[1]
    whole = [clip.tobytes() for batch in take(train_split, 4) for clip in batch["clips"]]
    assert set(prints[0]) < set(whole)
    with pytest.raises(ValueError, match=r"33 clips are wanted of split 'train' .*, which has 32"):
        train_split.some(33)


def test_processes_share_a_batch(train_split):
    whole = take(train_split, 3)[2]
    parts = [take(train_split, 1, start=2, process=p, processes=2)[0] for p in (0, 1)]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in whole}
    assert same(joined, whole)


def test_repeated_clips_are_apart_in_the_batch_and_draw_alone(train_split):
    batches = take(train_split, 8, repeats=2)  # 32 clips, twice each
    prints = [[clip.tobytes() for clip in batch["clips"]] for batch in batches]
    for batch in prints:
        assert batch[:4] == batch[4:]
        assert len(set(batch)) == 4
    assert len({clip for batch in prints for clip in batch}) == 32
    indices = np.concatenate([batch["indices"] for batch in batches])
    assert len(set(indices.tolist())) == 64  # from which a clip's augmentation is drawn
    assert same(take(train_split, 1, repeats=2, start=6)[0], batches[6])
    parts = [take(train_split, 1, repeats=2, start=2, process=p, processes=2)[0] for p in (0, 1)]
    assert same({k: np.concatenate([part[k] for part in parts]) for k in parts[0]}, batches[2])
    for repeats in (0, 3, 8):
        with pytest.raises(ValueError, match=f"repeats={repeats} does not divide .*batch_size=8"):
            DataSettings(batch_size=8, repeats=repeats)


@pytest.mark.slow
def test_workers_change_nothing(train_split):
    assert same(take(train_split, 2, workers=2)[1], take(train_split, 2)[1])


def test_the_last_batch_is_padded_and_masked(data_root):
    split = opened("moving_digits", data_root, split="test", label="digit")
    batches = list(load_views(split, frames=16, batch_size=8))
    assert [b["valid"].sum() for b in batches] == [8, 8, 5]
    assert {len(b["clips"]) for b in batches} == {8}
    labels = np.concatenate([b["labels"][b["valid"] == 1] for b in batches])
    assert labels.tolist() == [split.labels_of(i)["digit"] for i in range(len(split))]
    halves = [
        list(load_views(split, frames=16, batch_size=8, process=p, processes=2)) for p in (0, 1)
    ]
    assert (
        np.concatenate([halves[0][2]["valid"], halves[1][2]["valid"]]).tolist() == [1] * 5 + [0] * 3
    )


def test_labels_and_splits_have_names(data_root, train_split):
    assert train_split.class_names[0] == "left"
    digits = opened("moving_digits", data_root, split="test", label="digit")
    assert digits.class_names == tuple("0123456789")
    with pytest.raises(ValueError, match="no label 'colour'; it has: motion, digit"):
        opened("moving_digits", data_root, split="test", label="colour")
    with pytest.raises(ValueError, match="no split 'dev'; it has: test, train, validation"):
        opened("moving_digits", data_root, split="dev", label="motion")


def test_data_that_was_never_prepared_says_how_to(tmp_path):
    with pytest.raises(ValueError, match="python -m vivit.data prepare moving_digits"):
        opened("moving_digits", tmp_path, split="test", label="motion")
    with pytest.raises(ValueError, match="no data set 'moving_dgits'.*can be made: moving_digits"):
        opened("moving_dgits", tmp_path, split="test", label="motion")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["no shard", "no info", "cut shard"])
def test_half_written_data_is_refused_and_kept(data_root, tmp_path, damage):
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    shard = next(root.rglob("*train.array_record*"))
    if damage == "no shard":
        shard.unlink()
    elif damage == "no info":
        next(root.rglob("dataset_info.json")).unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:5000])
    before = sorted(root.rglob("*"))
    for action in (
        lambda: opened("moving_digits", root, split="train", label="motion"),
        lambda: prepare_registered("moving_digits", root),
    ):
        with pytest.raises(ValueError, match="is not complete.*move that folder away"):
            action()
    assert sorted(root.rglob("*")) == before


def test_a_batch_must_fit_the_data_and_the_processes(train_split):
    with pytest.raises(ValueError, match="batch_size=33 is larger than the 32 clips"):
        take(train_split, 1, batch_size=33)
    with pytest.raises(ValueError, match="batch_size=8 is not a multiple of the 3 processes"):
        take(train_split, 1, processes=3)


def test_prepare_twice_keeps_what_is_there(data_root, capsys):
    before = {path: path.stat().st_mtime_ns for path in data_root.rglob("*.array_record*")}
    main(["prepare", "moving_digits", str(data_root)])
    assert "moving_digits is ready" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in data_root.rglob("*.array_record*")} == before


def test_a_registered_data_set_is_what_is_prepared_and_opened(tmp_path, monkeypatch):
    class Blinks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            clip = tfds.features.Tensor(shape=(), dtype=np.object_)
            label = tfds.features.Scalar(dtype=np.int64)
            metadata = tfds.core.MetadataDict(
                clip_shape=[4, 8, 8, 1], labels={"which": ["left", "right"]}
            )
            features = tfds.features.FeaturesDict({"clip": clip, "which": label})
            return tfds.core.DatasetInfo(builder=self, features=features, metadata=metadata)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                clip = np.full((4, 8, 8, 1), 10 * i, np.uint8)
                yield i, {"clip": clip.tobytes(), "which": i % 2}

    opened_splits = []

    def open_blinks(builder, split, settings):
        opened_splits.append(split)
        return open_whole_clips(builder, split, settings)

    monkeypatch.setattr(DATA_SETS, "_items", {**DATA_SETS._items})
    DATA_SETS.add("blinks", DataSet(Blinks, open_blinks))
    main(["prepare", "blinks", str(tmp_path)])
    split = opened("blinks", tmp_path, split="train", label="which")
    assert opened_splits == ["train"]
    assert split.flip_labels == ((1, 0),)
    batch = next(load(split, frames=4, batch_size=4))
    values = batch["clips"].reshape(4, -1)
    assert (values == values[:, :1]).all()
    assert sorted(values[:, 0].tolist()) == [0, 10, 20, 30]


def test_a_registered_format_is_what_opens_a_data_set(data_root, tmp_path, monkeypatch):
    """By the "format" in its metadata, for a data set that is not registered."""
    shutil.copytree(data_root / "moving_digits", tmp_path / "other")
    for path in tmp_path.rglob("*moving_digits*"):
        path.rename(path.with_name(path.name.replace("moving_digits", "other")))
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace('"moving_digits"', '"other"'))
    path = next(tmp_path.rglob("metadata.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "bytes"}))
    by = {"split": "test", "label": "digit"}
    with pytest.raises(ValueError, match="unknown format of a data set 'bytes'; known: h264"):
        opened("other", tmp_path, **by)
    monkeypatch.setattr(OPENERS, "_items", {**OPENERS._items})
    OPENERS.add("bytes", open_whole_clips)
    new, old = opened("other", tmp_path, **by), opened("moving_digits", data_root, **by)
    assert [new.labels_of(i) for i in range(len(new))] == [
        old.labels_of(i) for i in range(len(old))
    ]
