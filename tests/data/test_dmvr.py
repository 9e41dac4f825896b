"""DMVR's TFRecords, made here byte by byte, read without TensorFlow."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

import vivit.dataprep.dmvr  # noqa: F401
from tests.data.conftest import opened
from tests.data.films import number_of, picture
from vivit.data import dmvr
from vivit.data.video import ClipReadError
from vivit.dataprep.convert import convert
from vivit.dataprep.prepare import prepare_manifest
from vivit.dataprep.staging import Spec


def jpeg(number):
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "JPEG", quality=95)
    return file.getvalue()


def example(count, label=None, text=None, stamps=None):
    """A SequenceExample as DMVR's writers made them."""
    message = dmvr.SequenceExample()
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
            file.write(head + struct.pack("<I", dmvr.masked_crc(head)))
            file.write(data + struct.pack("<I", dmvr.masked_crc(data)))
    return path


def test_the_checksum_is_that_of_tfrecords():
    """CRC-32C's check value (RFC 3720, appendix B.4), then TensorFlow's mask."""
    import google_crc32c

    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert dmvr.masked_crc(b"123456789") == 0xC78AB0E5


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
    direct = opened(str(tmp_path / "m.csv"), root, split="train", label="label")
    for name in ("jpeg", "h264", "raw"):
        prepare_manifest(tmp_path / "m.csv", tmp_path / name, root=root, spec=Spec(format=name))
        prepared = opened("m", tmp_path / name, split="train", label="label")
        for data in (prepared, direct):
            video = data.reader.open(0)
            np.testing.assert_allclose(video.times, np.array(stamps) / 1e6, atol=2e-5)
            frames = video.read(np.array([5, 0, 3]), None)
            assert [number_of(frame) for frame in frames] == [5, 0, 3]
            assert data.labels_of(0) == {"label": 1}
            assert len(data.reader.open(1).times) == 9


def test_damage_is_found(tmp_path):
    path = write(tmp_path / "train.tfrecord", [example(3, 0), example(3, 1)])
    data = bytearray(path.read_bytes())
    for place, told in ((2, "no record begins at byte 0"), (60, "checksum of the record")):
        broken = bytearray(data)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(ClipReadError, match=told):
            dmvr.read_record(tmp_path, "train.tfrecord#0")
    path.write_bytes(data[:-6])
    with pytest.raises(ValueError, match="dmvr:\n  train.tfrecord: ends within a record"):
        convert("dmvr", tmp_path, [path], tmp_path / "m.csv")
    with pytest.raises(ClipReadError, match="no record begins"):
        dmvr.read_record(tmp_path, "train.tfrecord#7")
    with pytest.raises(ClipReadError, match="is not below the data root"):
        dmvr.read_record(tmp_path, "../train.tfrecord#0")
    empty = dmvr.SequenceExample().SerializeToString()
    with pytest.raises(ClipReadError, match="has no 'image/encoded'"):
        dmvr.parse(empty)
    keyless = dmvr.SequenceExample()
    keyless.feature_lists.feature_list["image/encoded"].feature.add()
    with pytest.raises(ClipReadError, match="are not DMVR's"):
        dmvr.parse(keyless.SerializeToString())
    head = struct.pack("<Q", 1 << 62)
    path.write_bytes(head + struct.pack("<I", dmvr.masked_crc(head)))
    with pytest.raises(ClipReadError, match="ends within a record"):
        dmvr.read_record(tmp_path, "train.tfrecord#0")
    with pytest.raises(ClipReadError, match="is not a SequenceExample"):
        dmvr.parse(b"\xff\xff\xff")
