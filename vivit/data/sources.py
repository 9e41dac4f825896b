"""Opens data sets as splits: prepared ones, TFDS's own, and manifests of files.

What opens a kind of data set is imported when it is used: moving digits load no video decoder.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.core.features import video_feature

from vivit.data.classes import Classes
from vivit.data.sampling import check_sampling
from vivit.data.settings import DataSettings
from vivit.data.split import Split, check_labels, find_classes
from vivit.data.whole_clips import open_whole_clips
from vivit.registry import Registry
from vivit.tasks import Classify, MultiLabel, Objective, Task

MANIFESTS = (".csv", ".parquet")
Opener = Callable[[tfds.core.DatasetBuilder, str, DataSettings], Split]


@dataclass(frozen=True)
class DataSet:
    """A data set that `python -m vivit.data prepare NAME` writes and a config may name.

    builder: a tfds.core.GeneratorBasedBuilder of the same name, or a function that makes one of the
    same arguments. open: (builder, split, settings) -> Split.
    """

    builder: Callable[..., tfds.core.DatasetBuilder]
    open: Opener = open_whole_clips


def _moving_digits(**arguments) -> tfds.core.DatasetBuilder:
    from vivit.data.moving_digits import MovingDigits

    return MovingDigits(**arguments)


def _several_digits(**arguments) -> tfds.core.DatasetBuilder:
    from vivit.data.moving_digits import SeveralDigits

    return SeveralDigits(**arguments)


def _long_digits(**arguments) -> tfds.core.DatasetBuilder:
    from vivit.data.moving_digits import LongDigits

    return LongDigits(**arguments)


DATA_SETS: Registry[DataSet] = Registry("data set")
DATA_SETS.add("moving_digits", DataSet(_moving_digits))
DATA_SETS.add("several_digits", DataSet(_several_digits))
DATA_SETS.add("long_digits", DataSet(_long_digits))

# Data sets that are not registered are opened by the "format" in their metadata.
OPENERS: Registry[Opener] = Registry("format of a data set")


@OPENERS.register("h264")
def _open_h264(builder: tfds.core.DatasetBuilder, split: str, settings: DataSettings) -> Split:
    from vivit.data import prepared

    return prepared.open_prepared(builder, split, settings, read_with=prepared.read_h264)


@OPENERS.register("jpeg")
def _open_jpeg(builder: tfds.core.DatasetBuilder, split: str, settings: DataSettings) -> Split:
    from vivit.data import prepared

    return prepared.open_prepared(builder, split, settings, read_with=prepared.read_jpeg)


@OPENERS.register("raw")
def _open_raw(builder: tfds.core.DatasetBuilder, split: str, settings: DataSettings) -> Split:
    from vivit.data import prepared

    return prepared.open_prepared(builder, split, settings, read_with=prepared.read_raw)


@OPENERS.register("tfds")  # where the metadata has no format
def _open_tfds(builder: tfds.core.DatasetBuilder, split: str, settings: DataSettings) -> Split:
    from vivit.data.tfds_videos import open_tfds

    return open_tfds(builder, split, settings)


def open_split(settings: DataSettings, split: str, task: Objective | None = None) -> Split:
    """Opens a split of the data set that `settings` name.

    task: what is predicted; None for the classes of settings.label.
    Raises ValueError if the data set was never prepared, is not complete, or lacks a label.
    """
    check_sampling(settings.sampling)
    if settings.name.endswith(MANIFESTS):
        return _open_manifest(settings, split, task)
    opened = _open_builder(settings, split)
    task = task or _task_of(opened.name, opened.classes, settings.label)
    check_labels(opened.name, split, opened.classes, task, unlabelled=opened.unlabelled)
    return replace(opened, task=task)


def _task_of(name: str, classes: Mapping[str, Classes], label: str) -> Task:
    """Returns the task that fits the classes of a label."""
    found = find_classes(name, classes, label)
    return (MultiLabel if found.several else Classify)({label: len(found.names)})


def _open_builder(settings: DataSettings, split: str) -> Split:
    name = settings.name
    builder = open_builder(find(name, settings.root))
    splits = builder.info.splits
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(sorted(splits))}")
    if name in DATA_SETS:
        return DATA_SETS[name].open(builder, split, settings)
    return OPENERS[(builder.info.metadata or {}).get("format", "tfds")](builder, split, settings)


def find(name: str, root: str | Path) -> Path:
    """Returns the folder of a data set's newest version; ValueError if there is none."""
    version = "[0-9]*.[0-9]*.[0-9]*"
    versions = list(Path(root, name).glob(version))
    for path in Path(root, name).glob(f"*/{version}/dataset_info.json"):
        if json.loads(path.read_text()).get("name") == name:  # of a TFDS builder's config
            versions.append(path.parent)
    if versions:
        return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    if name in DATA_SETS:
        way_out = f"make it with: python -m vivit.data prepare {name} {root}"
    else:
        found = sorted(path.parent.name for path in Path(root).glob(f"[!.]*/{version}"))
        way_out = (
            f"found: {', '.join(found) or 'none'}; those that can be made: {', '.join(DATA_SETS)}, "
            f"and any manifest: python -m vivit.data prepare MANIFEST {root}"
        )
    raise ValueError(f"no data set {name!r} under {str(root)!r}; {way_out}")


def _open_manifest(settings: DataSettings, split: str, task: Objective | None) -> Split:
    from vivit.data.files import data_root
    from vivit.data.manifest import count_unlabelled, read_manifest
    from vivit.data.video_files import VideoFiles

    path = settings.name
    manifest = read_manifest(path)
    clips, classes = manifest.split(split), manifest.classes
    task = task or _task_of(path, classes, settings.label)
    unlabelled = count_unlabelled(clips, classes)
    check_labels(path, split, classes, task, unlabelled=unlabelled)  # before files are opened
    of_task = [x for k in task.labels for x in (classes[k].names, classes[k].flip)]
    content = [[clip.__dict__ for clip in clips], *of_task]
    root = data_root(settings.root, path)
    reader = VideoFiles(clips, root, settings.short_side, settings.limits)
    largest, smallest = reader.measure()
    return Split(
        reader=reader,
        classes=classes,
        largest=largest,
        smallest=smallest,
        split=split,
        name=path,
        version="",
        digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        unlabelled=unlabelled,
        task=task,
    )


def read_builder(folder: Path) -> tfds.core.DatasetBuilder:
    """Returns tfds.builder_from_directory, without TensorFlow for features of videos too."""
    if "video_feature.Video" not in (folder / "features.json").read_text():
        return tfds.builder_from_directory(folder)
    # tfds's Video needs one function of TensorFlow when it is made, which NumPy has as well.
    before = video_feature.tf
    video_feature.tf = SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype))
    try:
        return tfds.builder_from_directory(folder)
    finally:
        video_feature.tf = before


def open_builder(folder: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of a prepared folder; ValueError lists all that is missing from it."""
    files = ("dataset_info.json", "features.json")
    problems = [f"no {file}" for file in files if not (folder / file).exists()]
    if not problems:
        builder = read_builder(folder)
        shards = (builder.info.metadata or {}).get("shards")
        if shards is None:
            for split in builder.info.splits:
                problems += _split_problems(builder, split)
        else:
            problems += _shard_problems(folder, shards)
        if not problems:
            return builder
    name = folder.parent.name
    raise ValueError(
        f"the data set in {str(folder)!r} is not complete ({'; '.join(problems)}); "
        f"move that folder away and run: python -m vivit.data prepare "
        f"{name if name in DATA_SETS else 'MANIFEST'} {folder.parent.parent}"
    )


def _shard_problems(folder: Path, shards: dict[str, dict]) -> list[str]:
    """Compares the sizes of large shards; array_record verifies what is read from them."""
    problems = []
    for name, shard in shards.items():
        path = folder / name
        if not path.exists():
            problems.append(f"no {name}")
        elif (size := path.stat().st_size) != shard["bytes"]:
            problems.append(f"{name} has {size} of {shard['bytes']} bytes")
    return problems


def _split_problems(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    info = builder.info.splits[split]
    missing = [Path(path).name for path in info.filepaths if not Path(path).exists()]
    if missing:
        return [f"no {name}" for name in missing]
    try:
        found = sum(ArrayRecordReader(str(path)).num_records() for path in info.filepaths)
    except Exception as error:  # array_record raises bare RuntimeErrors and IndexErrors
        return [f"{split} cannot be read: {type(error).__name__}: {error}"]
    return [] if found == info.num_examples else [f"{split}: {found} of {info.num_examples} clips"]
