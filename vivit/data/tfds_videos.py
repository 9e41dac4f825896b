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
from vivit.data.prepared import open_records, read_example

RATE = 25.0  # frames a second of clips that are kept without times, as tfds's Video is


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
        features: Any = builder.info.features
        self.labels = [k for k, v in features.items() if isinstance(v, tfds.features.ClassLabel)]
        self.records = open_records(builder.info.splits[split].filepaths)

    def __len__(self) -> int:
        return len(self.records)

    def name(self, i: int) -> str:
        return f"record {i}"

    def label(self, i: int, label: str) -> int:
        return read_example(self.records, i)[label].int64_list.value[0]

    def open(self, i: int) -> Footage:
        record = read_example(self.records, i)
        frames = list(record[self.key].bytes_list.value)
        if not frames:
            raise Damaged("too short", "has no frames")
        try:
            labels = {label: record[label].int64_list.value[0] for label in self.labels}
        except IndexError as error:
            raise Damaged("damaged", "has no label") from error
        times, seconds = np.arange(len(frames)) / RATE, len(frames) / RATE
        limit = self.limits.largest_frame
        return from_jpegs(frames, times, seconds, labels, largest_frame=limit)
