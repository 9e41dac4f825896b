"""The notebooks run on a tiny run, and their two halves are the same."""

from pathlib import Path

import jupytext
import nbclient
import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tiny_run, monkeypatch):
    monkeypatch.setenv("VIVIT_RUN", str(tiny_run))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(ROOT / "notebooks"))
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_both_halves_have_the_same_cells(path):
    paired = jupytext.read(path.with_suffix(".ipynb"))
    cells = [(c.cell_type, c.source) for c in jupytext.read(path).cells]
    assert cells == [(c.cell_type, c.source) for c in paired.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_thin(path):
    from tests.test_floors import imports

    modules = [name for name in imports(Path(path)) if name.startswith("vivit")]
    assert all(name == "vivit" or name.startswith("vivit.analysis") for name in modules)
