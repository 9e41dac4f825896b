"""The import floors of docs/design.md, and the lengths of files, read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "vivit.axes": 0,
    "vivit.registry": 0,
    "vivit.config": 0,
    "vivit.attention": 1,
    "vivit.layers": 1,
    "vivit.pools": 1,
    "vivit.encoder": 1,
    "vivit.plan": 1,
    "vivit.model": 1,
    "vivit": 1,  # the package's own names: build and ViViT
    "vivit.data": 1,
    "vivit.objective": 1,
    "vivit.optim": 1,
    "vivit.parallel": 2,
    "vivit.checkpoint": 2,
    "vivit.cost": 2,
    "vivit.step": 2,
    "vivit.pretrained": 2,
    "vivit.evaluate": 3,
    "vivit.train": 3,
    "vivit.analysis": 4,
    "vivit.describe": 4,
    "vivit.benchmark": 4,
    "vivit.benchmark_data": 4,
}
ON_ONE_FLOOR = {  # the only imports between modules of one floor
    ("vivit.layers", "vivit.attention"),
    ("vivit.encoder", "vivit.attention"),
    ("vivit.pools", "vivit.layers"),
    ("vivit.encoder", "vivit.layers"),
    ("vivit.encoder", "vivit.pools"),
    ("vivit.plan", "vivit.attention"),
    ("vivit.plan", "vivit.encoder"),
    ("vivit.plan", "vivit.layers"),
    ("vivit.plan", "vivit.pools"),
    ("vivit.model", "vivit.attention"),
    ("vivit.model", "vivit.layers"),
    ("vivit.model", "vivit.encoder"),
    ("vivit.model", "vivit.plan"),
    ("vivit.model", "vivit.pools"),
    ("vivit", "vivit.model"),
    ("vivit.pretrained", "vivit.checkpoint"),
    ("vivit.pretrained", "vivit.cost"),
    ("vivit.train", "vivit.evaluate"),
}
FLAX = {"vivit.layers", "vivit.pools", "vivit.encoder", "vivit.model"}
FLAX |= {"vivit.pretrained"}  # reads Flax's msgpack, and flattens trees
LONGEST = {"vivit/train.py": 350}


def files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """The full names that a file imports, functions' own imports among them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


def unit(name):
    """The part of FLOORS that a module belongs to."""
    parts = name.split(".")
    return ".".join(parts[:2])


def unit_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return unit(".".join(part for part in parts if part != "__init__"))


def problems(path):
    own = unit_of(path)
    for name in imports(path):
        other = unit(name)
        if not other.startswith("vivit") or other == own:
            continue
        if FLOORS[other] > FLOORS[own]:
            yield f"{path.name} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[other]})"
        elif FLOORS[other] == FLOORS[own] and (own, other) not in ON_ONE_FLOOR and FLOORS[own] < 4:
            if FLOORS[own] > 0 and other != "vivit":
                yield f"{path.name} imports {name} of its own floor"


@pytest.mark.parametrize("path", files("vivit"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_lower_floors_only(path):
    assert not list(problems(path))


@pytest.mark.parametrize("path", files("vivit"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_layers_and_model_import_flax(path):
    assert unit_of(path) in FLAX or not any(n.split(".")[0] == "flax" for n in imports(path))


def test_configs_know_neither_jax_nor_vivit():
    for path in files("configs"):
        assert not {n.split(".")[0] for n in imports(path)} & {"jax", "flax", "vivit"}, path


def test_experiments_reach_vivit_by_its_command_line():
    for path in files("experiments"):
        assert not {n.split(".")[0] for n in imports(path)} & {"jax", "flax", "vivit"}, path


def test_analysis_never_imports_train_and_data_never_a_model():
    for path in files("vivit/analysis"):
        assert "vivit.train" not in imports(path), path
    for path in files("vivit/data"):
        assert not {"vivit.model", "vivit.layers", "vivit.attention", "vivit"} & imports(path), path


@pytest.mark.parametrize(
    "path", files("vivit", "experiments", "configs"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_file_is_too_long(path):
    name = str(path.relative_to(ROOT))
    length = len(path.read_text().splitlines())
    assert length <= (60 if name.startswith("configs/") and "common" not in name else 400)
    assert length <= LONGEST.get(name, 400)


def test_only_parallel_names_mesh_axes():
    for path in files("vivit"):
        if path.name not in ("parallel.py", "kernels.py"):
            assert '"fsdp"' not in path.read_text(), path


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("import vivit.train", "vivit/model.py"),
        ("from vivit.model import build", "vivit/attention/patterns.py"),
        ("from vivit.data import sources", "vivit/optim.py"),
    ],
)
def test_the_check_finds_what_it_should(tmp_path, monkeypatch, source, place):
    monkeypatch.setattr("tests.test_floors.ROOT", tmp_path)
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert list(problems(path))
