"""A film as clips of a model: windows that may overlap, and the frames to draw on."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from vivit.data import decode
from vivit.data.geometry import view
from vivit.data.manifest import ClipRow
from vivit.data.pipeline import on_canvas
from vivit.data.sampling import SAMPLINGS, clip_from, last_start
from vivit.data.settings import DataSettings, SamplingSettings, ViewsSettings
from vivit.data.video import ClipReadError, VideoReader
from vivit.data.video_files import Indexes, open_video
from vivit.model import ViViT
from vivit.run import Run

BATCH = 8  # clips that the model gets at once
Box = tuple[int, int, int, int]  # of a frame: top, left, height, width


class Window(NamedTuple):
    """A part of a film for which the model sees one clip.

    begin: its first frame. frames: those of the clip, by number.
    """

    begin: int
    frames: np.ndarray


def windows(
    video: VideoReader, sampling: SamplingSettings, frames: int, *, overlap: int = 1
) -> list[Window]:
    """Returns the parts of a film, clips of so many frames from its first to its last one.

    overlap: in how many windows a frame is, but for those at both ends.
    """
    kind = SAMPLINGS[sampling.kind]
    if not kind.strided:  # the clip is of the whole video
        return [Window(0, kind.views(sampling, video.times, video.seconds, frames, 1)[0])]
    if sampling.stride_seconds is None:
        hop = max(frames * sampling.stride_frames // overlap, 1)
        starts = begins = np.arange(0, len(video.times), hop)
    else:
        starts = np.arange(0.0, video.seconds - 1e-3, frames * sampling.stride_seconds / overlap)
        begins = np.searchsorted(video.times, starts - 1e-6)
    last = last_start(sampling, video.times, video.seconds, frames)
    count = int(np.searchsorted(starts, last)) + 1  # one window ends with the film
    starts, begins = starts[:count], begins[:count]
    make = lambda start: clip_from(sampling, video.times, video.seconds, frames, start)
    clips = map(make, np.minimum(starts, last).tolist())
    return [Window(begin, clip) for begin, clip in zip(begins.tolist(), clips, strict=True)]


def read_windows(
    video: VideoReader, parts: Sequence[Window], views: ViewsSettings, size: tuple[int, int]
) -> Iterator[tuple[Sequence[Window], UInt8[np.ndarray, "B F H W 3"]]]:
    """Yields windows with their clips as a model of this size gets them, BATCH at a time; the last
    batch is filled up with its last clip, so that nothing is compiled for it alone."""
    shape = video.height, video.width
    cut, extent = _cut(views.short_side or max(size), size), jnp.array(shape)
    for start in range(0, len(parts), BATCH):
        batch = parts[start : start + BATCH]
        read = lambda window: on_canvas(video.read(window.frames, None), shape)
        clips = [np.asarray(cut(read(window), extent)) for window in batch]
        yield batch, np.stack([*clips, *[clips[-1]] * (BATCH - len(batch))])


@cache
def _cut(short_side: int, size: tuple[int, int]) -> Any:
    cut = lambda x, extent: view(x, extent, place=0.5, short_side=short_side, size=size)
    return jax.jit(cut)


@dataclass(frozen=True)
class Film:
    """A video file. video: as the model reads it, in the size that a run's clips are shrunk to.
    times: of its frames, in seconds. rate: frames per second. size: height and width in pixels."""

    path: Path
    video: VideoReader
    pts: list[int]
    times: np.ndarray
    rate: float
    size: tuple[int, int]
    largest_frame: int

    def frames(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yields all frames in the film's resolution, with a progress bar on a terminal."""
        frames = decode.frames_at(str(self.path), self.pts, largest_frame=self.largest_frame)
        quiet = not sys.stderr.isatty()
        for frame in tqdm(frames, total=len(self.pts), unit="frame", disable=quiet):
            yield np.ascontiguousarray(decode.to_rgb(frame))


def open_film(path: Path, data: DataSettings) -> Film:
    """Opens a video file, to be read as clips of a run are. Raises ClipReadError if it cannot be
    read."""
    row, indexes = ClipRow(path.name, "", {}), Indexes()
    video = open_video(
        row, path.parent, short_side=data.short_side, limits=data.limits, indexes=indexes
    )
    index = indexes.get(row, os.path.abspath(path), data.limits)  # read once, by the line above
    size = index.height, index.width
    return Film(path, video, index.pts, index.times, index.rate, size, data.largest_frame)


def clips_of_video(
    path: str | Path, model: ViViT, data: DataSettings | None = None, *, clips: int = 8
) -> tuple[UInt8[np.ndarray, "B F H W 3"], Float[np.ndarray, " B"]]:
    """Returns clips of a video file as a model gets them, from its whole length, and the seconds at
    which they begin.

    data: how frames are chosen and cut, as `run.config.data`; None for all frames, one after
    another. clips: at most so many.
    Raises ValueError for a file that cannot be read.
    """
    data, (frames, *size) = data or DataSettings(), model.config.clip
    try:
        film = open_film(Path(path), data)
        parts = windows(film.video, data.sampling, frames)
        chosen = np.unique(np.linspace(0, len(parts) - 1, clips).round().astype(int))
        parts = [parts[k] for k in chosen.tolist()]
        read = [x for _, x in read_windows(film.video, parts, data.views, (size[0], size[1]))]
    except ClipReadError as error:
        raise ValueError(f"{path}: {error}") from error
    begins = [film.times[part.begin] - film.times[0] for part in parts]
    return np.concatenate(read)[: len(parts)], np.array(begins)


def seen_box(run: Run, shape: tuple[int, int]) -> Box:
    """Returns the part of a frame of this height and width that the model sees."""
    size = run.model.config.clip[1:]
    scale = min(shape) / (run.config.data.views.short_side or max(size))
    height, width = (min(round(n * scale), whole) for n, whole in zip(size, shape, strict=True))
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width
