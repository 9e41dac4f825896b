"""The import floors of docs/design.md, and the lengths of files, read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module has the floor of its longest prefix here.
FLOORS = {
    "vivit.axes": 0,
    "vivit.cli": 0,
    "vivit.config": 0,
    "vivit.io": 0,
    "vivit.lazy": 0,
    "vivit.mesh": 0,
    "vivit.processes": 0,
    "vivit.records": 0,
    "vivit.registry": 0,
    "vivit.tasks.settings": 0,
    "vivit.schema": 0,
    "vivit.settings": 0,
    "vivit.upgrade": 0,
    # The schemas of a config stand next to their owners, and below them.
    "vivit.data.settings": 0,
    "vivit.model.settings": 0,
    "vivit.model.upgrade": 0,
    "vivit.pretrained.settings": 0,
    "vivit": 1,  # the package's names: build and ViViT
    "vivit.attention": 1,
    "vivit.data": 1,
    "vivit.dataprep": 1,
    "vivit.model": 1,
    "vivit.objective": 1,
    "vivit.optim": 1,
    "vivit.optimizers": 1,
    "vivit.pretraining": 1,
    "vivit.ramps": 1,
    "vivit.schedules": 1,
    "vivit.tasks": 1,
    "vivit.checkpoint": 2,
    "vivit.chips": 2,
    "vivit.collectives": 2,
    "vivit.cost": 1,
    "vivit.parallel": 2,
    "vivit.pretrained": 2,
    "vivit.step": 2,
    "vivit.evaluate": 3,
    "vivit.metrics_log": 3,
    "vivit.predict": 3,
    "vivit.probe": 4,
    "vivit.encoder": 4,
    "vivit.features": 4,
    "vivit.predictions": 3,
    "vivit.preemption": 3,
    "vivit.profiling": 3,
    "vivit.results": 3,
    "vivit.quicktest": 3,
    "vivit.run": 3,
    "vivit.train": 3,
    "vivit.analysis": 4,
    "vivit.compile": 4,
    "vivit.describe": 4,
    "vivit.targets": 4,
}
# vivit.pretrained reads Flax's msgpack and flattens trees.
FLAX = ("vivit.model", "vivit.pretraining", "vivit.pretrained")
MESH_AXES = ("data", "fsdp", "tensor", "sequence")


def files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in files("vivit")}
by_file = pytest.mark.parametrize("path", files("vivit"), ids=lambda p: str(p.relative_to(ROOT)))


def is_type_checking(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def statements(node):
    """All nodes below a node that run; imports for type checkers alone do not."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from statements(child)


def imports(path):
    """The full names that a file imports, functions' own imports among them."""
    names = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inner & MODULES.keys()
            names |= modules
            if modules != inner:
                names.add(node.module)
    return names


def floor(module):
    """The floor of a module; a module of the package that has none is an error."""
    parts = module.split(".")
    if parts == ["vivit"] or ".".join(parts[:2]) in FLOORS:
        prefixes = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
        return next(FLOORS[prefix] for prefix in prefixes if prefix in FLOORS)
    raise AssertionError(f"{module} has no floor; give it one in FLOORS and in docs/design.md")


def climbs(path):
    """Imports of a file from higher floors."""
    module = module_of(path)
    for name in sorted(imports(path)):
        if name.split(".")[0] == "vivit" and floor(name) > floor(module):
            yield f"{module} (floor {floor(module)}) imports {name} (floor {floor(name)})"


@by_file
def test_a_file_imports_no_higher_floor(path):
    assert not list(climbs(path))


def cycle(graph):
    """The nodes of one cycle of a graph, or []."""
    state = {}

    def visit(node, trail):
        state[node] = "open"
        for other in sorted(graph.get(node, ())):
            if state.get(other) == "open":
                return [*trail[trail.index(other) :], other]
            if other not in state and (found := visit(other, [*trail, other])):
                return found
        state[node] = "done"
        return []

    for node in sorted(graph):
        if node not in state and (found := visit(node, [node])):
            return found
    return []


def test_no_imports_in_a_circle():
    """File by file, inside data/ and dataprep/ too."""
    graph = {module: imports(path) & MODULES.keys() for module, path in MODULES.items()}
    # `import vivit` gives lazy names, and vivit.model's names are lazy too.
    lazy = {"vivit", "vivit.model"}
    graph = {m: set() if m in lazy else {n for n in ns if n != m} for m, ns in graph.items()}
    assert cycle(graph) == []


def test_a_circle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("import vivit.train", "vivit/model/block.py"),
        ("from vivit import run", "vivit/attention/patterns.py"),
        ("from vivit.data import pipeline", "vivit/data/settings.py"),
    ],
)
def test_the_check_finds_what_it_should(tmp_path, monkeypatch, source, place):
    monkeypatch.setattr("tests.test_floors.ROOT", tmp_path)
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert list(climbs(path))


@by_file
def test_only_the_model_and_pretrained_import_flax(path):
    uses = any(name.split(".")[0] == "flax" for name in imports(path))
    assert not uses or module_of(path).startswith(FLAX)


def test_configs_load_no_jax():
    command = (
        "import sys, configs.ablate_attention as c; c.get_config(); print('jax' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_training_loads_nothing_that_prepares_data_or_draws():
    command = "import sys, vivit.train; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "vivit.train" in loaded
    assert not {m for m in loaded if m.startswith(("vivit.dataprep", "vivit.analysis"))}
    assert not loaded & {"matplotlib", "pyarrow", "av", "vivit.data.decode"}
    assert not {m for m in loaded if m.startswith("vivit.pretrained.hf_")}


def test_experiments_open_runs_and_reach_the_rest_by_the_command_line():
    allowed = {"vivit.cli", "vivit.config", "vivit.io", "vivit.run", "vivit.settings"}
    for path in files("experiments"):
        names = imports(path)
        assert not {n.split(".")[0] for n in names} & {"jax", "flax"}, path
        assert {n for n in names if n.startswith("vivit")} <= allowed, path


def test_analysis_never_imports_train_and_data_never_a_model_or_its_preparation():
    for path in files("vivit/analysis"):
        assert "vivit.train" not in imports(path), path
    for path in files("vivit/data"):
        if path.name != "__main__.py":  # the command line of vivit.dataprep
            banned = ("vivit.model", "vivit.attention", "vivit.dataprep")
            assert not any(name.startswith(banned) for name in imports(path)), path


@pytest.mark.parametrize(
    "path", files("vivit", "experiments", "configs"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_file_is_too_long(path):
    length = len(path.read_text().splitlines())
    assert length <= (60 if path.is_relative_to(ROOT / "configs") else 400)


def axis_strings(path):
    """Strings that are names of mesh axes in sharding specs, rules or collectives of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        calls = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1]
        if calls in ("PartitionSpec", "P", "make_mesh", "psum", "ppermute", "all_to_all", "Mesh"):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
            found += [n.value for n in inner if n.value in MESH_AXES]
        elif isinstance(node, ast.Constant) and node.value == "fsdp":
            found.append(node.value)
    return found


@by_file
def test_mesh_axes_are_named_once(path):
    if path.name == "mesh.py":
        return
    assert not axis_strings(path)


def test_a_second_name_of_a_mesh_axis_is_found(tmp_path):
    path = tmp_path / "other.py"
    path.write_text('spec = PartitionSpec(("data", None), "sequence")')
    assert sorted(axis_strings(path)) == ["data", "sequence"]
