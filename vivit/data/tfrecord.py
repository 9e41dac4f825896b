"""DMVR's TFRecords of SequenceExamples (Scenic's input format), read without TensorFlow.

A record is 8 bytes of length, 4 of their checksum, the data, and 4 of its checksum; checksums are
masked CRC-32C. A manifest names a record by its place in the file: `train-00000.tfrecord#BYTE`.
"""

import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from vivit.data.convert import FORMATS, Converted, Entry, read_class_names, split_of
from vivit.data.decode import Damaged
from vivit.data.files import is_uri, locate
from vivit.data.manifest import UNLABELLED, Classes, mirror_names, raise_all

# The keys that DMVR writes; its feature lists of encoded JPEG pictures and their times.
FRAMES, STAMPS = "image/encoded", "image/timestamp"  # stamps in microseconds
LABEL, TEXT, KEY, RATE = "clip/label/index", "clip/label/text", "clip/key", "image/frame_rate"
ASSUMED_RATE = 25.0  # frames a second, where a record tells nothing
_PLACE = re.compile(r"(.+)#(\d+)")


class Record(NamedTuple):
    """A clip of a SequenceExample: its encoded frames and their times from 0, in seconds."""

    frames: list[bytes]
    times: np.ndarray
    seconds: float
    labels: list[int]
    texts: list[str]
    key: str


def is_record(path: str) -> bool:
    return _PLACE.fullmatch(path) is not None


def read_record(root: str | Path, path: str) -> Record:
    """The record that a manifest's path names. Damaged if its checksum is wrong."""
    match = _PLACE.fullmatch(path)
    assert match is not None
    place = locate(root, match[1])
    if is_uri(place):
        raise Damaged("unsupported", "records are read from local files only")
    with open(place, "rb") as file:
        file.seek(min(int(match[2]), os.fstat(file.fileno()).st_size))
        data = _next(file)
    if data is None:
        raise Damaged("damaged", f"there is no record at byte {match[2]}")
    return parse(data)


def records(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(byte, data) of every record of a file."""
    with open(path, "rb") as file:
        while True:
            at = file.tell()
            data = _next(file)
            if data is None:
                return
            yield at, data


def parse(data: bytes) -> Record:
    """A SequenceExample as DMVR lays it out. Damaged where it is not."""
    try:
        return _parse(data)
    except (IndexError, UnicodeDecodeError, ZeroDivisionError, OverflowError) as error:
        raise Damaged("damaged", f"its features are not DMVR's: {error}") from error


def _parse(data: bytes) -> Record:
    example = _sequence_example()()
    try:
        example.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, which its implementations name differently
        raise Damaged("damaged", f"is no SequenceExample: {error}") from error
    lists = example.feature_lists.feature_list
    if FRAMES not in lists or not lists[FRAMES].feature:
        raise Damaged("damaged", f"has no {FRAMES!r}; it has: {', '.join(sorted(lists))}")
    frames = [f.bytes_list.value[0] for f in lists[FRAMES].feature]
    context = example.context.feature
    rate = ASSUMED_RATE
    if RATE in context and context[RATE].float_list.value:
        rate = context[RATE].float_list.value[0]
    times = np.arange(len(frames)) / rate
    if STAMPS in lists and len(lists[STAMPS].feature) == len(frames):
        stamps = np.array([f.int64_list.value[0] for f in lists[STAMPS].feature], np.float64)
        if (np.diff(stamps) <= 0).any():
            raise Damaged("damaged", f"its {STAMPS} do not grow")
        times = (stamps - stamps[0]) / 1e6
    last = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
    text = lambda key: [x.decode() for x in context[key].bytes_list.value] if key in context else []
    labels = list(context[LABEL].int64_list.value) if LABEL in context else []
    seconds = float(times[-1]) + last
    return Record(frames, times, seconds, labels, text(TEXT), "".join(text(KEY)))


@FORMATS.register("dmvr")
def dmvr(annotations: Sequence[Path], *, videos: str | Path, classes: str = "") -> Converted:
    """DMVR's .tfrecord files: give them as annotations, and as videos the folder that they are in.

    classes: names in the order of the numbers, where the records tell only numbers.
    """
    entries, problems, texts, largest = [], [], {}, -1
    root = Path(videos).resolve()
    for path in annotations:
        place = path.resolve()
        if not place.is_relative_to(root):
            raise ValueError(f"{str(path)!r} is not below {str(videos)!r}")
        try:
            for at, data in records(place):
                record = parse(data)
                if len(record.labels) > 1:
                    problems.append(f"{path.name}#{at}: {len(record.labels)} labels, not one")
                label = record.labels[0] if record.labels else UNLABELLED
                largest = max(largest, label)
                texts |= dict(zip(record.labels, record.texts, strict=False))
                name = f"{place.relative_to(root)}#{at}"
                id, split = record.key or name, split_of(path)
                entries.append(Entry((name,), split, {"label": label}, id=id, is_record=True))
        except Damaged as error:
            problems.append(f"{path.name}: {error}")
    raise_all("dmvr", problems)
    if classes:
        names = read_class_names(classes)
    else:
        names = [texts.get(i, str(i)) for i in range(largest + 1)]
    return Converted(entries, {"label": Classes(tuple(names), mirror_names(names))})


def _next(file: Any) -> bytes | None:
    head = file.read(12)
    if not head:
        return None
    if len(head) < 12:
        raise Damaged("damaged", "ends within a record")
    (length,), (check,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
    if masked_crc(head[:8]) != check:
        raise Damaged("damaged", f"no record begins at byte {file.tell() - 12}")
    if length > os.fstat(file.fileno()).st_size:
        raise Damaged("damaged", "ends within a record")
    data, check = file.read(length), file.read(4)
    if len(data) < length or len(check) < 4:
        raise Damaged("damaged", "ends within a record")
    if masked_crc(data) != struct.unpack("<I", check)[0]:
        raise Damaged("damaged", f"the checksum of the record before byte {file.tell()} is wrong")
    return data


def masked_crc(data: bytes) -> int:
    """CRC-32C, turned and shifted as TFRecords store it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _sequence_example() -> Any:
    """The protocol buffer class of tensorflow/core/example/example.proto, made from its fields."""
    name = "vivit.SequenceExample"
    pool = descriptor_pool.Default()
    try:
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    except KeyError:
        pass
    file = descriptor_pb2.FileDescriptorProto(name="vivit_sequence.proto", package="vivit")
    field = descriptor_pb2.FieldDescriptorProto

    def message(parent: Any, title: str, *fields: tuple) -> Any:
        new = parent.add(name=title)
        for number, (key, kind, label) in enumerate(fields, start=1):
            added = new.field.add(name=key, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".vivit.{kind}"
            else:
                added.type = kind
        return new

    def mapping(parent: Any, title: str, key: str, of: str) -> None:
        entry = "".join(part.capitalize() for part in key.split("_")) + "Entry"
        new = message(parent, title, (key, f"{title}.{entry}", field.LABEL_REPEATED))
        pair = message(
            new.nested_type, entry,
            ("key", field.TYPE_STRING, field.LABEL_OPTIONAL), ("value", of, field.LABEL_OPTIONAL),
        )  # fmt: skip
        pair.options.map_entry = True

    top, one = file.message_type, field.LABEL_OPTIONAL
    message(top, "BytesList", ("value", field.TYPE_BYTES, field.LABEL_REPEATED))
    message(top, "FloatList", ("value", field.TYPE_FLOAT, field.LABEL_REPEATED))
    message(top, "Int64List", ("value", field.TYPE_INT64, field.LABEL_REPEATED))
    message(
        top, "Feature",
        ("bytes_list", "BytesList", one), ("float_list", "FloatList", one),
        ("int64_list", "Int64List", one),
    )  # fmt: skip
    message(top, "FeatureList", ("feature", "Feature", field.LABEL_REPEATED))
    mapping(top, "Features", "feature", "Feature")
    mapping(top, "FeatureLists", "feature_list", "FeatureList")
    message(
        top, "SequenceExample",
        ("context", "Features", one), ("feature_lists", "FeatureLists", one),
    )  # fmt: skip
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
