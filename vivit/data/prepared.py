"""Clips that vivit.dataprep wrote: any frames of any clip, from H.264, JPEG or raw records.

Array_record verifies the checksums of records, so they are decoded in this process, by the threads
that load clips: PyAV and libjpeg-turbo release Python's lock.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from vivit.data import decode
from vivit.data.classes import UNLABELLED, Classes
from vivit.data.decode import CLOCK, decode_jpeg
from vivit.data.settings import DataSettings
from vivit.data.split import Split
from vivit.data.video import ClipReadError, ReadFrames, VideoReader, Window, read_pictures

Features = Any  # of a record: name -> tf.train.Feature
Example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]


def metadata_of(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """Returns what a builder's metadata.json holds."""
    return dict(builder.info.metadata or {})


class PreparedClips:
    """The clips of one split. Records are parsed without tfds, which would decode every frame.

    read_with: (the clips, features of a clip, height and width of its frames) -> ReadFrames.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        read_with: "Callable[[PreparedClips, Features, tuple[int, int]], ReadFrames]",
        *,
        largest_frame: int,
    ) -> None:
        metadata = metadata_of(builder)
        self.labels, self.several = tuple(metadata["labels"]), set(metadata.get("several", ()))
        self.clips = open_records(builder.info.splits[split].filepaths)
        self.read_with, self.largest_frame = read_with, largest_frame
        folder = Path(builder.data_dir) / "frames"
        if folder.exists():
            frames = tfds.builder_from_directory(folder).info
            self.frames = open_records(frames.splits[split].filepaths)

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, i: int) -> str:
        try:
            return read_example(self.clips, i)["path"].bytes_list.value[0].decode()
        except Exception:  # its record is what can't be read
            return f"record {i}"

    def id(self, i: int) -> str:
        return read_example(self.clips, i)["id"].bytes_list.value[0].decode()

    def label(self, i: int, label: str) -> Any:
        return self._label(read_example(self.clips, i), label)

    def _label(self, record: Features, label: str) -> Any:
        if label in self.several:
            return list(record[label].int64_list.value)
        return _number(record, label)

    def open(self, i: int) -> VideoReader:
        record = read_example(self.clips, i)
        size = _number(record, "height"), _number(record, "width")
        labels = {key: self._label(record, key) for key in self.labels}
        seconds = _number(record, "duration_ticks") / CLOCK
        read = self.read_with(self, record, size)
        return VideoReader(_ticks(record) / CLOCK, seconds, *size, labels, read)


def open_prepared(
    builder: tfds.core.DatasetBuilder,
    split: str,
    settings: DataSettings,
    *,
    read_with: Callable[[PreparedClips, Features, tuple[int, int]], ReadFrames],
) -> Split:
    """Opens a split of a data set that vivit.dataprep wrote from a manifest."""
    metadata = metadata_of(builder)
    labels, several = metadata["labels"], metadata.get("several", [])
    classes = {
        k: Classes(tuple(v), _flips(v, metadata["mirrored"][k]), k in several)
        for k, v in labels.items()
    }
    prefix = f"{builder.name}-{split}."
    # The shards are too large to read, but prepare has stored their hashes.
    hashes = [v["sha256"] for k, v in sorted(metadata["shards"].items()) if k.startswith(prefix)]
    return Split(
        reader=PreparedClips(builder, split, read_with, largest_frame=settings.largest_frame),
        classes=classes,
        largest=tuple(metadata["largest"]),
        smallest=metadata["smallest"],
        split=split,
        name=settings.name,
        version=str(builder.info.version),
        digest=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        unlabelled={k: metadata["unlabelled"].get(f"{split}/{k}", 0) for k in labels},
    )


def _flips(names: Sequence[str], mirrored: Sequence[int]) -> dict[str, str | None]:
    """Returns the mirror images of the classes that have another one, or none."""
    pairs = zip(names, mirrored, strict=True)
    return {
        name: None if i == UNLABELLED else names[i] for name, i in pairs if name != names[max(i, 0)]
    }


def read_h264(clips: PreparedClips, record: Features, size: tuple[int, int]) -> ReadFrames:
    """Returns the reader of a clip whose record holds an H.264 file."""
    video, ticks = record["video"].bytes_list.value[0], _ticks(record).tolist()

    def read(numbers: np.ndarray, window: Window | None = None) -> np.ndarray:
        pts = [ticks[i] for i in numbers]
        frames = decode.read(video, pts, window=window, largest_frame=clips.largest_frame)
        if frames.shape[1:3] != (window[2:] if window else size):
            raise ClipReadError("damaged", f"its frames are not {size[1]} x {size[0]} pixels")
        return frames

    return read


def read_jpeg(clips: PreparedClips, record: Features, size: tuple[int, int]) -> ReadFrames:
    """Returns the reader of a clip whose frames are records of JPEG pictures."""
    largest = clips.largest_frame
    decode = lambda frame: decode_jpeg(encoded_frame(frame), largest_frame=largest)
    return _read_records(clips, record, size, decode)


def read_raw(clips: PreparedClips, record: Features, size: tuple[int, int]) -> ReadFrames:
    """Returns the reader of a clip whose frames are records of pixels."""
    return _read_records(clips, record, size, lambda frame: _raw_picture(frame, size))


def _read_records(
    clips: PreparedClips,
    record: Features,
    size: tuple[int, int],
    decode: Callable[[bytes], np.ndarray],
) -> ReadFrames:
    first = _number(record, "first_frame")

    def read(numbers: np.ndarray, window: Window | None = None) -> np.ndarray:
        # One by one: a record that is copied and freed before the next one is read stays in the
        # processor's cache, which doubles the speed of raw clips.
        one = lambda i: decode(get_record(clips.frames, first + i))
        return read_pictures(one, numbers, size, window)

    return read


def encoded_frame(record: bytes) -> bytes:
    """Returns the bytes of a frame's picture as they are stored."""
    return _parse(record)["frame"].bytes_list.value[0]


def _raw_picture(record: bytes, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels of a record without a copy: they are its end, after a header."""
    height, width = size
    start = len(record) - height * width * 3
    if start != _raw_header(height * width * 3):
        raise ClipReadError("damaged", f"a frame's record is not of {width} x {height} pixels")
    return np.frombuffer(record, np.uint8, offset=start).reshape(height, width, 3)


@functools.cache
def _raw_header(pixels: int) -> int:
    """Returns how many bytes precede the pixels in an Example of one feature, "frame"."""
    example = Example()
    example.features.feature["frame"].bytes_list.value.append(bytes(pixels))
    return len(example.SerializeToString()) - pixels


def _number(record: Features, key: str) -> int:
    return record[key].int64_list.value[0]


def _ticks(record: Features) -> np.ndarray:
    return np.frombuffer(record["ticks"].bytes_list.value[0], "<i8")


def open_records(paths: Sequence[Any]) -> ArrayRecordDataSource:
    return ArrayRecordDataSource([str(path) for path in paths])


def read_example(source: ArrayRecordDataSource, i: int) -> Features:
    """Returns the features of a record by name; ClipReadError if it can't be read."""
    return _parse(get_record(source, i))


def get_record(source: ArrayRecordDataSource, i: int) -> bytes:
    """Returns a record, whose checksum array_record verifies."""
    try:
        return source[i]
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise ClipReadError("damaged", f"the record can't be read: {error}") from error


def _parse(record: bytes) -> Features:
    try:
        return Example.FromString(record).features.feature
    except Exception as error:  # protobuf's DecodeError, which its implementations name differently
        raise ClipReadError("damaged", f"the record is not an Example: {error}") from error
