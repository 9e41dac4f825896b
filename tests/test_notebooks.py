"""The notebooks run on a tiny run, and their two halves are the same."""

from pathlib import Path

import jupytext
import nbclient
import pytest

from tests.conftest import ROOT
from vivit.train import train

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.fixture(scope="module")
def joint_run(tmp_path_factory, tiny_config):
    workdir = tmp_path_factory.mktemp("runs") / "joint"
    train(tiny_config("--config.model.family=joint", "--config.train.steps=2"), workdir)
    return workdir


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tiny_run, joint_run, monkeypatch):
    for name, run in (("RUN", tiny_run), ("RUN2", joint_run), ("WEIGHTS", tiny_run)):
        monkeypatch.setenv(f"VIVIT_{name}", str(run))
    monkeypatch.delenv("VIVIT_VIDEO", raising=False)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(ROOT / "notebooks"))
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    written = "".join(o["text"] for o in outputs if o.get("name") == "stderr")
    assert "Warning" not in written  # progress bars are written there too


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_both_halves_have_the_same_cells(path):
    paired = jupytext.read(path.with_suffix(".ipynb"))
    cells = [(c.cell_type, c.source) for c in jupytext.read(path).cells]
    assert cells == [(c.cell_type, c.source) for c in paired.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_thin(path):
    from tests.test_floors import imports

    modules = [name for name in imports(Path(path)) if name.startswith("vivit")]
    allowed = ("vivit.analysis", "vivit.pretrained")
    assert all(name == "vivit" or name.startswith(allowed) for name in modules)
