"""The README and docs/: what they list is registered, what they show is drawn, links exist."""

import importlib.util
import re

import pytest

from tests.conftest import ROOT
from tests.test_readme import python_blocks
from vivit.analysis.attribution import METHODS
from vivit.analysis.summaries import SUMMARIES
from vivit.attention import KERNELS, PATTERNS
from vivit.attention.reductions import REDUCTIONS
from vivit.data.randaugment import OPERATIONS
from vivit.data.sampling import PAD_MODES, SAMPLINGS
from vivit.data.views import AVERAGES
from vivit.dataprep import dmvr, published  # noqa: F401  they register formats
from vivit.dataprep.convert import FORMATS
from vivit.dataprep.encode import ENCODERS
from vivit.model.block import BLOCKS
from vivit.model.readout import READOUTS
from vivit.model.settings import FAMILIES
from vivit.pretrained import SOURCES
from vivit.pretrained.choices import CLASS_TOKENS, HEADS, INFLATIONS, TIME_ATTENTIONS
from vivit.pretrained.resize import RESIZES
from vivit.pretrained.start import SEMANTIC_FIELDS
from vivit.pretrained.writers import WRITERS

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def script(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def attention():
    return script("attention")


@pytest.mark.parametrize("name", list(PATTERNS))
def test_pictures_are_drawn_from_the_patterns(attention, name):
    picture = (DOCS / "patterns" / f"{name}.svg").read_text()
    assert picture == attention.draw(name), "run python docs/attention.py"


def test_the_picture_of_the_readme_is_drawn_from_its_code(attention):
    name = attention.pattern_of_readme()
    try:
        picture = (DOCS / "patterns" / f"{name}.svg").read_text()
        assert picture == attention.draw(name), "run python docs/attention.py"
        assert f"docs/patterns/{name}.svg" in (ROOT / "README.md").read_text()
        t, y, x = attention.GRID
        row = attention.QUERY[1]
        expected = [(i, row, j) for i in range(t) for j in range(x)]
        assert list(zip(*attention.visible(name)[0].nonzero(), strict=True)) == expected
    finally:
        PATTERNS._items.pop(name)


def test_tables_are_those_of_the_measurements(attention):
    assert attention.pattern_table() in (DOCS / "attention.md").read_text()
    for page, suites in attention.PAGES.items():
        for suite in suites:
            table = (DOCS / "benchmark" / f"{suite}.md").read_text().strip()
            assert table in (DOCS / page).read_text(), f"run python docs/attention.py: {suite}"


def test_keys_of_configs_are_those_of_the_schema(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    page = (DOCS / "configs.md").read_text()
    assert page == script("keys").page(page), "run python docs/keys.py"


@pytest.mark.parametrize(
    ("page", "registries"),
    [
        ("attention.md", (PATTERNS, KERNELS, REDUCTIONS, FAMILIES, BLOCKS)),
        (
            "pretrained.md",
            (SOURCES, HEADS, INFLATIONS, RESIZES, TIME_ATTENTIONS, CLASS_TOKENS, SEMANTIC_FIELDS),
        ),
        ("data.md", (FORMATS, ENCODERS, SAMPLINGS, PAD_MODES, OPERATIONS, AVERAGES)),
        ("configs.md", (READOUTS,)),
        ("analysis.md", (SUMMARIES, METHODS)),
    ],
)
def test_everything_that_has_a_name_is_on_its_page(page, registries):
    text = (DOCS / page).read_text()
    for registry in registries:
        for name in registry:
            assert re.search(rf'[`"]{name}[`"(]', text), name


def test_every_format_of_export_is_on_the_page_of_weights():
    text = (DOCS / "pretrained.md").read_text()
    for name in WRITERS:
        assert name in text, name


def test_the_python_of_the_page_on_attention_runs():
    names = {}
    for block in python_blocks(DOCS / "attention.md"):
        exec(block, names)
    assert names["model"].config.stages[0].reduction.name == "token_merging"


def test_the_python_of_the_first_page_runs():
    names = {}
    for block in python_blocks(DOCS / "index.md"):
        exec(block, names)
    assert names["logits"].shape == (2, 10)


def test_the_config_of_the_page_on_configs_is_one():
    from vivit.config import as_config

    names = {}
    (block,) = python_blocks(DOCS / "configs.md")
    exec(block, names)
    config = as_config(names["get_config"]())
    assert (config.model.family, config.optim.schedule) == ("joint", "cosine(floor=1e-5)")


def test_the_sweep_of_the_page_on_experiments_is_one(tmp_path):
    from experiments.launch import load_sweep

    (block,) = python_blocks(DOCS / "experiments.md")
    (tmp_path / "my_sweep.py").write_text(block)
    assert len(load_sweep(str(tmp_path / "my_sweep.py"), "kernel")) == 10


def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    words = [re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip() for heading in headings]
    return {re.sub(r"\s", "-", text.lower()) for text in words}


@by_page
def test_links_and_pictures_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in found:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@by_page
def test_prose_is_wrapped(page):
    if page.name == "design.md":
        pytest.skip("is wrapped at 105 columns")
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "`python", "<", "!["))]
    assert [line for line in lines if len(line) > 100] == []


def test_descriptions_are_read_from_docstrings():
    from vivit.schema import described

    text = """What it is.

    one, two: numbers, as
        they are. three: a word.
    four: is not listed.

    Raises ValueError."""
    rest, found = described(text, ["one", "two", "three"])
    assert found["one"] == found["two"] == "numbers, as they are."
    assert found["three"].startswith("a word.")
    assert rest == "What it is.\n\nRaises ValueError."


def test_pages_of_mkdocs_exist():
    listed = re.findall(r"^  - .*: (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))
