"""One split of a data set, whatever its clips are stored in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vivit.data.classes import Classes
from vivit.data.video import VideoReader
from vivit.tasks import Classify, Objective

NO_TASK = Classify({})


@runtime_checkable
class ClipReader(Protocol):
    """Clips by number. `open` raises ClipReadError for a clip that can't be read."""

    def __len__(self) -> int: ...
    def open(self, i: int) -> VideoReader: ...
    def label(self, i: int, label: str) -> Any: ...  # class or classes, without opening the video
    def name(self, i: int) -> str: ...  # what messages call it
    def id(self, i: int) -> str: ...  # by which other tools know it


@dataclass(frozen=True)
class SomeClips:
    """Some of the clips of a reader, which keep their names; numbers: theirs in the reader."""

    reader: ClipReader
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def open(self, i: int) -> VideoReader:
        return self.reader.open(self.numbers[i])

    def label(self, i: int, label: str) -> Any:
        return self.reader.label(self.numbers[i], label)

    def name(self, i: int) -> str:
        return self.reader.name(self.numbers[i])

    def id(self, i: int) -> str:
        return self.reader.id(self.numbers[i])


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    reader: its clips. classes: label -> its classes, of all labels of the data set. unlabelled:
    label -> how many clips have none. task: what is predicted of the clips, which chooses labels.
    largest: height and width that hold every frame; smallest: the shortest side of any frame.
    name, version and digest (of the data) say what was read. masks: clips that are white where the
    object of the label is, for data sets that say so.
    """

    reader: ClipReader
    classes: Mapping[str, Classes]
    largest: tuple[int, int]
    smallest: int
    split: str
    name: str
    version: str
    digest: str
    unlabelled: Mapping[str, int] = field(default_factory=dict)
    task: Objective = NO_TASK
    masks: ClipReader | None = None

    def __len__(self) -> int:
        return len(self.reader)

    def some(self, clips: int) -> "Split":
        """Returns the split with so many of its clips, drawn at random, always the same ones; all
        of them for 0. Fewer clips are some of those of more. ValueError if the split has fewer."""
        if not clips:
            return self
        return self.at(some_numbers(len(self), clips, of=f"split {self.split!r} of {self.name}"))

    def at(self, numbers: Iterable[Any]) -> "Split":
        """Returns the split with the clips of these numbers, in their order."""
        some = tuple(map(int, numbers))
        masks = None if self.masks is None else SomeClips(self.masks, some)
        return replace(self, reader=SomeClips(self.reader, some), masks=masks)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of all heads of the task, in the order of the logits."""
        return tuple(name for label in self.task.labels for name in self.classes[label].names)

    @property
    def flip_labels(self) -> tuple[tuple[int, ...], ...]:
        """Of each head, the class number of each class's mirror image, or UNLABELLED."""
        return tuple(tuple(self.classes[label].flip_label()) for label in self.task.labels)

    @property
    def identity(self) -> dict[str, Any]:
        """What scores are kept with: the data set, its version and content, label and classes."""
        keys = ("name", "version", "digest", "class_names")
        return {"label": ", ".join(self.task.labels), **{key: getattr(self, key) for key in keys}}

    def labels_of(self, i: int) -> dict[str, Any]:
        """Returns label -> class number of a clip, or its numbers where it may have several."""
        return {label: self.reader.label(i, label) for label in self.task.labels}


def some_numbers(count: int, some: int, *, of: str) -> tuple[int, ...]:
    """Returns some of the numbers below `count`, drawn at random, always the same ones.

    of: what has so many clips. Raises ValueError if there are fewer.
    """
    if some > count:
        raise ValueError(f"{some} clips are wanted of {of}, which has {count}; 0 is for all")
    drawn = np.random.default_rng(0).permutation(count)[:some]
    return tuple(sorted(drawn.tolist()))


def check_labels(
    name: str,
    split: str,
    classes: Mapping[str, Classes],
    task: Objective,
    *,
    unlabelled: Mapping[str, int],
) -> None:
    """Raises ValueError for labels of a task that the data do not have, or not of every clip, and
    for classes that the task cannot predict."""
    for label in task.labels:
        several = find_classes(name, classes, label).several
        if missing := unlabelled.get(label):
            raise ValueError(
                f"{missing} clips of split {split!r} of {name} have no {label!r}; "
                "train and evaluate on splits that are labelled"
            )
        if several and not task.several:
            raise ValueError(
                f"{name}: a clip may have several classes of {label!r}; predict them with "
                "task.name='multi_label'"
            )


def find_classes(name: str, classes: Mapping[str, Classes], label: str) -> Classes:
    """Returns the classes of a label; ValueError if the data set has no such label."""
    if label not in classes:
        raise ValueError(f"{name} has no label {label!r}; it has: {', '.join(classes) or 'none'}")
    return classes[label]
