"""Data sets to read: prepared ones, TFDS's own, and manifests of files, all as a Split."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from vivit.data.decode import Damaged
from vivit.data.files import data_root
from vivit.data.footage import Footage, Limits, Window, open_file
from vivit.data.manifest import UNLABELLED, Classes, Clip, mirror_names, read_manifest
from vivit.data.moving_digits import MovingDigits
from vivit.data.prepared import Prepared
from vivit.data.tfds_videos import RATE, TfdsVideos, allow_video_features, video_key
from vivit.registry import Registry

BUILDERS: Registry[Callable[..., tfds.core.DatasetBuilder]] = Registry("data set")
BUILDERS.add("moving_digits", MovingDigits)


@runtime_checkable
class Reader(Protocol):
    """Clips by number. `open` raises Damaged for one that can't be read."""

    def __len__(self) -> int: ...
    def open(self, i: int) -> Footage: ...
    def label(self, i: int, label: str) -> int: ...  # where the footage is not wanted
    def name(self, i: int) -> str: ...


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    reader: its clips. class_names: of the label that was asked for; mirrored: of each class number
    that of its mirror image, or -1 where there is none.
    largest: height and width that hold every frame; smallest: the shortest side of any frame.
    name, version and digest (of the data) say what was read.
    """

    reader: Reader
    label: str
    class_names: tuple[str, ...]
    mirrored: tuple[int, ...]
    largest: tuple[int, int]
    smallest: int
    split: str
    name: str
    version: str
    digest: str

    def __len__(self) -> int:
        return len(self.reader)

    def label_of(self, i: int) -> int:
        return int(self.reader.label(i, self.label))


def prepare(name: str, root: str | Path) -> Path:
    """Writes data set `name` of BUILDERS under `root`, unless it is there already, and checks it.

    A folder appears under its final name only when it is complete; what an interrupted run leaves
    is named `incomplete.*` and never read.
    """
    builder = BUILDERS[name](data_dir=root, file_format="array_record")
    folder = Path(builder.data_dir)
    if not folder.exists():
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        builder.download_and_prepare()
    _check(folder)
    return folder


def open_split(
    name: str,
    root: str | Path,
    *,
    split: str,
    label: str,
    short_side: int = 256,
    limits: Limits = Limits(),
) -> Split:
    """A split to read. ValueError if it was never prepared, is incomplete, or has no such label.

    name: a data set under `root`, or a manifest (.csv, .parquet), whose files under `root` are
    then read as they are, shrunk to `short_side`.
    """
    if name.endswith((".csv", ".parquet")):
        return _open_manifest(Path(name), root, split, label, short_side, limits)
    folder = find(name, root)
    builder = _check(folder)
    info = builder.info
    if split not in info.splits:
        raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(sorted(info.splits))}")
    if "labels" not in (info.metadata or {}):
        return _open_tfds(builder, split, label, limits)
    labels = info.metadata["labels"]
    if label not in labels:
        raise ValueError(f"{name} has no label {label!r}; it has: {', '.join(labels)}")
    names = tuple(labels[label])
    common = {"label": label, "class_names": names, "split": split, "name": name}
    common["version"] = str(info.version)
    if "format" in info.metadata:
        metadata = info.metadata
        _require_labels(name, split, label, metadata["unlabelled"].get(f"{split}/{label}", 0))
        return Split(
            reader=Prepared(builder, split, limits),
            mirrored=tuple(metadata["mirrored"][label]),
            largest=tuple(metadata["largest"]),
            smallest=metadata["smallest"],
            digest=_told_digest(metadata["shards"], f"{builder.name}-{split}."),
            **common,
        )
    shape = tuple(info.metadata["clip_shape"])
    return Split(
        reader=WholeClips(builder.as_data_source(split=split), shape),
        mirrored=_mirrored(names),
        largest=shape[1:3],
        smallest=min(shape[1:3]),
        digest=_digest(info.splits[split].filepaths),
        **common,
    )


def find(name: str, root: str | Path) -> Path:
    """The newest version's folder of a data set. ValueError where there is none."""
    versions = list(Path(root, name).glob("[0-9]*.[0-9]*.[0-9]*"))
    for path in Path(root, name).glob("*/[0-9]*.[0-9]*.[0-9]*/dataset_info.json"):
        if json.loads(path.read_text()).get("name") == name:  # of a TFDS builder's config
            versions.append(path.parent)
    if versions:
        return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    if name in BUILDERS:
        way_out = f"make it with: python -m vivit.data prepare {name} {root}"
    else:
        there = sorted(p.parent.name for p in Path(root).glob("*/[0-9]*.[0-9]*.[0-9]*"))
        way_out = (
            f"there are: {', '.join(there) or 'none'}; those that can be made: "
            f"{', '.join(BUILDERS)}, and any manifest: python -m vivit.data prepare MANIFEST {root}"
        )
    raise ValueError(f"no data set {name!r} under {str(root)!r}; {way_out}")


@dataclass(frozen=True)
class WholeClips:
    """Records that are clips already, raw bytes of one shape: moving_digits."""

    records: Sequence[Any]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.records)

    def name(self, i: int) -> str:
        return f"record {i}"

    def label(self, i: int, label: str) -> int:
        return self.records[i][label]

    def open(self, i: int) -> Footage:
        record = self.records[i]
        clip = np.frombuffer(record["clip"], np.uint8).reshape(self.shape)
        frames, height, width, _ = self.shape

        def read(numbers: np.ndarray, window: Window | None = None) -> np.ndarray:
            top, left, h, w = window or (0, 0, height, width)
            return clip[numbers, top : top + h, left : left + w]

        return Footage(np.arange(frames) / RATE, frames / RATE, height, width, record, read)


@dataclass(frozen=True)
class Files:
    """Rows of a manifest, read from their files."""

    clips: Sequence[Clip]
    root: str
    short_side: int
    limits: Limits

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, i: int) -> str:
        return self.clips[i].name

    def label(self, i: int, label: str) -> int:
        return self.clips[i].labels[label]

    def open(self, i: int) -> Footage:
        return open_file(self.clips[i], self.root, short_side=self.short_side, limits=self.limits)

    def measure(self) -> tuple[tuple[int, int], int]:
        """Height and width that hold all frames, and the shortest side: reads every file's index.

        What is damaged is passed over here; it is counted where it is read.
        """

        def size(i: int) -> tuple[int, int] | None:
            try:
                footage = self.open(i)
            except Damaged:
                return None
            return footage.height, footage.width

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(size, range(len(self)))
            bar = tqdm(found, "files", len(self), disable=not sys.stderr.isatty())
            sizes = np.array([x for x in bar if x is not None])
        if not len(sizes):
            raise ValueError(f"none of the {len(self)} clips below {str(self.root)!r} can be read")
        return (int(sizes[:, 0].max()), int(sizes[:, 1].max())), int(sizes.min())


def _open_manifest(
    path: Path, root: str | Path, split: str, label: str, short_side: int, limits: Limits
) -> Split:
    manifest = read_manifest(path)
    if label not in manifest.classes:
        known = ", ".join(manifest.classes)
        raise ValueError(f"{path} has no label {label!r}; it has: {known}")
    clips = manifest.split(split)
    _require_labels(str(path), split, label, sum(c.labels[label] == UNLABELLED for c in clips))
    classes = manifest.classes[label]
    told = [[clip.__dict__ for clip in clips], classes.names, classes.flip]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    reader = Files(clips, data_root(root, path), short_side, limits)
    largest, smallest = reader.measure()
    return Split(
        reader=reader,
        label=label,
        class_names=classes.names,
        mirrored=tuple(classes.mirrored()),
        largest=largest,
        smallest=smallest,
        split=split,
        name=str(path),
        version="",
        digest=digest,
    )


def _open_tfds(builder: tfds.core.DatasetBuilder, split: str, label: str, limits: Limits) -> Split:
    name = builder.name
    features: Any = builder.info.features
    known = [k for k, v in features.items() if isinstance(v, tfds.features.ClassLabel)]
    if label not in known:
        raise ValueError(f"{name} has no label {label!r}; it has: {', '.join(known) or 'none'}")
    names = tuple(features[label].names)
    key = video_key(features, name)
    _, height, width, _ = features[key].shape
    if height is None or width is None:
        raise ValueError(
            f"the frames of {name} differ in size; write them out as files and prepare those"
        )
    return Split(
        reader=TfdsVideos(builder, split, key, limits),
        label=label,
        class_names=names,
        mirrored=_mirrored(names),
        largest=(height, width),
        smallest=min(height, width),
        split=split,
        name=name,
        version=str(builder.info.version),
        digest=hashlib.sha256(
            f"{name} {builder.info.version} {split} {builder.info.splits[split].num_examples} "
            f"{builder.info.splits[split].num_bytes}".encode()
        ).hexdigest(),
    )


def _mirrored(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(Classes(names, mirror_names(names)).mirrored())


def _require_labels(name: str, split: str, label: str, without: int) -> None:
    if without:
        raise ValueError(
            f"{without} clips of split {split!r} of {name} have no {label!r}; "
            "train and evaluate on splits that are labelled"
        )


def _check(folder: Path) -> tfds.core.DatasetBuilder:
    """The builder of a prepared folder, or ValueError with all that is missing from it."""
    problems = [
        f"no {file}"
        for file in ("dataset_info.json", "features.json")
        if not (folder / file).exists()
    ]
    if not problems:
        with allow_video_features():
            builder = tfds.builder_from_directory(folder)
        told = (builder.info.metadata or {}).get("shards")
        if told is not None:  # large: by their sizes; array_record checks what it reads
            for name, shard in told.items():
                path = folder / name
                size = path.stat().st_size if path.exists() else None
                if size is None:
                    problems.append(f"no {name}")
                elif size != shard["bytes"]:
                    problems.append(f"{name} has {size} of {shard['bytes']} bytes")
        else:
            for split in builder.info.splits:
                problems += _split_problems(builder, split)
        if not problems:
            return builder
    name = folder.parent.name
    raise ValueError(
        f"the data set in {str(folder)!r} is not complete ({'; '.join(problems)}); "
        f"move that folder away and run: python -m vivit.data prepare "
        f"{name if name in BUILDERS else 'MANIFEST'} {folder.parent.parent}"
    )


def _split_problems(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    info = builder.info.splits[split]
    missing = [Path(path).name for path in info.filepaths if not Path(path).exists()]
    if missing:
        return [f"no {name}" for name in missing]
    try:
        found = _count(info.filepaths)
    except Exception as error:  # array_record raises bare RuntimeErrors and IndexErrors
        return [f"{split} cannot be read: {type(error).__name__}: {error}"]
    return [] if found == info.num_examples else [f"{split}: {found} of {info.num_examples} clips"]


def _count(paths: Sequence[Any]) -> int:
    from array_record.python import array_record_module

    return sum(array_record_module.ArrayRecordReader(str(path)).num_records() for path in paths)


def _told_digest(shards: dict[str, dict], prefix: str) -> str:
    """From the digests of the shards that prepare wrote down, which are too large to read anew."""
    own = [shard["sha256"] for name, shard in sorted(shards.items()) if name.startswith(prefix)]
    return hashlib.sha256("".join(own).encode()).hexdigest()


def _digest(paths: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for path in sorted(map(str, paths)):
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
