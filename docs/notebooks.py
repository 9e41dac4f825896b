"""python docs/notebooks.py RUN RUN2: runs the notebooks and writes them as docs/notebooks/*.md.

RUN and RUN2 are runs of configs/moving_digits.py, the second one with a joint encoder.
"""

import argparse
import base64
import os
import shutil
from pathlib import Path
from typing import Any

import jupytext
import nbclient

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs=2, metavar="RUN")
    runs = [str(Path(run).absolute()) for run in parser.parse_args().runs]
    os.environ |= {"VIVIT_RUN": runs[0], "VIVIT_RUN2": runs[1], "VIVIT_WEIGHTS": runs[0]}
    out = ROOT / "docs/notebooks"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        notebook = jupytext.read(path)
        client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3")
        client.execute(cwd=str(ROOT / "notebooks"))
        pictures: dict[str, bytes] = {}
        parts = [part for cell in notebook.cells for part in _rendered(cell, path.stem, pictures)]
        for name, picture in pictures.items():
            (out / name).write_bytes(picture)
        (out / f"{path.stem}.md").write_text("\n\n".join(parts) + "\n")
        print(out / f"{path.stem}.md")


def _rendered(cell: Any, stem: str, pictures: dict[str, bytes]) -> list[str]:
    """Returns the parts of a page that a cell makes, and adds its pictures by their file names."""
    if cell.cell_type == "markdown":
        return [cell.source]
    parts = [f"```python\n{cell.source}\n```"]
    for output in cell.outputs:
        if output.get("name") == "stdout":
            parts.append(f"```text\n{output['text'].rstrip()}\n```")
        if "image/png" in output.get("data", {}):
            name = f"{stem}_{len(pictures)}.png"
            pictures[name] = base64.b64decode(output["data"]["image/png"])
            parts.append(f"![output]({name})")
    return parts


if __name__ == "__main__":
    main()
