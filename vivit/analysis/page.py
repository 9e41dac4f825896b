"""Parts of an HTML page that is one file: pictures, tables that sort, and the page itself."""

import base64
import html
import io
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image


def text(value: Any) -> str:
    """Returns a value as text that HTML does not read as tags."""
    return html.escape(str(value))


def page(title: str, header: str, sections: Sequence[tuple[str, str]]) -> str:
    """Returns a page; sections: a title and the HTML below it. One without a title is first, and
    not among the links."""
    named = [name for name, _ in sections if name]
    links = "".join(f'<a href="#{_anchor(name)}">{text(name)}</a>' for name in named)
    title_of = lambda name: f'<h2 id="{_anchor(name)}">{text(name)}</h2>\n' if name else ""
    body = "".join(f"{title_of(name)}{part}" for name, part in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{static('page.css')}</style></head><body><header>"
        f'<button id="theme" type="button"></button><h1>{text(title)}</h1>{header}'
        f"<nav>{links}</nav></header>{body}<script>{static('page.js')}</script></body></html>\n"
    )


def static(name: str) -> str:
    """Returns a style sheet or script that pages contain."""
    return (files("vivit.analysis") / "static" / name).read_text("utf-8")


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


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
    kind: str = "",
    crisp: bool = True,
) -> str:
    """Returns pixels as an <img> that contains them, enlarged by a whole number.

    crisp: as PNG, whose pixels stay squares when the browser enlarges them; else as JPEG.
    """
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * scale, picture.height * scale), 0)
    buffer = io.BytesIO()
    form = "png" if crisp else "jpeg"
    picture.save(buffer, form)
    return _img(form, buffer.getvalue(), alt, kind=f"{kind} pixels" if crisp else kind)


def film(frames: UInt8[np.ndarray, "F H W 3"], *, scale: int, alt: str) -> str:
    """Returns frames as an <img> that plays them in a loop."""
    buffer = io.BytesIO()
    write_gif(buffer, frames.repeat(scale, axis=1).repeat(scale, axis=2), milliseconds=120)
    return _img("gif", buffer.getvalue(), alt)


def write_gif(to: Any, frames: UInt8[np.ndarray, "F H W 3"], *, milliseconds: int) -> None:
    """Writes frames that play in a loop to a file or its path. milliseconds: of each frame."""
    images = [Image.fromarray(frame) for frame in frames]
    options: Any = {"append_images": images[1:], "duration": milliseconds, "loop": 0}
    images[0].save(to, "GIF", save_all=True, **options)


def _img(form: str, data: bytes, alt: str, *, kind: str = "") -> str:
    encoded = base64.b64encode(data).decode()
    of_kind = f' class="{kind.strip()}"' if kind else ""
    return f'<img{of_kind} alt="{text(alt)}" src="data:image/{form};base64,{encoded}">'
