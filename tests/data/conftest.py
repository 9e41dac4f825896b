"""A folder of small numbered videos, and data sets prepared from it."""

import pytest

import vivit.dataprep.class_folders  # noqa: F401
from tests.data.films import film
from vivit.data.pipeline import eval_batches, train_batches
from vivit.data.settings import DataSettings, ViewsSettings
from vivit.data.sources import open_split
from vivit.dataprep.convert import convert
from vivit.dataprep.prepare import prepare_manifest
from vivit.dataprep.staging import Spec

FORMATS = ("h264", "jpeg", "raw")


def opened(name, root, *, split, label, **fields):
    """A split of a data set; fields: of DataSettings."""
    return open_split(DataSettings(str(name), str(root), label, **fields), split)


def load(split, *, frames, seed=0, start=0, process=0, processes=1, **fields):
    """Batches of training; fields: of DataSettings."""
    by = {"frames": frames, "seed": seed, "start": start, "process": process}
    return train_batches(DataSettings(**fields), split, processes=processes, **by)


def load_views(split, *, frames, views=1, process=0, processes=1, **fields):
    """Batches of an evaluation; fields: of DataSettings."""
    settings = DataSettings(views=ViewsSettings(temporal=views), **fields)
    return eval_batches(settings, split, frames=frames, process=process, processes=processes)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """16 videos of two classes in three splits, each of another length; and its manifest."""
    root = tmp_path_factory.mktemp("videos")
    lengths = iter(range(30, 60))
    for split, count in (("train", 5), ("val", 2), ("test", 1)):
        for name in ("up", "down"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                film(
                    root / split / name / f"{i}.mp4",
                    frames=next(lengths),
                    options={"bf": "2", "g": "12"},
                )
    convert("folder", root, [], root / "films.csv")
    return root


@pytest.fixture(scope="session")
def prepared(videos, tmp_path_factory):
    """A data root with the data sets h264, jpeg and raw."""
    root = tmp_path_factory.mktemp("prepared")
    for name in FORMATS:
        prepare_manifest(videos / "films.csv", root, name=name, spec=Spec(format=name))
    return root
