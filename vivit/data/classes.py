"""Classes of a label, and which of them are mirror images of each other."""

import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

UNLABELLED = -1
MIRRORED = {  # words of class names -> the words for the mirror image
    "left": ("right",),
    "right": ("left",),
    "clockwise": ("anticlockwise", "counterclockwise"),
    "anticlockwise": ("clockwise",),
    "counterclockwise": ("clockwise",),
}


@dataclass(frozen=True)
class Classes:
    """Class names of a label in the order of their numbers.

    flip: name -> the class of the mirror image, or None where there is no such class, for classes
    that tell left from right. several: whether a clip may have several of them, or none.
    """

    names: tuple[str, ...]
    flip: dict[str, str | None] = field(default_factory=dict)
    several: bool = False

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def described(self) -> dict[str, Any]:
        """Returns the fields as files keep them; "several" only where it is True, since files of
        earlier versions have no such key."""
        fields = {"names": self.names, "flip": self.flip}
        return {**fields, "several": True} if self.several else fields

    def flip_label(self) -> list[int]:
        """Returns the class number of each class's mirror image; UNLABELLED where there is none."""
        to = [self.flip.get(name, name) for name in self.names]
        return [UNLABELLED if name is None else self.numbers[name] for name in to]


def mirror_names(names: Iterable[str]) -> dict[str, str | None]:
    """Returns the mirror images of the classes whose names tell left from right."""
    names = tuple(names)
    known = {name.lower(): name for name in names}
    mirrored = {}
    for name in names:
        words = re.split(r"(\W+|_)", name.lower())
        if any(word in MIRRORED for word in words):
            choices = itertools.product(*(MIRRORED.get(word, (word,)) for word in words))
            found = (known.get("".join(choice)) for choice in choices)
            mirrored[name] = next((other for other in found if other), None)
    return mirrored
