"""A data set as TFDS's own builders write it: features.Video, which asks for TensorFlow."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import naming
from tensorflow_datasets.core import splits as splits_lib

from tests.data.conftest import load, opened
from tests.data.films import number_of
from tests.data.test_dmvr import jpeg

VIDEO = "tensorflow_datasets.core.features.video_feature.Video"


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory):
    """Written with a sequence of images in the place of the video, which is what a Video is."""
    root = tmp_path_factory.mktemp("tfds")
    folder = root / "ucf101" / "ucf101_1" / "2.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "video": tfds.features.Sequence(
                tfds.features.Image(shape=(64, 96, 3), encoding_format="jpeg")
            ),
            "label": tfds.features.ClassLabel(names=["Archery", "Punch"]),
        }
    )

    class Ucf101(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "ucf101"
        VERSION = tfds.core.Version("2.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {}

        def _generate_examples(self):
            yield from ()

    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name="ucf101", split="train", filetype_suffix="array_record"
    )
    writer = array_record_module.ArrayRecordWriter(
        str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1"
    )
    for i in range(4):
        frames = [jpeg(k) for k in range(10 + i)]
        writer.write(features.serialize_example({"video": {"": frames} and frames, "label": i % 2}))
    writer.close()
    info = Ucf101(data_dir=root, file_format="array_record").info
    info.set_splits(
        splits_lib.SplitDict(
            [
                splits_lib.SplitInfo(
                    name="train", shard_lengths=[4], num_bytes=1, filename_template=template
                )
            ]
        )
    )
    info.write_to_directory(folder)
    # What the catalogue's builder writes for a video.
    path = folder / "features.json"
    written = json.loads(path.read_text())
    video = written["featuresDict"]["features"]["video"]
    image = video.pop("sequence")["feature"]["image"]
    shape = {"dimensions": ["-1", *image["shape"]["dimensions"]]}
    video["pythonClassName"] = VIDEO
    video["video"] = {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"}
    path.write_text(json.dumps(written))
    return root


def test_it_is_read_by_name_without_tensorflow(ucf101):
    data = opened("ucf101", ucf101, split="train", label="label")
    assert len(data) == 4
    assert data.class_names == ("Archery", "Punch")
    assert (data.largest, data.smallest) == ((64, 96), 64)
    video = data.reader.open(2)
    assert len(video.times) == 12
    numbers = [11, 0, 5]
    assert [number_of(x) for x in video.read(np.array(numbers), None)] == numbers
    assert [data.labels_of(i)["label"] for i in range(4)] == [0, 1, 0, 1]
    batch = next(load(data, frames=4, batch_size=4))
    assert batch["clips"].shape == (4, 4, 64, 96, 3)
    assert "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match="ucf101 has no label 'verb'; it has: label"):
        opened("ucf101", ucf101, split="train", label="verb")
