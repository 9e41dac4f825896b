"""Data sets whose records are clips already, raw bytes of one shape, such as moving_digits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vivit.data.classes import Classes, mirror_names
from vivit.data.settings import DataSettings
from vivit.data.split import Split
from vivit.data.video import RATE, VideoReader, Window


def open_whole_clips(
    builder: tfds.core.DatasetBuilder, split: str, settings: DataSettings
) -> Split:
    """Opens a split of a builder that stores bytes "clip" and one number per label.

    The builder's metadata has "clip_shape" (frames, height, width, channels) and "labels" (label ->
    class names), and may have "several": labels of which a clip has a list of numbers. A record may
    have a "track" [frames, 3], where its object is: see `mask_of`.
    """
    info, metadata = builder.info, dict(builder.info.metadata or {})
    shape, several = tuple(metadata["clip_shape"]), metadata.get("several", [])
    features: Any = info.features
    records: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
    return Split(
        reader=WholeClips(records, shape),
        classes={
            label: Classes(tuple(names), mirror_names(names), label in several)
            for label, names in metadata["labels"].items()
        },
        largest=shape[1:3],
        smallest=min(shape[1:3]),
        split=split,
        name=settings.name,
        version=str(info.version),
        digest=_digest(info.splits[split].filepaths),
        masks=Masks(records, shape) if "track" in features else None,
    )


@dataclass(frozen=True)
class WholeClips:
    """Clips of one shape (frames, height, width, channels)."""

    records: Sequence[Any]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.records)

    def name(self, i: int) -> str:
        return f"record {i}"

    def id(self, i: int) -> str:
        return str(i)

    def label(self, i: int, label: str) -> Any:
        return self.records[i][label]

    def pixels(self, record: Any) -> np.ndarray:
        return np.frombuffer(record["clip"], np.uint8).reshape(self.shape)

    def open(self, i: int) -> VideoReader:
        record = self.records[i]
        clip, (frames, height, width, _) = self.pixels(record), self.shape

        def read(numbers: np.ndarray, window: Window | None = None) -> np.ndarray:
            top, left, h, w = window or (0, 0, height, width)
            return clip[numbers, top : top + h, left : left + w]

        return VideoReader(np.arange(frames) / RATE, frames / RATE, height, width, record, read)


class Masks(WholeClips):
    """Clips that are white where the object of the clip of this number is, and black elsewhere."""

    def pixels(self, record: Any) -> np.ndarray:
        _, height, width, _ = self.shape
        return 255 * mask_of(record["track"], (height, width))[..., None].astype(np.uint8)


def mask_of(track: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels of a square on a torus, bool [F, H, W].

    track: [F, 3] of x and y of its centre, and its side, in pixels; no pixels for a side of 0.
    size: height and width.
    """
    x, y, side = np.asarray(track, np.float64).T

    def inside(centres: np.ndarray, length: int) -> np.ndarray:
        offsets = np.arange(length) - centres[:, None]
        return np.abs((offsets + length / 2) % length - length / 2) < side[:, None] / 2

    return inside(y, size[0])[:, :, None] & inside(x, size[1])[:, None, :]


def _digest(paths: Sequence[Any]) -> str:
    """Returns the SHA-256 of all shards."""
    digest = hashlib.sha256()
    for path in sorted(map(str, paths)):
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
