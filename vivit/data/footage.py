"""Footage: a clip of a data set, opened, of which any frames can be read."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivit.data import guard, tfrecord
from vivit.data.decode import LARGEST_FRAME, Damaged, Index
from vivit.data.encode import CLOCK, decode_jpeg
from vivit.data.files import fetch, locate
from vivit.data.manifest import Clip

Window = tuple[int, int, int, int]  # of a frame: top, left, height, width


@dataclass(frozen=True)
class Footage:
    """times: seconds of its frames, from the first one's 0. seconds: until its last frame ends.

    labels: label -> class number.
    read: frame numbers, in any order, and a window or None -> uint8 [F, H, W, 3 or 1] of the window
        or of whole frames; Damaged if one can't be read. What is not in it costs less.
    """

    times: np.ndarray
    seconds: float
    height: int
    width: int
    labels: Mapping[str, Any]
    read: Callable[[np.ndarray, Window | None], np.ndarray]


@dataclass(frozen=True)
class Limits:
    """What a decoder may take. largest_frame: pixels, known before a frame is decoded."""

    timeout: float = guard.TIMEOUT  # seconds
    largest_frame: int = LARGEST_FRAME


def open_file(
    clip: Clip, root: str | Path, *, short_side: int | None = None, limits: Limits = Limits()
) -> Footage:
    """A row of a manifest, straight from its file; frames shrunk to this short side."""
    if tfrecord.is_record(clip.path):
        return _open_record(clip, root, limits)
    path, data = fetch(locate(root, clip.path), sha256=clip.sha256)
    found = index_of(clip, path, data, limits)
    scale = 1.0 if short_side is None else min(1.0, short_side / min(found.width, found.height))
    height, width = round(found.height * scale), round(found.width * scale)

    def read(numbers: np.ndarray, window: Window | None = None) -> np.ndarray:
        return guard.read(
            path,
            data,
            pts=[found.pts[i] for i in numbers],
            height=height,
            width=width,
            window=window,
            largest_frame=limits.largest_frame,
            timeout=limits.timeout,
        )

    times = found.times - found.times[0]
    return Footage(times, found.seconds, height, width, clip.labels, read)


def index_of(clip: Clip, path: str | None, data: bytes, limits: Limits) -> Index:
    """The index of a row's file, kept while it is the same file."""
    if path is None:
        return _index(None, data, clip.start, clip.end, limits)
    return _cached_index(path, Path(path).stat().st_mtime_ns, clip.start, clip.end, limits)


def _index(path, data, start, end, limits: Limits) -> Index:
    return guard.index(
        path,
        data,
        start=start,
        end=end,
        largest_frame=limits.largest_frame,
        timeout=limits.timeout,
    )


@functools.lru_cache(maxsize=1 << 11)
def _cached_index(path, modified, start, end, limits: Limits) -> Index:
    return _index(path, b"", start, end, limits)


def from_jpegs(
    frames: Sequence[bytes],
    times: np.ndarray,
    seconds: float,
    labels: Mapping[str, Any],
    *,
    largest_frame: int,
) -> Footage:
    """Footage of encoded pictures."""
    first = decode_jpeg(frames[0], largest_frame=largest_frame)

    height, width, _ = first.shape

    def read(numbers: np.ndarray, window: Window | None = None) -> np.ndarray:
        decode = lambda i: decode_jpeg(frames[i], largest_frame=largest_frame)
        return read_pictures(decode, numbers, (height, width), window)

    return Footage(times, seconds, height, width, labels, read)


def read_pictures(
    decode: Callable[[int], np.ndarray],
    numbers: np.ndarray,
    size: tuple[int, int],
    window: Window | None,
) -> np.ndarray:
    """uint8 [F, H, W, 3] of pictures of this size, each decoded once. Damaged for another size."""
    top, left, height, width = window or (0, 0, *size)
    wanted, places = np.unique(numbers, return_inverse=True)
    out = np.empty((len(wanted), height, width, 3), np.uint8)
    for row, i in zip(out, wanted, strict=True):
        picture = decode(int(i))
        if picture.shape[:2] != tuple(size):
            raise Damaged("damaged", "the size of its frames changes")
        row[:] = picture[top : top + height, left : left + width]
    return out if len(wanted) == len(places) and (np.diff(places) > 0).all() else out[places]


def _open_record(clip: Clip, root: str | Path, limits: Limits) -> Footage:
    record = tfrecord.read_record(root, clip.path)
    return from_jpegs(
        record.frames,
        record.times,
        record.seconds,
        clip.labels,
        largest_frame=limits.largest_frame,
    )


def ticks_of(times: np.ndarray) -> list[int]:
    """Times from the first one's 0, in 1/CLOCK s, as prepared clips keep them."""
    return np.round((times - times[0]) * CLOCK).astype(int).tolist()
