"""A folder of small numbered videos, and data sets prepared from it."""

import pytest

import vivit.data.published  # noqa: F401
from tests.data.films import film
from vivit.data.convert import convert
from vivit.data.prepare import prepare_manifest
from vivit.data.staging import Spec

FORMATS = ("h264", "jpeg", "raw")


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
