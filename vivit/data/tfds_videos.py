"""Data sets of TFDS's own catalogue, such as ucf101, where they were prepared as array_record."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import video_feature

from vivit.data.decode import Damaged
from vivit.data.footage import Footage, Limits, from_jpegs

RATE = 25.0  # frames a second: tfds's Video keeps pictures without times


@contextmanager
def allow_video_features() -> Iterator[None]:
    """tfds's Video asks TensorFlow for one thing when it is made: what numpy calls a dtype."""
    before = video_feature.tf
    video_feature.tf = SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype))
    try:
        yield
    finally:
        video_feature.tf = before


def video_key(features: Any, name: str) -> str:
    """Which feature is the video. ValueError where there is none."""
    found = [k for k, v in features.items() if isinstance(v, video_feature.Video)]
    if not found:
        raise ValueError(f"{name} has no video; it has: {', '.join(features)}")
    return found[0]


class TfdsVideos:
    """The clips of one split; only the frames that are wanted are decoded."""

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, key: str, limits: Limits
    ) -> None:
        self.key, self.limits = key, limits
        self.records = builder.as_data_source(
            split=split, decoders={key: tfds.decode.SkipDecoding()}
        )

    def __len__(self) -> int:
        return len(self.records)

    def name(self, i: int) -> str:
        return f"record {i}"

    def label(self, i: int, label: str) -> int:
        return self.records[i][label]

    def open(self, i: int) -> Footage:
        record = self.records[i]
        frames = record[self.key]
        if not len(frames):
            raise Damaged("too short", "has no frames")
        times = np.arange(len(frames)) / RATE
        limit = self.limits.largest_frame
        return from_jpegs(frames, times, len(frames) / RATE, record, largest_frame=limit)
