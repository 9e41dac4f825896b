"""docs/attention.md shows every pattern as it is."""

import importlib.util
import re

import pytest

from tests.conftest import ROOT
from vivit.attention import KERNELS, PATTERNS
from vivit.attention.reduction import REDUCTIONS
from vivit.data import published, tfrecord  # noqa: F401  they register formats
from vivit.data.convert import FORMATS
from vivit.data.encode import WRITERS
from vivit.data.randaugment import OPERATIONS
from vivit.data.sampling import KINDS, SHORT
from vivit.data.views import AVERAGES
from vivit.plan import FAMILIES
from vivit.pretrained import SOURCES
from vivit.pretrained.adapt import CLASS_TOKEN, TIME_ATTENTION
from vivit.pretrained.resize import INFLATIONS, RESIZES
from vivit.pretrained.start import MEANING

DOCS = ROOT / "docs"
PAGE = (DOCS / "attention.md").read_text()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("docs_attention", DOCS / "attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", list(PATTERNS))
def test_pictures_are_drawn_from_the_patterns(script, name):
    assert (DOCS / "patterns" / f"{name}.svg").read_text() == script.draw(name), (
        "run python docs/attention.py"
    )


def test_tables_are_those_of_the_measurements(script):
    assert script.pattern_table() in PAGE


def test_every_source_and_choice_is_on_the_page_of_weights():
    page = (DOCS / "pretrained.md").read_text()
    for names in (SOURCES, INFLATIONS, RESIZES, TIME_ATTENTION, CLASS_TOKEN, MEANING):
        for name in names:
            assert f"`{name}`" in page, name


def test_every_format_and_operation_is_on_the_page_of_data():
    page = (DOCS / "data.md").read_text()
    for names in (FORMATS, WRITERS, KINDS, SHORT, OPERATIONS, AVERAGES):
        for name in names:
            assert f"`{name}`" in page or f'"{name}"' in page, name


def test_everything_that_has_a_name_is_on_the_page():
    for registry in (PATTERNS, KERNELS, REDUCTIONS, FAMILIES):
        for name in registry:
            assert re.search(rf"`{name}[`(]", PAGE), f"{registry.kind} {name}"
