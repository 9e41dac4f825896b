"""DMVR's TFRecords of SequenceExamples (Scenic's input format), read without TensorFlow.

A record is 8 bytes of length, 4 of their checksum, the data, and 4 of its checksum; checksums are
masked CRC-32C. A manifest names a record by its place in the file: `train-00000.tfrecord#BYTE`.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from vivit.data.files import is_uri, locate
from vivit.data.video import ClipReadError

SequenceExample: Any = tf_example_pb2.SequenceExample  # pyright: ignore[reportAttributeAccessIssue]
# The keys that DMVR writes; its feature lists of encoded JPEG pictures and their times.
PICTURES, STAMPS = "image/encoded", "image/timestamp"  # stamps in microseconds
LABEL, TEXT, KEY, RATE = "clip/label/index", "clip/label/text", "clip/key", "image/frame_rate"
ASSUMED_RATE = 25.0  # frames per second, where a record has no rate


class Record(NamedTuple):
    """A clip of a SequenceExample: its encoded frames and their times from 0, in seconds."""

    frames: list[bytes]
    times: np.ndarray
    seconds: float
    labels: list[int]
    texts: list[str]
    key: str


def read_record(root: str | Path, path: str, *, follow_links: bool = True) -> Record:
    """Returns the record that a manifest's path names; ClipReadError if its checksum is wrong."""
    name, _, byte = path.rpartition("#")
    located = locate(root, name, follow_links=follow_links)
    if is_uri(located):
        raise ClipReadError("unsupported", "records are read from local files only")
    with open(located, "rb") as file:
        file.seek(min(int(byte), os.fstat(file.fileno()).st_size))
        data = _next(file)
    if data is None:
        raise ClipReadError("damaged", f"there is no record at byte {byte}")
    return parse(data)


def records(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yields (byte, data) of every record of a file."""
    with open(path, "rb") as file:
        while True:
            at = file.tell()
            data = _next(file)
            if data is None:
                return
            yield at, data


def parse(data: bytes) -> Record:
    """Returns the record of a SequenceExample; ClipReadError if it is not as DMVR writes it."""
    try:
        return _parse(data)
    except (IndexError, UnicodeDecodeError, ZeroDivisionError, OverflowError) as error:
        raise ClipReadError("damaged", f"its features are not DMVR's: {error}") from error


def _parse(data: bytes) -> Record:
    try:
        example = SequenceExample.FromString(data)
    except Exception as error:  # protobuf's DecodeError, which its implementations name differently
        raise ClipReadError("damaged", f"is not a SequenceExample: {error}") from error
    lists = example.feature_lists.feature_list
    if PICTURES not in lists or not lists[PICTURES].feature:
        raise ClipReadError("damaged", f"has no {PICTURES!r}; it has: {', '.join(sorted(lists))}")
    frames = [f.bytes_list.value[0] for f in lists[PICTURES].feature]
    context = example.context.feature
    rate = ASSUMED_RATE
    if RATE in context and context[RATE].float_list.value:
        rate = context[RATE].float_list.value[0]
    times = np.arange(len(frames)) / rate
    if STAMPS in lists and len(lists[STAMPS].feature) == len(frames):
        stamps = np.array([f.int64_list.value[0] for f in lists[STAMPS].feature], np.float64)
        if (np.diff(stamps) <= 0).any():
            raise ClipReadError("damaged", f"its {STAMPS} do not grow")
        times = (stamps - stamps[0]) / 1e6
    last = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
    text = lambda key: [x.decode() for x in context[key].bytes_list.value] if key in context else []
    labels = list(context[LABEL].int64_list.value) if LABEL in context else []
    seconds = float(times[-1]) + last
    return Record(frames, times, seconds, labels, text(TEXT), "".join(text(KEY)))


def _next(file: Any) -> bytes | None:
    head = file.read(12)
    if not head:
        return None
    if len(head) < 12:
        raise ClipReadError("damaged", "ends within a record")
    (length,), (check,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
    if masked_crc(head[:8]) != check:
        raise ClipReadError("damaged", f"no record begins at byte {file.tell() - 12}")
    if length > os.fstat(file.fileno()).st_size:
        raise ClipReadError("damaged", "ends within a record")
    data, check = file.read(length), file.read(4)
    if len(data) < length or len(check) < 4:
        raise ClipReadError("damaged", "ends within a record")
    if masked_crc(data) != struct.unpack("<I", check)[0]:
        raise ClipReadError(
            "damaged", f"the checksum of the record before byte {file.tell()} is wrong"
        )
    return data


def masked_crc(data: bytes) -> int:
    """Returns CRC-32C, rotated and shifted as TFRecords store it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
