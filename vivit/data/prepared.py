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
from vivit.data.footage import Footage, Limits, Window, read_pictures


class Prepared:
    """The clips of one split. Records are parsed by themselves: tfds would decode every frame."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, limits: Limits) -> None:
        info = builder.info
        self.format = info.metadata["format"]
        self.labels = tuple(info.metadata["labels"])
        self.limits = limits
        self.clips = open_records(info.splits[split].filepaths)
        self.frames = None
        if self.format != "h264":
            frames = tfds.builder_from_directory(Path(builder.data_dir) / "frames").info
            self.frames = open_records(frames.splits[split].filepaths)

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
        size = number("height"), number("width")
        if self.frames is None:
            video = record["video"].bytes_list.value[0]
            read = functools.partial(self._read_video, video, ticks.tolist(), size)
        else:
            read = functools.partial(self._read_frames, number("first_frame"), size)
        labels = {key: number(key) for key in self.labels}
        return Footage(ticks / CLOCK, number("duration_ticks") / CLOCK, *size, labels, read)

    def encoded(self, number: int) -> bytes:
        """A frame's bytes as they are stored, by its number in the split."""
        assert self.frames is not None
        return _frame(_get(self.frames, [number])[0])

    def _read_video(
        self,
        video: bytes,
        ticks: list[int],
        size: tuple[int, int],
        numbers: np.ndarray,
        window: Window | None = None,
    ) -> np.ndarray:
        frames = guard.read(
            data=video,
            pts=[ticks[i] for i in numbers],
            window=window,
            timeout=self.limits.timeout,
            largest_frame=self.limits.largest_frame,
        )
        if frames.shape[1:3] != (window[2:] if window else size):
            raise Damaged("damaged", f"its frames are not {size[1]} x {size[0]} pixels")
        return frames

    def _read_frames(
        self, first: int, size: tuple[int, int], numbers: np.ndarray, window: Window | None = None
    ) -> np.ndarray:
        assert self.frames is not None
        wanted = np.unique(numbers)
        found = dict(zip(wanted, _get(self.frames, (first + wanted).tolist()), strict=True))
        if self.format == "raw":
            decode = lambda i: _raw_picture(found[i], size)
        else:
            limit = self.limits.largest_frame
            decode = lambda i: decode_jpeg(_frame(found[i]), largest_frame=limit)
        return read_pictures(decode, numbers, size, window)

    def _record(self, i: int) -> Any:
        return read_example(self.clips, i)


def _frame(record: bytes) -> bytes:
    return _parse(record)["frame"].bytes_list.value[0]


def _raw_picture(record: bytes, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a record, without a copy: they are its end, whatever stands before them."""
    height, width = size
    start = len(record) - height * width * 3
    if start != _raw_header(height * width * 3):
        raise Damaged("damaged", f"a frame's record is not of {width} x {height} pixels")
    return np.frombuffer(record, np.uint8, offset=start).reshape(height, width, 3)


@functools.cache
def _raw_header(pixels: int) -> int:
    """How many bytes an Example of one feature, "frame", has before that many of its own."""
    example = tf_example_pb2.Example()
    example.features.feature["frame"].bytes_list.value.append(bytes(pixels))
    return len(example.SerializeToString()) - pixels


def open_records(paths: Sequence[Any]) -> array_record_data_source.ArrayRecordDataSource:
    return array_record_data_source.ArrayRecordDataSource([str(path) for path in paths])


def read_example(source: array_record_data_source.ArrayRecordDataSource, i: int) -> Any:
    """The features of a record by name. Damaged if it can't be read."""
    return _parse(_get(source, [i])[0])


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
