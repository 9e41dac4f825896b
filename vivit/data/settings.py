"""What a config may say of data: the schema of `config.data` and `config.augment`. No JAX."""

import math
from dataclasses import dataclass, field, replace

LARGEST_FRAME = 4096 * 4096  # pixels; a damaged header can ask for more memory than there is
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class SamplingSettings:
    """Which frames of a video make a clip; the schema of `config.data.sampling`.

    kind: a name of SAMPLINGS. "clip": frames at a stride, from a random start in training;
        "segments": one frame of each of equal parts of the video; "all": the video is the clip.
    stride_frames: of "clip". stride_seconds: instead of it, where frame rates differ.
    pad_mode: a name of PAD_MODES: which frames follow where a video ends before the clip does.
    """

    kind: str = "clip"
    stride_frames: int = 1
    stride_seconds: float | None = None
    pad_mode: str = "wrap"

    def __post_init__(self) -> None:
        if self.stride_frames < 1 or (self.stride_seconds is not None and self.stride_seconds <= 0):
            raise ValueError(
                f"data.sampling.stride_frames={self.stride_frames} and "
                f"stride_seconds={self.stride_seconds} must be positive"
            )


@dataclass(frozen=True)
class ViewsSettings:
    """The views of a clip in an evaluation; the schema of `config.data.views`.

    temporal: clips from the beginning to the end of a video. spatial: crops of each: 1 (centre) or
        3 (left, centre and right, or of tall frames top, centre and bottom).
    short_side: pixels that frames are scaled to before the crop; None for the crop's long side,
        which cuts off the least.
    average: a name of AVERAGES: how the logits of all views become one.
    """

    temporal: int = 1
    spatial: int = 1
    short_side: int | None = None
    average: str = "logits"

    def __post_init__(self) -> None:
        if self.temporal < 1:
            raise ValueError(f"data.views.temporal={self.temporal} must be at least 1")
        if self.spatial not in (1, 3):
            raise ValueError(f"data.views.spatial={self.spatial} (crops) must be 1 or 3")

    @property
    def name(self) -> str:
        """How pages and files call these views: "4x3"."""
        return f"{self.temporal}x{self.spatial}"

    def centre(self) -> "ViewsSettings":
        """Returns one view per clip, from the middle: for validation during training."""
        return replace(self, temporal=1, spatial=1)


@dataclass(frozen=True)
class ReadLimits:
    """What may be read, and what a decoder may take.

    timeout_seconds: of CPU time, for one call of a decoder process; one that waits has ten times as
    long. largest_frame: pixels, which are known before a frame is decoded.
    follow_links: whether files may be reached by symbolic links.
    """

    timeout_seconds: float = TIMEOUT_SECONDS
    largest_frame: int = LARGEST_FRAME
    follow_links: bool = True


@dataclass(frozen=True)
class DataSettings:
    """What a run reads; the schema of `config.data`.

    name: a prepared data set below `root`, or a manifest (.csv, .parquet) of files below `root`.
    label: the one to train on; "" where task.heads names several, and where none is predicted.
    splits: those to train on and to validate on.
    train_clips: how many clips of the split to train on, drawn at random, the same ones for every
        seed; 0 for all.
    batch_size: clips of all processes. threads: of a process that load clips.
    repeats: how often each clip of a training batch is in it, with frames and augmentation of its
        own each time (1901.09335).
    workers: additional processes that load batches; 0 for none.
    prefetch: batches that are on the devices before they are needed.
    short_side: pixels that frames of unprepared files are shrunk to; None for their size.
    canvas: height and width of a frame in a training batch; larger frames are cut to it at random.
        None for a canvas that holds every frame.
    enlarge: whether frames may be smaller than the model's and are then enlarged.
    max_bad_fraction: of the split's clips that may turn out damaged before a run stops.
    timeout_seconds: of CPU time, for reading one clip of an unprepared file; for a disk that hangs,
        ten times as long. largest_frame: pixels of a frame that is decoded.
    follow_links: False refuses files that are reached by symbolic links, for folders that are not
        trusted.
    """

    name: str = "moving_digits"
    root: str = "data"
    label: str = "motion"
    splits: tuple[str, ...] = ("train", "validation")
    train_clips: int = 0
    batch_size: int = 64
    repeats: int = 1
    threads: int = 2
    workers: int = 0
    prefetch: int = 2
    short_side: int | None = 256
    canvas: tuple[int, int] | None = None
    enlarge: bool = False
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    views: ViewsSettings = field(default_factory=ViewsSettings)
    max_bad_fraction: float = 0.05
    timeout_seconds: float = TIMEOUT_SECONDS
    largest_frame: int = LARGEST_FRAME
    follow_links: bool = True

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.max_bad_fraction <= 1:
            problems.append(f"data.max_bad_fraction={self.max_bad_fraction} is not in 0 .. 1")
        for name in ("timeout_seconds", "largest_frame", "threads", "prefetch", "short_side"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                problems.append(f"data.{name}={value} is not positive")
        if (
            self.repeats < 1
            or self.batch_size % self.repeats
            or self.batch_size == self.repeats > 1
        ):
            problems.append(
                f"data.repeats={self.repeats} does not divide data.batch_size={self.batch_size} "
                "into several clips"
            )
        for name in ("workers", "train_clips"):
            if getattr(self, name) < 0:
                problems.append(f"data.{name}={getattr(self, name)} is below 0")
        if len(self.splits) < 2:
            problems.append(f"data.splits={self.splits} must be two: to train and to validate on")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def limits(self) -> ReadLimits:
        return ReadLimits(self.timeout_seconds, self.largest_frame, self.follow_links)


@dataclass(frozen=True)
class AugmentSettings:
    """Random changes of training clips; the schema of `config.augment`.

    Probabilities are per clip, and 0 switches a step off.

    short_side: least and most pixels that the short side of frames is scaled to before the crop;
        None leaves frames as they are. crop: "random" or "centre".
    flip: probability. Labels that tell left from right become those of the mirror image.
    brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x. hue: is shifted by -x
        to x of the circle. colour_jitter: probability of all four. grey: probability.
    operations, magnitude: of RandAugment (1909.13719): how many, and their strength in 0 .. 30, of
        which 10 is the largest of the paper's figures.
    erase: probability that a box of noise covers a part (1708.04896).
    mixup, cutmix: alpha of the Beta distribution of the mixing weights (1710.09412, 1905.04899);
        with both, each pair of clips gets one of them. Pairs are neighbours in the batch.
    extra: further entries of AUGMENTATIONS, which run last: ("my_augmentation(0.3)",).
    """

    short_side: tuple[int, int] | None = None
    crop: str = "random"
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    colour_jitter: float = 1.0
    grey: float = 0.0
    operations: int = 0
    magnitude: float = 9.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    extra: tuple[str, ...] = ()

    @property
    def strengths(self) -> dict[str, float]:
        """What `train.ramps` may change, each 0 where it changes no clip."""
        jitters = self.brightness, self.contrast, self.saturation, self.hue
        return {
            "colour_jitter": self.colour_jitter if any(jitters) else 0.0,
            "magnitude": self.magnitude if self.operations else 0.0,
            **{name: getattr(self, name) for name in ("grey", "erase", "mixup", "cutmix")},
        }

    def __post_init__(self) -> None:
        problems = []
        for name in ("flip", "grey", "erase", "colour_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name}={getattr(self, name)} is not a probability")
        for name in ("brightness", "contrast", "saturation", "mixup", "cutmix", "operations"):
            if not 0 <= getattr(self, name) < math.inf:
                problems.append(f"{name}={getattr(self, name)} is not a number of at least 0")
        if not 0 <= self.hue <= 0.5:
            problems.append(f"hue={self.hue} is not in 0 .. 0.5")
        if not 0 <= self.magnitude <= 30:
            problems.append(f"magnitude={self.magnitude} is not in 0 .. 30")
        if self.crop not in ("random", "centre"):
            problems.append(f"crop={self.crop!r} is neither random nor centre")
        low, high = self.short_side or (1, 1)
        if not 1 <= low <= high:
            problems.append(f"short_side={self.short_side} is not a range of pixels")
        if problems:
            raise ValueError(f"augment: {'; '.join(problems)}")
