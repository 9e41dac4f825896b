"""Clips of a manifest, read straight from their files, in decoder processes."""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vivit.data import decode_pool
from vivit.data.decode import CLOCK, Index, decode_jpeg
from vivit.data.files import fetch, locate
from vivit.data.manifest import ClipRow
from vivit.data.settings import ReadLimits
from vivit.data.video import ClipReadError, VideoReader, Window, read_pictures

KEPT_FRAMES = 4_000_000  # whose times are kept: some 150 MB


class Indexes:
    """The indexes of files that were read, which are kept while a file is the same.

    They travel to the processes that load batches, so that each file is read once.
    """

    def __init__(self) -> None:
        self._found: dict[tuple, Index] = {}
        self._frames = 0

    def get(self, row: ClipRow, path: str, limits: ReadLimits) -> Index:
        """Returns the index of a row's file; ClipReadError if it can't be read."""
        key = path, Path(path).stat().st_mtime_ns, row.start, row.end, limits.largest_frame
        if key not in self._found:
            found = index_of(row, path, b"", limits)
            self._frames += len(found.pts)
            if self._frames > KEPT_FRAMES:
                return found
            self._found[key] = found
        return self._found[key]


def open_video(
    row: ClipRow,
    root: str | Path,
    *,
    short_side: int | None = None,
    limits: ReadLimits,
    indexes: Indexes | None = None,
) -> VideoReader:
    """Opens a row of a manifest; frames are shrunk to this short side."""
    if row.is_record:
        return _open_record(row, root, limits)
    path, data = fetch(locate(root, row.path, follow_links=limits.follow_links), sha256=row.sha256)
    if path is None or indexes is None:
        found = index_of(row, path, data, limits)
    else:
        found = indexes.get(row, path, limits)
    scale = 1.0 if short_side is None else min(1.0, short_side / min(found.width, found.height))
    height, width = round(found.height * scale), round(found.width * scale)

    def read(numbers: np.ndarray, window: Window | None = None) -> np.ndarray:
        return decode_pool.read(
            path,
            data,
            pts=[found.pts[i] for i in numbers],
            height=height,
            width=width,
            window=window,
            largest_frame=limits.largest_frame,
            timeout=limits.timeout_seconds,
        )

    times = found.times - found.times[0]
    return VideoReader(times, found.seconds, height, width, row.labels, read)


def index_of(row: ClipRow, path: str | None, data: bytes, limits: ReadLimits) -> Index:
    """Returns the index of the file of a row; ClipReadError if it can't be read."""
    return decode_pool.index(
        path,
        data,
        start=row.start,
        end=row.end,
        largest_frame=limits.largest_frame,
        timeout=limits.timeout_seconds,
    )


def _open_record(row: ClipRow, root: str | Path, limits: ReadLimits) -> VideoReader:
    from vivit.data import dmvr  # with its protocol buffers, which other files do not need

    record = dmvr.read_record(root, row.path, follow_links=limits.follow_links)
    return open_jpegs(
        record.frames, record.times, record.seconds, row.labels, largest_frame=limits.largest_frame
    )


def open_jpegs(
    frames: Sequence[bytes],
    times: np.ndarray,
    seconds: float,
    labels: Mapping[str, int],
    *,
    largest_frame: int,
) -> VideoReader:
    """Opens a clip of encoded pictures."""
    height, width, _ = decode_jpeg(frames[0], largest_frame=largest_frame).shape

    def read(numbers: np.ndarray, window: Window | None = None) -> np.ndarray:
        decode = lambda i: decode_jpeg(frames[i], largest_frame=largest_frame)
        return read_pictures(decode, numbers, (height, width), window)

    return VideoReader(times, seconds, height, width, labels, read)


def ticks_of(times: np.ndarray) -> list[int]:
    """Returns times from the first one's 0, in 1/CLOCK s, as prepared clips keep them."""
    return np.round((times - times[0]) * CLOCK).astype(int).tolist()


@dataclass(frozen=True)
class VideoFiles:
    """Rows of a manifest as the clips of a split."""

    rows: Sequence[ClipRow]
    root: str
    short_side: int | None
    limits: ReadLimits
    indexes: Indexes = field(default_factory=Indexes, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        return self.rows[i].name

    def id(self, i: int) -> str:
        return self.rows[i].id

    def label(self, i: int, label: str) -> int:
        return self.rows[i].labels[label]

    def open(self, i: int) -> VideoReader:
        return open_video(
            self.rows[i],
            self.root,
            short_side=self.short_side,
            limits=self.limits,
            indexes=self.indexes,
        )

    def measure(self) -> tuple[tuple[int, int], int]:
        """Returns height and width that hold all frames, and the shortest side.

        Reads the index of every file. Damaged files are left out; they count when they are read.
        """

        def size(i: int) -> tuple[int, int] | None:
            try:
                video = self.open(i)
            except ClipReadError:
                return None
            return video.height, video.width

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(size, range(len(self)))
            bar = tqdm(found, "files", len(self), disable=not sys.stderr.isatty())
            sizes = np.array([x for x in bar if x is not None])
        if not len(sizes):
            raise ValueError(f"none of the {len(self)} clips below {self.root!r} can be read")
        return (int(sizes[:, 0].max()), int(sizes[:, 1].max())), int(sizes.min())
