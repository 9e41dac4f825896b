"""Prepared data sets on disk: made once by a TFDS builder, read as random-access records."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from vivit.data.moving_digits import MovingDigits
from vivit.registry import Registry

BUILDERS: Registry[Callable[..., tfds.core.DatasetBuilder]] = Registry("data set")
BUILDERS.add("moving_digits", MovingDigits)


@dataclass(frozen=True)
class Split:
    """One split of a prepared data set.

    records: random access; each a mapping with the bytes of `clip` and the label's class number.
    clip_shape: (F, H, W, C) of every clip. class_names: of the label that was asked for.
    name, version and digest (SHA-256 of the split's files) say what was read.
    """

    records: Sequence[Any]
    clip_shape: tuple[int, int, int, int]
    label: str
    class_names: tuple[str, ...]
    name: str
    version: str
    digest: str


def prepare(name: str, root: str | Path) -> Path:
    """Writes data set `name` under `root`, unless it is there already, and checks it.

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


def open_split(name: str, root: str | Path, *, split: str, label: str) -> Split:
    """A split to read. ValueError if it was never prepared, is incomplete, or has no such label."""
    BUILDERS[name]  # raises for an unknown name
    versions = list(Path(root, name).glob("[0-9]*.[0-9]*.[0-9]*"))
    if not versions:
        raise ValueError(
            f"no data set {name!r} under {str(root)!r}; "
            f"make it with: python -m vivit.data prepare {name} {root}"
        )
    folder = max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    builder = _check(folder)
    info = builder.info
    if split not in info.splits:
        raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(sorted(info.splits))}")
    labels = info.metadata["labels"]
    if label not in labels:
        raise ValueError(f"{name} has no label {label!r}; it has: {', '.join(labels)}")
    return Split(
        records=builder.as_data_source(split=split),
        clip_shape=tuple(info.metadata["clip_shape"]),
        label=label,
        class_names=tuple(labels[label]),
        name=name,
        version=str(info.version),
        digest=_digest(info.splits[split].filepaths),
    )


def _check(folder: Path) -> tfds.core.DatasetBuilder:
    """The builder of a prepared folder, or ValueError with all that is missing from it."""
    problems = [
        f"no {file}"
        for file in ("dataset_info.json", "features.json")
        if not (folder / file).exists()
    ]
    if not problems:
        builder = tfds.builder_from_directory(folder)
        for split in builder.info.splits:
            problems += _split_problems(builder, split)
        if not problems:
            return builder
    raise ValueError(
        f"the data set in {str(folder)!r} is not complete ({'; '.join(problems)}); "
        f"move that folder away and run: python -m vivit.data prepare "
        f"{folder.parent.name} {folder.parent.parent}"
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


def _digest(paths: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for path in sorted(map(str, paths)):
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
