"""A clip of a data set, opened, of which any frames can be read; and what can be wrong with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

RATE = 25.0  # frames per second of clips that are kept without times, as tfds's Video is
TOLERANCE = 6e-4  # seconds: Matroska keeps whole milliseconds
Window = tuple[int, int, int, int]  # of a frame: top, left, height, width
# (frame numbers in any order, window or None for whole frames) -> uint8 [F, H, W, 3 or 1]
ReadFrames = Callable[[np.ndarray, Window | None], np.ndarray]

FAILURES = (  # what can be wrong with a clip; batches hold their positions in this list
    "damaged", "missing", "outside", "not a file", "unreadable", "audio only", "too short",
    "too large", "crashed", "timed out", "unsupported",
)  # fmt: skip
TRANSIENT_ERRORS = ("timed out", "crashed", "unreadable")  # a busy machine may be the cause


class ClipReadError(ValueError):
    """A clip that can't be read. kind: one of FAILURES; the message says more."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        assert kind in FAILURES, kind
        self.kind = kind


@dataclass(frozen=True)
class VideoReader:
    """Reads frames of one clip.

    times: seconds of its frames, from the first one's 0. seconds: until its last frame ends.
    labels: label -> class number. read: see ReadFrames; it raises ClipReadError for a frame that
    can't be read. A smaller window or fewer frames cost less.
    """

    times: np.ndarray
    seconds: float
    height: int
    width: int
    labels: Mapping[str, Any]
    read: ReadFrames


def read_pictures(
    decode: Callable[[int], np.ndarray],
    numbers: np.ndarray,
    size: tuple[int, int],
    window: Window | None,
) -> np.ndarray:
    """Returns pictures of one size, uint8 [F, H, W, 3], each of which is decoded once.

    Raises ClipReadError if a picture has another size.
    """
    top, left, height, width = window or (0, 0, *size)
    wanted, places = np.unique(numbers, return_inverse=True)
    out = np.empty((len(wanted), height, width, 3), np.uint8)
    for row, i in zip(out, wanted, strict=True):
        picture = decode(int(i))
        if picture.shape[:2] != tuple(size):
            raise ClipReadError("damaged", "the size of its frames changes")
        row[:] = picture[top : top + height, left : left + width]
    return out if len(wanted) == len(places) and (np.diff(places) > 0).all() else out[places]
