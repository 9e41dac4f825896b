"""python docs/attention.py: draws every pattern and fills the tables of docs/attention.md.

Pictures are drawn from the patterns themselves, that of the README from the README's code, and
measured costs come from docs/benchmark/.
"""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vivit.attention import PATTERNS
from vivit.attention.kernels import dense

DOCS = Path(__file__).parent
GRID = (3, 6, 6)  # time steps, rows, columns of the pictures
QUERY = (1, 2, 3)
CELL, GAP = 7, 6
PAGES = {  # which measurements of docs/benchmark/ each page has
    "attention.md": ("lengths", "short", "compile", "accelerator_h100", "kernels_h100"),
    "devices.md": ("devices",),
    "data.md": ("data",),
    "pretrained.md": ("weights",),
}

# The options that the pictures are drawn with, where the default is too large for them.
OPTIONS = {"window": "window(3, 3, 3)", "neighbourhood": "neighbourhood(3, 3, 3)"}
COST = {  # numbers of scores of one head; S = Y·X
    "joint": "(T·S)²",
    "space": "T·S²",
    "time": "S·T²",
    "split_heads": "(T·S² + S·T²) / 2",
    "height": "T·X·Y²",
    "width": "T·Y·X²",
    "causal_time": "S·T·(T+1) / 2",
    "dilated_time": "S·T² / stride",
    "strided_time": "S·T² / stride",
    "trajectory": "(T·S)² + T²·S",
    "window": "T·S · window",
    "neighbourhood": "T·S · neighbourhood",
    "local": "T·S · T·S/4",
    "strided_global": "(T·S)² / 8",
}
WHEN = {
    "joint": "Short clips, or the best accuracy that memory allows; every ablation's reference.",
    "space": "First stage of a factorised encoder; start from an image model.",
    "time": "Next to or after `space`: motion at one position, cheap for long clips.",
    "split_heads": "Both axes at the parameters of one attention.",
    "height": "Large frames, where S² is too much; with `width` (and `time`): axial attention.",
    "width": "See `height`.",
    "causal_time": "Streaming: a time step's result does not wait for later ones.",
    "dilated_time": "Many time steps with slow change; alternate with `time`.",
    "strided_time": "Many time steps: all queries, fewer keys.",
    "trajectory": "Motion across the frame: tokens follow what they match; the most expensive.",
    "window": "Large grids at linear cost, shifted every other layer; Video Swin's bias.",
    "neighbourhood": "Large grids at linear cost, without the edges of windows.",
    "local": "First half of TimeSformer's local-global pair.",
    "strided_global": "Second half of the pair: the whole clip at an eighth of joint's scores.",
}


def visible(name: str) -> np.ndarray:
    """Returns [head, T, Y, X]: whether the query sees each key, in two heads of layer 0."""
    pattern, (t, y, x) = PATTERNS[name], GRID
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, t, y * x, 2, 4)), jnp.float32) for _ in range(3))
    marks = jnp.eye(t * y * x).reshape(1, t, y * x, 1, -1)
    marks = jnp.broadcast_to(marks, (1, t, y * x, 2, t * y * x))
    parameters = {
        key: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for key, (shape, _) in pattern.parameters(2, 4, **pattern.options).items()
    }
    out = pattern(q, k, marks, dense, space=(y, x), layer=0, values=v, **parameters)
    step, row, column = QUERY
    return np.asarray(out[0, step, row * x + column] > 0).reshape(2, t, y, x)


def draw(name: str) -> str:
    """Returns an SVG: time steps next to each other, the query black, what it sees blue, or orange
    if only the second head sees it."""
    heads = visible(OPTIONS.get(name, name))
    t, y, x = GRID
    width, height = t * x * CELL + (t - 1) * GAP, y * CELL
    cells = []
    for step, row, column in np.ndindex(GRID):
        first, second = heads[:, step, row, column]
        colour = {(1, 1): "#4c86c6", (1, 0): "#4c86c6", (0, 1): "#e8973a"}.get(
            (int(first), int(second)), "#e6e6e6"
        )
        if (step, row, column) == QUERY:
            colour = "#1b1b1b"
        left, top = step * (x * CELL + GAP) + column * CELL, row * CELL
        cells.append(
            f'<rect x="{left}" y="{top}" width="{CELL - 1}" height="{CELL - 1}" fill="{colour}"/>'
        )
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return head + "".join(cells) + "</svg>\n"


def measured() -> dict[tuple[str, str], dict]:
    """Returns (pattern, kernel) -> the record of docs/benchmark/patterns.json."""
    records = json.loads((DOCS / "benchmark" / "patterns.json").read_text())["records"]
    return {(r["case"]["pattern"], r["case"]["kernel"]): r for r in records}


def pattern_table() -> str:
    """Returns the table of all patterns, in Markdown."""
    records = measured()
    lines = [
        "| pattern | who sees whom | scores per head | CPU s, dense / chunked "
        "| MB, dense / chunked | paper | when |",
        "|---|---|---|---:|---:|---|---|",
    ]
    for name in COST:
        both = [records[name, kernel] for kernel in ("dense", "chunked")]
        seconds = " / ".join(f"{r['cpu_seconds']:.2f}" if "cpu_seconds" in r else "-" for r in both)
        megabytes = " / ".join(f"{r['temporary_bytes'] / 1e6:,.0f}" for r in both)
        papers = re.findall(r"\d{4}\.\d{5}", PATTERNS[name].mix.__doc__ or "")
        paper = f"[{papers[0]}](https://arxiv.org/abs/{papers[0]})"
        picture = f"![{name}](patterns/{name}.svg)"
        lines.append(
            f"| `{name}` | {picture} | {COST[name]} | {seconds} | {megabytes} | {paper} "
            f"| {WHEN[name]} |"
        )
    return "\n".join(lines)


def pattern_of_readme() -> str:
    """Runs the README's pattern, which registers it, and returns its name."""
    readme = (DOCS.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*@pattern.*?)```", readme, re.DOTALL)
    exec(code, {})
    return re.findall(r'@pattern\("(\w+)"', code)[0]


def fill(text: str, mark: str, content: str) -> str:
    """Returns a page with `content` between <!-- mark --> and <!-- /mark -->."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    filled, count = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
    assert count == 1, mark
    return filled


def main() -> None:
    for name in [*COST, pattern_of_readme()]:
        (DOCS / "patterns" / f"{name}.svg").write_text(draw(name))
    for name, suites in PAGES.items():
        text = (DOCS / name).read_text()
        for suite in suites:
            text = fill(text, suite, (DOCS / "benchmark" / f"{suite}.md").read_text().strip())
        (DOCS / name).write_text(text)
    page = DOCS / "attention.md"
    text = fill(page.read_text(), "patterns", pattern_table())
    machine = json.loads((DOCS / "benchmark" / "patterns.json").read_text())
    described = ", ".join(f"{key} {value}" for key, value in machine["machine"].items())
    page.write_text(fill(text, "machine", f"`{machine['command']}`: {described}."))


if __name__ == "__main__":
    main()
