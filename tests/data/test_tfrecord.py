"""DMVR's TFRecords, made here byte by byte, read without TensorFlow."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tests.data.films import number_of, picture
from vivit.data import tfrecord
from vivit.data.convert import convert
from vivit.data.decode import Damaged
from vivit.data.prepare import prepare_manifest
from vivit.data.sources import open_split
from vivit.data.staging import Spec


def jpeg(number):
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "JPEG", quality=95)
    return file.getvalue()


def example(count, label=None, text=None, stamps=None):
    """A SequenceExample as DMVR's writers made them."""
    message = tfrecord._sequence_example()()
    for i in range(count):
        feature = message.feature_lists.feature_list["image/encoded"].feature.add()
        feature.bytes_list.value.append(jpeg(i))
        if stamps is not None:
            feature = message.feature_lists.feature_list["image/timestamp"].feature.add()
            feature.int64_list.value.append(stamps[i])
    if label is not None:
        message.context.feature["clip/label/index"].int64_list.value.append(label)
    if text is not None:
        message.context.feature["clip/label/text"].bytes_list.value.append(text.encode())
    return message.SerializeToString()


def write(path, examples):
    with open(path, "wb") as file:
        for data in examples:
            head = struct.pack("<Q", len(data))
            file.write(head + struct.pack("<I", tfrecord.masked_crc(head)))
            file.write(data + struct.pack("<I", tfrecord.masked_crc(data)))
    return path


def test_the_checksum_is_that_of_tfrecords():
    """CRC-32C's check value (RFC 3720, appendix B.4), then TensorFlow's mask."""
    import google_crc32c

    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert tfrecord.masked_crc(b"123456789") == 0xC78AB0E5


def test_records_become_a_data_set(tmp_path):
    root = tmp_path / "dmvr"
    root.mkdir()
    stamps = [0, 50_000, 130_000, 200_000, 260_000, 300_000]
    train = write(
        root / "train-00000-of-00001.tfrecord",
        [example(6, 1, "run", stamps), example(9, 0, "jump")],
    )
    test = write(root / "test-00000-of-00001.tfrecord", [example(7, 1, "run")])
    manifest, _ = convert("dmvr", root, [train, test], tmp_path / "m.csv")
    assert [clip.split for clip in manifest.clips] == ["train", "train", "test"]
    assert manifest.classes["label"].names == ("jump", "run")
    assert manifest.clips[0].path == "train-00000-of-00001.tfrecord#0"
    direct = open_split(str(tmp_path / "m.csv"), root, split="train", label="label")
    for name in ("jpeg", "h264", "raw"):
        prepare_manifest(tmp_path / "m.csv", tmp_path / name, root=root, spec=Spec(format=name))
        prepared = open_split("m", tmp_path / name, split="train", label="label")
        for data in (prepared, direct):
            footage = data.reader.open(0)
            np.testing.assert_allclose(footage.times, np.array(stamps) / 1e6, atol=2e-5)
            frames = footage.read(np.array([5, 0, 3]), None)
            assert [number_of(frame) for frame in frames] == [5, 0, 3]
            assert data.label_of(0) == 1
            assert len(data.reader.open(1).times) == 9


def test_damage_is_found(tmp_path):
    path = write(tmp_path / "train.tfrecord", [example(3, 0), example(3, 1)])
    data = bytearray(path.read_bytes())
    for place, told in ((2, "no record begins at byte 0"), (60, "checksum of the record")):
        broken = bytearray(data)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(Damaged, match=told):
            tfrecord.read_record(tmp_path, "train.tfrecord#0")
    path.write_bytes(data[:-6])
    with pytest.raises(ValueError, match="dmvr:\n  train.tfrecord: ends within a record"):
        convert("dmvr", tmp_path, [path], tmp_path / "m.csv")
    with pytest.raises(Damaged, match="no record begins"):
        tfrecord.read_record(tmp_path, "train.tfrecord#7")
    with pytest.raises(Damaged, match="is not below the data root"):
        tfrecord.read_record(tmp_path, "../train.tfrecord#0")
    empty = tfrecord._sequence_example()().SerializeToString()
    with pytest.raises(Damaged, match="has no 'image/encoded'"):
        tfrecord.parse(empty)
    keyless = tfrecord._sequence_example()()
    keyless.feature_lists.feature_list["image/encoded"].feature.add()
    with pytest.raises(Damaged, match="are not DMVR's"):
        tfrecord.parse(keyless.SerializeToString())
    head = struct.pack("<Q", 1 << 62)
    path.write_bytes(head + struct.pack("<I", tfrecord.masked_crc(head)))
    with pytest.raises(Damaged, match="ends within a record"):
        tfrecord.read_record(tmp_path, "train.tfrecord#0")
    with pytest.raises(Damaged, match="is no SequenceExample"):
        tfrecord.parse(b"\xff\xff\xff")
