"""Data sets of TFDS's own catalogue, such as ucf101, where they were prepared as array_record."""

import hashlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import video_feature

from vivit.data.classes import Classes, mirror_names
from vivit.data.prepared import open_records, read_example
from vivit.data.settings import DataSettings
from vivit.data.split import Split
from vivit.data.video import RATE, ClipReadError, VideoReader
from vivit.data.video_files import open_jpegs


def open_tfds(builder: tfds.core.DatasetBuilder, split: str, settings: DataSettings) -> Split:
    """Opens a split of a TFDS data set that has a video and a class label."""
    name, info = builder.name, builder.info
    features: Any = info.features
    is_label = lambda feature: isinstance(feature, tfds.features.ClassLabel)
    classes = {key: feature.names for key, feature in features.items() if is_label(feature)}
    videos = [k for k, v in features.items() if isinstance(v, video_feature.Video)]
    if not videos:
        raise ValueError(f"{name} has no video; it has: {', '.join(features)}")
    _, height, width, _ = features[videos[0]].shape
    if height is None or width is None:
        raise ValueError(
            f"the frames of {name} differ in size; write them out as files and prepare those"
        )
    size = info.splits[split]
    content = f"{name} {info.version} {split} {size.num_examples} {size.num_bytes}"
    return Split(
        reader=TfdsVideos(builder, split, videos[0], tuple(classes), settings.largest_frame),
        classes={k: Classes(tuple(v), mirror_names(v)) for k, v in classes.items()},
        largest=(height, width),
        smallest=min(height, width),
        split=split,
        name=name,
        version=str(info.version),
        digest=hashlib.sha256(content.encode()).hexdigest(),
    )


class TfdsVideos:
    """The clips of one split; only the frames that are read are decoded.

    key: the feature that is the video. labels: the features that are class labels.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        key: str,
        labels: tuple[str, ...],
        largest_frame: int,
    ) -> None:
        self.key, self.labels, self.largest_frame = key, labels, largest_frame
        self.records = open_records(builder.info.splits[split].filepaths)

    def __len__(self) -> int:
        return len(self.records)

    def name(self, i: int) -> str:
        return f"record {i}"

    def id(self, i: int) -> str:
        return str(i)

    def label(self, i: int, label: str) -> int:
        return read_example(self.records, i)[label].int64_list.value[0]

    def open(self, i: int) -> VideoReader:
        record = read_example(self.records, i)
        frames = list(record[self.key].bytes_list.value)
        if not frames:
            raise ClipReadError("too short", "has no frames")
        try:
            labels = {label: record[label].int64_list.value[0] for label in self.labels}
        except IndexError as error:
            raise ClipReadError("damaged", "has no label") from error
        times, seconds = np.arange(len(frames)) / RATE, len(frames) / RATE
        return open_jpegs(frames, times, seconds, labels, largest_frame=self.largest_frame)
