"""Reads what prepare.py wrote: any frames of any clip, from H.264, JPEG or raw records."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from tensorflow_datasets.proto import tf_example_pb2

from vivit.data import guard
from vivit.data.decode import Damaged
from vivit.data.encode import CLOCK, decode_jpeg
from vivit.data.footage import Footage, Limits, stack


class Prepared:
    """The clips of one split. Records are parsed by themselves: tfds would decode every frame."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, limits: Limits) -> None:
        info = builder.info
        self.format = info.metadata["format"]
        self.labels = tuple(info.metadata["labels"])
        self.limits = limits
        self.clips = _source(info.splits[split].filepaths)
        self.frames = None
        if self.format != "h264":
            frames = tfds.builder_from_directory(Path(builder.data_dir) / "frames").info
            self.frames = _source(frames.splits[split].filepaths)

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, i: int) -> str:
        try:
            return self._record(i)["path"].bytes_list.value[0].decode()
        except Exception:  # its record is what can't be read
            return f"record {i}"

    def label(self, i: int, label: str) -> int:
        return self._record(i)[label].int64_list.value[0]

    def open(self, i: int) -> Footage:
        record = self._record(i)
        number = lambda key: record[key].int64_list.value[0]
        ticks = np.frombuffer(record["ticks"].bytes_list.value[0], "<i8")
        height, width = number("height"), number("width")
        if self.frames is None:
            video = record["video"].bytes_list.value[0]
            read = functools.partial(self._read_video, video, ticks.tolist())
        else:
            read = functools.partial(self._read_frames, number("first_frame"), (height, width, 3))
        labels = {key: number(key) for key in self.labels}
        seconds = number("duration_ticks") / CLOCK
        return Footage(ticks / CLOCK, seconds, height, width, read, labels)

    def _read_video(self, video: bytes, ticks: list[int], numbers: np.ndarray) -> np.ndarray:
        return guard.read(
            data=video,
            pts=[ticks[i] for i in numbers],
            timeout=self.limits.timeout,
            largest_frame=self.limits.largest_frame,
        )

    def _read_frames(self, first: int, shape: tuple[int, ...], numbers: np.ndarray) -> np.ndarray:
        assert self.frames is not None
        wanted, places = np.unique(numbers, return_inverse=True)
        records = _get(self.frames, (first + wanted).tolist())
        parts = [_parse(record)["frame"].bytes_list.value[0] for record in records]
        if self.format == "raw":
            pictures = [np.frombuffer(part, np.uint8).reshape(shape) for part in parts]
        else:
            limit = self.limits.largest_frame
            pictures = [decode_jpeg(part, largest_frame=limit) for part in parts]
        return stack([pictures[i] for i in places])

    def _record(self, i: int) -> Any:
        return _parse(_get(self.clips, [i])[0])


def _source(paths: Sequence[Any]) -> array_record_data_source.ArrayRecordDataSource:
    return array_record_data_source.ArrayRecordDataSource([str(path) for path in paths])


def _get(source: array_record_data_source.ArrayRecordDataSource, numbers: list[int]) -> list[bytes]:
    """Records, whose checksums array_record verifies."""
    try:
        return list(source.__getitems__(numbers))
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise Damaged("damaged", f"the record can't be read: {error}") from error


def _parse(record: bytes) -> Any:
    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's DecodeError, which its implementations name differently
        raise Damaged("damaged", f"the record is no Example: {error}") from error
