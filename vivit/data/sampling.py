"""Which frames of a video make a clip: pure functions on the presentation times of its frames.

All return frame numbers int64 [F] (or [V, F]) into the times. `short` is a name of SHORT: what
happens where the video ends before the clip does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vivit.data.decode import TOLERANCE
from vivit.registry import Registry

Times = Float[np.ndarray, " n"]  # seconds, ascending, from the first frame's 0
Frames = Int[np.ndarray, " F"]

SHORT: Registry[Callable[[np.ndarray, int], np.ndarray]] = Registry("rule for short videos")
SHORT.add("wrap", lambda frames, count: frames % count)  # begin again, as DMVR does
SHORT.add("repeat", lambda frames, count: np.minimum(frames, count - 1))  # hold the last frame


def strided(start: int, *, frames: int, stride: int, count: int, short: str) -> Frames:
    """Every `stride`-th frame from `start` on, of a video of `count` frames."""
    return SHORT[short](start + stride * np.arange(frames), count)


def timed(
    times: Times,
    start: float | int,
    *,
    frames: int,
    stride_seconds: float,
    seconds: float,
    short: str,
) -> Frames:
    """The frames shown every `stride_seconds` from `start` on; a video lasts `seconds`.

    For videos of different or variable frame rates.
    """
    at = start + stride_seconds * np.arange(frames)
    # In whole steps of the video's length, so that rounding moves no frame over its end.
    ends = at >= seconds - TOLERANCE
    if ends.any():
        at = np.where(ends, at % seconds if short == "wrap" else times[-1], at)
        SHORT[short]  # an unknown name is an error for short videos and long ones alike
    return frames_shown(times, at)


def frames_shown(times: Times, at: Float[np.ndarray, " F"]) -> Frames:
    """Numbers of the frames that a player shows at these times: the last that began by then."""
    # A time that is meant to be a frame's own must not miss it by rounding, to whole milliseconds
    # in Matroska.
    return np.clip(np.searchsorted(times, at + TOLERANCE, side="right") - 1, 0, None)


def starts_of_views(last: float | int, views: int) -> Float[np.ndarray, " V"]:
    """Evenly spaced starts from 0 to the last possible one; ViViT (2103.15691), section 4.1.

    One view starts in the middle.
    """
    return np.linspace(0, last, views) if views > 1 else np.array([last / 2])


def segments(count: int, *, frames: int, draws: Float[np.ndarray, " F"] | None = None) -> Frames:
    """One frame of each of F equal segments: its middle one, or that of `draws` in [0, 1).

    TSN (1608.00859), section 3.1; customary for Something-Something.
    """
    edges = np.linspace(0, count, frames + 1)
    at = edges[:-1] + np.diff(edges) * (0.5 if draws is None else draws)
    return np.minimum(at.astype(np.int64), count - 1)


@dataclass(frozen=True)
class Sampling:
    """How clips are taken from videos; `config.data.sampling`.

    kind: "clip": frames at a stride, at a random start in training; "segments": one frame of each
    of equal parts of the video; "all": the video is the clip.
    stride_frames: for "clip". stride_seconds: instead of it, where frame rates differ.
    short: a name of SHORT.
    """

    kind: str = "clip"
    stride_frames: int = 1
    stride_seconds: float | None = None
    short: str = "wrap"

    def __post_init__(self) -> None:
        KINDS[self.kind]
        SHORT[self.short]
        if self.stride_frames < 1 or (self.stride_seconds is not None and self.stride_seconds <= 0):
            raise ValueError(
                f"sampling.stride_frames={self.stride_frames} and "
                f"stride_seconds={self.stride_seconds} must be positive"
            )

    def train(self, times: Times, seconds: float, *, frames: int, rng: Any) -> Frames:
        """A clip as training draws it."""
        return KINDS[self.kind].train(self, times, seconds, frames, rng)

    def views(
        self, times: Times, seconds: float, *, frames: int, views: int
    ) -> Int[np.ndarray, "V F"]:
        """The clips of an evaluation, from the video's beginning to its end."""
        return KINDS[self.kind].views(self, times, seconds, frames, views)


@dataclass(frozen=True)
class Kind:
    """train(sampling, times, seconds, frames, rng) and views(sampling, ..., views)."""

    train: Callable[..., np.ndarray]
    views: Callable[..., np.ndarray]


def _train_clip(sampling: Sampling, times: Times, seconds: float, frames: int, rng: Any):
    draw = rng.random()
    if sampling.stride_seconds:
        start = draw * _last_start(sampling, times, seconds, frames)
        return _timed(sampling, times, seconds, frames, start)
    start = int(draw * (_last_start(sampling, times, seconds, frames) + 1))
    return _strided(sampling, times, frames, start)


def _view_clips(sampling: Sampling, times: Times, seconds: float, frames: int, views: int):
    starts = starts_of_views(_last_start(sampling, times, seconds, frames), views)
    if sampling.stride_seconds:
        return np.stack([_timed(sampling, times, seconds, frames, start) for start in starts])
    return np.stack([_strided(sampling, times, frames, int(start)) for start in starts])


def _last_start(sampling: Sampling, times: Times, seconds: float, frames: int):
    if sampling.stride_seconds:
        return max(seconds - sampling.stride_seconds * frames, 0.0)
    return max(len(times) - (frames - 1) * sampling.stride_frames - 1, 0)


def _timed(sampling, times, seconds, frames, start):
    return timed(
        times,
        start,
        frames=frames,
        stride_seconds=sampling.stride_seconds,
        seconds=seconds,
        short=sampling.short,
    )


def _strided(sampling, times, frames, start):
    return strided(
        start,
        frames=frames,
        stride=sampling.stride_frames,
        count=len(times),
        short=sampling.short,
    )


def _train_segments(sampling: Sampling, times: Times, seconds: float, frames: int, rng: Any):
    return segments(len(times), frames=frames, draws=rng.random(frames))


def _view_segments(sampling: Sampling, times: Times, seconds: float, frames: int, views: int):
    """Views differ in the part of each segment that they take: (v + 1/2) / V of it."""
    parts = (np.arange(views) + 0.5) / views
    return np.stack(
        [segments(len(times), frames=frames, draws=np.full(frames, part)) for part in parts]
    )


def _whole(sampling: Sampling, times: Times, seconds: float, frames: int, *_: Any) -> np.ndarray:
    return SHORT[sampling.short](np.arange(frames), len(times))


def _whole_view(sampling: Sampling, times: Times, seconds: float, frames: int, views: int):
    if views > 1:
        raise ValueError(f'data.views.temporal={views} of sampling.kind="all" would be equal')
    return _whole(sampling, times, seconds, frames)[None]


KINDS: Registry[Kind] = Registry("kind of sampling")
KINDS.add("clip", Kind(_train_clip, _view_clips))
KINDS.add("segments", Kind(_train_segments, _view_segments))
KINDS.add("all", Kind(_whole, _whole_view))
