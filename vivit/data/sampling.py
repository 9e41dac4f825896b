"""Which frames of a video make a clip: pure functions on the presentation times of its frames.

All return frame numbers int64 [F], or [V, F] of views.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vivit.data.settings import SamplingSettings
from vivit.data.video import TOLERANCE
from vivit.registry import Registry

Times = Float[np.ndarray, " n"]  # seconds, ascending, from the first frame's 0
FrameNumbers = Int[np.ndarray, " F"]


@dataclass(frozen=True)
class PadMode:
    """Which frames follow the end of a video.

    numbers: (frame numbers, count of the video's frames) -> frame numbers below the count.
    moments: (times past the end, the video's seconds, its last frame's time) -> times in the video.
    """

    numbers: Callable[[np.ndarray, int], np.ndarray]
    moments: Callable[[np.ndarray, float, float], np.ndarray]


PAD_MODES: Registry[PadMode] = Registry("pad mode")
PAD_MODES.add("wrap", PadMode(lambda n, count: n % count, lambda at, seconds, last: at % seconds))
PAD_MODES.add(
    "repeat",
    PadMode(lambda n, count: np.minimum(n, count - 1), lambda at, _, last: np.full_like(at, last)),
)


@dataclass(frozen=True)
class Sampling:
    """How clips are taken from a video.

    train: (settings, times, seconds, frames, rng) -> frame numbers [F], as training draws them.
    views: (settings, times, seconds, frames, views) -> frame numbers [V, F], from the beginning to
    the end of the video. strided: whether a clip has the stride of the settings.
    """

    train: Callable[[SamplingSettings, Times, float, int, Any], FrameNumbers]
    views: Callable[[SamplingSettings, Times, float, int, int], Int[np.ndarray, "V F"]]
    strided: bool = False


SAMPLINGS: Registry[Sampling] = Registry("kind of sampling")


def check_sampling(settings: SamplingSettings) -> None:
    """Raises ValueError for names that are not registered."""
    _ = SAMPLINGS[settings.kind], PAD_MODES[settings.pad_mode]


def clip_from(
    settings: SamplingSettings, times: Times, seconds: float, frames: int, start: float | int
) -> FrameNumbers:
    """Returns the frames of a clip from `start` on: a frame number, or seconds with stride_seconds.

    By seconds, these are the frames that a player shows at the clip's times, for videos of
    different or variable frame rates.
    """
    pad, steps = PAD_MODES[settings.pad_mode], np.arange(frames)
    if settings.stride_seconds is None:
        return pad.numbers(int(start) + settings.stride_frames * steps, len(times))
    at = start + settings.stride_seconds * steps
    # With the tolerance, rounding moves no frame over the video's end.
    late = at >= seconds - TOLERANCE
    at[late] = pad.moments(at[late], seconds, times[-1])
    return frames_shown(times, at)


def frames_shown(times: Times, at: Float[np.ndarray, " F"]) -> FrameNumbers:
    """Returns the frames that a player shows at these times: the last that began by then."""
    # The time of a frame must not miss it by rounding, to whole milliseconds in Matroska.
    return np.clip(np.searchsorted(times, at + TOLERANCE, side="right") - 1, 0, None)


def starts_of_views(last: float | int, views: int) -> Float[np.ndarray, " V"]:
    """Returns evenly spaced starts from 0 to the last possible one; 2103.15691, section 4.1.

    One view starts in the middle.
    """
    return np.linspace(0, last, views) if views > 1 else np.array([last / 2])


def segments(count: int, *, frames: int, draws: Float[np.ndarray, " F"] | None = None):
    """Returns one frame of each of F equal segments: its middle one, or that of `draws` in [0, 1).

    TSN (1608.00859), section 3.1; customary for Something-Something.
    """
    edges = np.linspace(0, count, frames + 1)
    at = edges[:-1] + np.diff(edges) * (0.5 if draws is None else draws)
    return np.minimum(at.astype(np.int64), count - 1)


def last_start(
    settings: SamplingSettings, times: Times, seconds: float, frames: int
) -> float | int:
    """Returns the last start of a clip that ends with the video; see `clip_from`."""
    if settings.stride_seconds is not None:
        return max(seconds - settings.stride_seconds * frames, 0.0)
    return max(len(times) - (frames - 1) * settings.stride_frames - 1, 0)


def _train_clip(settings: SamplingSettings, times, seconds, frames, rng):
    last = last_start(settings, times, seconds, frames)
    whole = 1 if settings.stride_seconds is None else 0  # the last whole number is drawn too
    return clip_from(settings, times, seconds, frames, rng.random() * (last + whole))


def _view_clips(settings: SamplingSettings, times, seconds, frames, views):
    starts = starts_of_views(last_start(settings, times, seconds, frames), views)
    return np.stack([clip_from(settings, times, seconds, frames, start) for start in starts])


def _train_segments(settings: SamplingSettings, times, seconds, frames, rng):
    return segments(len(times), frames=frames, draws=rng.random(frames))


def _view_segments(settings: SamplingSettings, times, seconds, frames, views):
    """Views differ in the part of each segment that they take: (v + 1/2) / V of it."""
    parts = [np.full(frames, (v + 0.5) / views) for v in range(views)]
    return np.stack([segments(len(times), frames=frames, draws=part) for part in parts])


def _whole(settings: SamplingSettings, times, seconds, frames, rng):
    return PAD_MODES[settings.pad_mode].numbers(np.arange(frames), len(times))


def _whole_view(settings: SamplingSettings, times, seconds, frames, views):
    if views > 1:
        raise ValueError(
            f'data.views.temporal={views} of sampling.kind="all" would be equal; use 1'
        )
    return _whole(settings, times, seconds, frames, None)[None]


SAMPLINGS.add("clip", Sampling(_train_clip, _view_clips, strided=True))
SAMPLINGS.add("segments", Sampling(_train_segments, _view_segments))
SAMPLINGS.add("all", Sampling(_whole, _whole_view))
