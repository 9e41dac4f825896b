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


@dataclass(frozen=True)
class Footage:
    """times: seconds of its frames, from the first one's 0. seconds: until its last frame ends.

    read: frame numbers, in any order -> uint8 [F, height, width, 3 or 1]; Damaged if one can't be.
    labels: label -> class number.
    """

    times: np.ndarray
    seconds: float
    height: int
    width: int
    read: Callable[[np.ndarray], np.ndarray]
    labels: Mapping[str, Any]


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

    def read(numbers: np.ndarray) -> np.ndarray:
        return guard.read(
            path,
            data,
            pts=[found.pts[i] for i in numbers],
            height=height,
            width=width,
            largest_frame=limits.largest_frame,
            timeout=limits.timeout,
        )

    times = found.times - found.times[0]
    return Footage(times, found.seconds, height, width, read, clip.labels)


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


@functools.lru_cache(maxsize=1 << 14)
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

    def read(numbers: np.ndarray) -> np.ndarray:
        return stack([decode_jpeg(frames[i], largest_frame=largest_frame) for i in numbers])

    return Footage(times, seconds, first.shape[0], first.shape[1], read, labels)


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [F, H, W, C]. Damaged where the pictures differ in size."""
    if len({picture.shape for picture in pictures}) > 1:
        raise Damaged("damaged", "the size of its frames changes")
    return np.stack(pictures)


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
