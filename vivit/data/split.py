"""One split of a data set, whatever its clips are stored in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from vivit.data.video import VideoReader


@runtime_checkable
class ClipReader(Protocol):
    """Clips by number. `open` raises ClipReadError for a clip that can't be read."""

    def __len__(self) -> int: ...
    def open(self, i: int) -> VideoReader: ...
    def label(self, i: int, label: str) -> int: ...  # without opening the video
    def name(self, i: int) -> str: ...  # what messages call it
    def id(self, i: int) -> str: ...  # by which other tools know it


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    reader: its clips. class_names: of `label`. flip_label: the class number of each class's mirror
    image, or -1 where there is none.
    largest: height and width that hold every frame; smallest: the shortest side of any frame.
    name, version and digest (of the data) say what was read.
    """

    reader: ClipReader
    label: str
    class_names: tuple[str, ...]
    flip_label: tuple[int, ...]
    largest: tuple[int, int]
    smallest: int
    split: str
    name: str
    version: str
    digest: str

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def identity(self) -> dict[str, Any]:
        """What scores are kept with: the data set, its version and content, label and classes."""
        keys = ("name", "version", "digest", "label", "class_names")
        return {key: getattr(self, key) for key in keys}

    def label_of(self, i: int) -> int:
        return int(self.reader.label(i, self.label))


def class_names(name: str, classes: Mapping[str, Sequence[str]], label: str) -> tuple[str, ...]:
    """Returns the class names of a label; ValueError if the data set has no such label."""
    if label not in classes:
        raise ValueError(f"{name} has no label {label!r}; it has: {', '.join(classes) or 'none'}")
    return tuple(classes[label])


def require_labels(name: str, split: str, label: str, *, unlabelled: int) -> None:
    """Raises ValueError if clips have no label."""
    if unlabelled:
        raise ValueError(
            f"{unlabelled} clips of split {split!r} of {name} have no {label!r}; "
            "train and evaluate on splits that are labelled"
        )
