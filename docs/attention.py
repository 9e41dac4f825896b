"""python docs/attention.py: draws every pattern and fills the tables of docs/attention.md.

Pictures are drawn from the patterns themselves, and measured costs come from docs/benchmark/.
"""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vivit.attention import PATTERNS
from vivit.attention.kernels import dense

DOCS = Path(__file__).parent
GRID = (3, 6, 6)  # steps, rows, columns of the pictures
QUERY = (1, 2, 3)
CELL, GAP = 7, 6

# The options that the pictures are drawn with, where the default is too large for them.
DRAWN = {"window": "window(3, 3, 3)", "neighbourhood": "neighbourhood(3, 3, 3)"}
COST = {  # numbers of scores of one head; S = Y·X
    "joint": "(T·S)²",
    "space": "T·S²",
    "time": "S·T²",
    "divided_time": "S·T²",
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
    "time": "Beside or after `space`: motion at a place, cheap for long clips.",
    "divided_time": "TimeSformer's weights, or `time` in a model with one class token a clip.",
    "split_heads": "Both axes at the parameters of one attention.",
    "height": "Large frames, where S² is too much; with `width` (and `time`): axial attention.",
    "width": "See `height`.",
    "causal_time": "Streaming: a step's result doesn't wait for later ones.",
    "dilated_time": "Many steps with slow change; alternate with `time`.",
    "strided_time": "Many steps: all queries, fewer keys.",
    "trajectory": "Motion that leaves its place: tokens follow what they match; the dearest.",
    "window": "Large grids at linear cost, shifted every other layer; Video Swin's bias.",
    "neighbourhood": "Large grids at linear cost, without the edges of windows.",
    "local": "First half of TimeSformer's local-global pair.",
    "strided_global": "Second half of the pair: the whole clip at an eighth of joint's scores.",
}


def seen(name: str) -> np.ndarray:
    """[head, T, Y, X]: which keys the query of the picture sees, in two heads, in layer 0."""
    pattern, (t, y, x) = PATTERNS[name], GRID
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, t, y * x, 2, 4)), jnp.float32) for _ in range(3))
    marks = jnp.eye(t * y * x).reshape(1, t, y * x, 1, -1)
    marks = jnp.broadcast_to(marks, (1, t, y * x, 2, t * y * x))
    told = {
        key: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for key, (shape, _) in pattern.parameters(2, 4, **pattern.options).items()
    }
    out = pattern(q, k, marks, dense, space=(y, x), layer=0, values=v, **told)
    step, row, column = QUERY
    return np.asarray(out[0, step, row * x + column] > 0).reshape(2, t, y, x)


def draw(name: str) -> str:
    """An SVG: steps side by side, the query dark, what it sees blue (or orange in one head)."""
    heads = seen(DRAWN.get(name, name))
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
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
    return head + "".join(cells) + "</svg>\n"


def measured() -> dict[tuple[str, str], dict]:
    """(pattern, kernel) -> the record of docs/benchmark/patterns.json."""
    records = json.loads((DOCS / "benchmark" / "patterns.json").read_text())["records"]
    return {(r["case"]["pattern"], r["case"]["kernel"]): r for r in records}


def pattern_table() -> str:
    records = measured()
    lines = [
        "| pattern | who sees whom | scores a head | CPU s, dense / chunked | MB, dense / chunked "
        "| paper | when |",
        "|---|---|---|---:|---:|---|---|",
    ]
    for name in PATTERNS:
        both = [records[name, kernel] for kernel in ("dense", "chunked")]
        seconds = " / ".join(f"{r['cpu_seconds']:.2f}" if "cpu_seconds" in r else "-" for r in both)
        megabytes = " / ".join(f"{r['temporary_bytes'] / 1e6:,.0f}" for r in both)
        papers = re.findall(r"\d{4}\.\d{5}", PATTERNS[name].mix.__doc__)
        paper = f"[{papers[0]}](https://arxiv.org/abs/{papers[0]})"
        picture = f"![{name}](patterns/{name}.svg)"
        lines.append(
            f"| `{name}` | {picture} | {COST[name]} | {seconds} | {megabytes} | {paper} "
            f"| {WHEN[name]} |"
        )
    return "\n".join(lines)


def fill(text: str, mark: str, content: str) -> str:
    """Replaces what stands between <!-- mark --> and <!-- /mark -->."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    filled, count = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
    assert count == 1, mark
    return filled


def main() -> None:
    for name in PATTERNS:
        (DOCS / "patterns" / f"{name}.svg").write_text(draw(name))
    page = DOCS / "attention.md"
    text = fill(page.read_text(), "patterns", pattern_table())
    for suite in ("lengths", "compile"):
        text = fill(text, suite, (DOCS / "benchmark" / f"{suite}.md").read_text().strip())
    machine = json.loads((DOCS / "benchmark" / "patterns.json").read_text())
    said = ", ".join(f"{key} {value}" for key, value in machine["machine"].items())
    page.write_text(fill(text, "machine", f"`{machine['command']}`: {said}."))


if __name__ == "__main__":
    main()
