"""Parts of an HTML page that is one file: pictures, tables that sort, and the page itself."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

STYLE = """
:root { color-scheme: light; --line: #d8dee4; --quiet: #59636e; --blue: #0969da; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto;
       padding: 0 1.25rem 4rem; color: #1b1f24; background: #fff; }
header { padding: 1.6rem 0 .6rem; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p { margin: .4rem 0 .8rem; max-width: 50rem; }
.quiet { color: var(--quiet); }
nav { margin-top: .6rem; } nav a { margin-right: 1rem; color: var(--blue); }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; min-width: 8rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .7rem; }
figcaption { margin-top: .4rem; font-size: .92rem; overflow-wrap: anywhere; }
img { max-width: 100%; vertical-align: middle; }
.pixels { image-rendering: pixelated; width: 100%; }
.side { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem; margin-bottom: .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.n, th.n { text-align: right; } th[data-sort] { cursor: pointer; }
th[data-sort]:hover { color: var(--blue); } tr.now { background: #ddf4ff; }
.scroll { max-height: 32rem; overflow: auto; }
.scroll th { position: sticky; top: 0; background: #fff; }
.correct { color: #1a7f37; } .wrong { color: #cf222e; font-weight: 600; }
.matrix td, .matrix th { border: 0; padding: .15rem .4rem; text-align: right; font-size: .85rem; }
.matrix td { min-width: 2.4rem; }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); }
#confusion-map { max-width: 46rem; }
details pre { background: #f6f8fa; padding: 1rem; overflow: auto;
font-size: 12px; }
"""
SCRIPT = """
for (const th of document.querySelectorAll('th[data-sort]')) th.addEventListener('click', () => {
  const body = th.closest('table').tBodies[0], at = th.cellIndex;
  const up = th.dataset.sort = th.dataset.sort === 'up' ? 'down' : 'up';
  const key = row => { const v = row.cells[at].dataset.v ?? row.cells[at].textContent;
                       return v === '' || isNaN(v) ? v : +v; };
  [...body.rows].sort((a, b) => { const x = key(a), y = key(b);
    const order = typeof x !== typeof y ? (typeof x === 'string' ? 1 : -1)
                                        : x < y ? -1 : x > y ? 1 : 0;
    return up === 'up' ? order : -order; }).forEach(row => body.append(row)); });
const map = document.getElementById('confusion-map');
if (map) { const data = JSON.parse(document.getElementById('confusion-data').textContent);
  const n = data.names.length, at = part => Math.min(n - 1, Math.max(0, Math.floor(part * n)));
  map.addEventListener('mousemove', e => { const box = map.getBoundingClientRect();
    const i = at((e.clientY - box.top) / box.height), j = at((e.clientX - box.left) / box.width);
    document.getElementById('hover').textContent =
      `${data.names[i]} predicted as ${data.names[j]}: ${data.counts[i + ',' + j] ?? 0} clips`;
  }); }
"""


def text(value: Any) -> str:
    """Returns a value as text that HTML does not read as tags."""
    return html.escape(str(value))


def page(title: str, header: str, sections: Sequence[tuple[str, str]]) -> str:
    """Returns a page; sections: a title and the HTML below it."""
    links = "".join(f'<a href="#{_anchor(name)}">{text(name)}</a>' for name, _ in sections)
    body = "".join(f'<h2 id="{_anchor(name)}">{text(name)}</h2>\n{part}' for name, part in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f"<style>{STYLE}</style></head><body><header><h1>{text(title)}</h1>{header}"
        f"<nav>{links}</nav></header>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def cards(values: Sequence[tuple[str, str]]) -> str:
    """Returns a row of figures with what they are."""
    made = (f'<div class="card"><b>{text(v)}</b><span class="quiet">{text(k)}</span></div>'
            for k, v in values)  # fmt: skip
    return f'<div class="cards">{"".join(made)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, marked: Sequence[int] = ()) -> str:
    """Returns a table that sorts by the column whose head is clicked.

    A cell is text, or (value to sort by, text to show). Columns of numbers are set to the right.
    marked: numbers of rows that stand out.
    """
    numeric = [bool(rows) and all(_is_number(row[k]) for row in rows) for k in range(len(head))]
    kinds = [' class="n"' if is_number else "" for is_number in numeric]
    cells = "".join(f'<th data-sort=""{k}>{text(h)}</th>' for h, k in zip(head, kinds, strict=True))
    lines = []
    for i, row in enumerate(rows):
        shown = "".join(_cell(value, kind) for value, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr{' class=now' if i in marked else ''}>{shown}</tr>")
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _is_number(cell: Any) -> bool:
    value = cell[0] if isinstance(cell, tuple) else cell
    return isinstance(value, (int, float))


def _cell(cell: Any, kind: str) -> str:
    if isinstance(cell, tuple):
        value, shown = cell
        return f'<td{kind} data-v="{text(value)}">{text(shown)}</td>'
    return f"<td{kind}>{text(cell)}</td>"


def percent(value: float | None, *, digits: int = 1) -> tuple[float, str]:
    """Returns a cell of a ratio; "-" for None, which sorts below all."""
    return (-1.0, "-") if value is None else (value, f"{value:.{digits}%}")


def picture(figure: Figure, *, alt: str) -> str:
    """Returns a figure as an <img> that contains its PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return _img("png", buffer.getvalue(), alt)


def image(
    pixels: UInt8[np.ndarray, "H W 3"],
    *,
    alt: str,
    scale: int = 1,
    id: str = "",
    crisp: bool = True,
) -> str:
    """Returns pixels as an <img> that contains them, enlarged by a whole number.

    crisp: as PNG, whose pixels stay squares when the browser enlarges them; else as JPEG.
    """
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * scale, picture.height * scale), 0)
    buffer = io.BytesIO()
    kind = "png" if crisp else "jpeg"
    picture.save(buffer, kind)
    return _img(kind, buffer.getvalue(), alt, id=id, pixels=crisp)


def film(frames: UInt8[np.ndarray, "F H W 3"], *, scale: int, alt: str) -> str:
    """Returns frames as an <img> that plays them in a loop."""
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    images = [Image.fromarray(frame).resize(size, 0) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=120, loop=0
    )
    return _img("gif", buffer.getvalue(), alt)


def _img(kind: str, data: bytes, alt: str, *, id: str = "", pixels: bool = False) -> str:
    encoded = base64.b64encode(data).decode()
    more = f' id="{id}"' if id else ""
    more += ' class="pixels"' if pixels else ""
    return f'<img{more} alt="{text(alt)}" src="data:image/{kind};base64,{encoded}">'
