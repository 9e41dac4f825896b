"""What data looks like: the check's HTML page, and contact sheets of prepared data sets."""

import base64
import html
import io
from collections import Counter
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

from vivit.data.check import Report
from vivit.data.decode import Damaged
from vivit.data.footage import Footage, Limits, open_file
from vivit.data.manifest import Clip, read_manifest
from vivit.data.sources import find, open_split
from vivit.io import write_atomically

WORST = 40  # clips shown on the page
TILE = 160  # pixels across a thumbnail
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top}img{display:block}.n{color:#888}
.bar{background:#69c;height:.8em;display:inline-block}"""


def write_page(path: Path, report: Report, manifest: str | Path, root: str | Path) -> None:
    """The check as one HTML file, with thumbnails of the worst clips."""
    kinds = "".join(f"<tr><td>{_text(k)}<td>{n}" for k, n in report.kinds.items())
    worst = [i for i, f in enumerate(report.findings) if f.kind][:WORST]
    clips = read_manifest(manifest).clips
    rows = "".join(
        f"<tr><td>{_thumbnail(clips[i], root)}<td>{_text(f.clip)}<br><b>{_text(f.kind)}</b>: "
        f"{_text(f.message)}"
        for i in worst
        for f in [report.findings[i]]
    )
    shared = "".join(f"<li>{_text(', '.join(group))}" for group in report.leaks)
    twice = "".join(f"<li>{_text(', '.join(group))}" for group in report.duplicates[:WORST])
    page = [
        f"<!doctype html><meta charset=utf-8><title>{_text(str(manifest))}</title>",
        f"<style>{STYLE}</style><h1>{_text(str(manifest))}</h1>",
        f"<p>{len(report.findings)} clips, "
        f"{sum(not f.kind for f in report.findings)} with nothing to report.",
        f"<table><tr><th>what<th>clips{kinds}</table>" if kinds else "",
        f"<h2>In several splits</h2><ul>{shared}</ul>" if shared else "",
        f"<h2>The worst</h2><table>{rows}</table>" if rows else "",
        f"<h2>Twice</h2><ul>{twice}</ul>" if twice else "",
        *(_bars(label, splits) for label, splits in report.histogram.items()),
    ]
    write_atomically(path, "\n".join(page) + "\n")


def describe(folder: str | Path, *, sheet: str | Path | None = None, label: str = "") -> str:
    """Numbers and sizes of a prepared data set, and a contact sheet of its clips as a PNG."""
    place = Path(folder)
    home = place if (place / "dataset_info.json").exists() else find(place.name, place.parent)
    info = tfds.builder_from_directory(home).info
    metadata = info.metadata or {}
    if "labels" not in metadata:
        raise ValueError(f"{str(folder)!r} was not prepared by vivit")
    lines = [f"{info.name} {info.version}: {metadata.get('format', 'whole clips')}"]
    lines.append(f"labels: {', '.join(f'{k} ({len(v)})' for k, v in metadata['labels'].items())}")
    label = label or next(iter(metadata["labels"]))
    if "largest" in metadata:
        height, width = metadata["largest"]
        lines.append(
            f"frames: up to {width} x {height} pixels, short side at least {metadata['smallest']}"
        )
        lines.append(f"left out: {metadata['skipped']} (skipped.csv)")
    shown: list[tuple[str, Footage]] = []
    for name, split in info.splits.items():
        size = sum(path.stat().st_size for path in home.glob(f"**/*-{name}.array_record*"))
        part = f"{name}: {split.num_examples} clips, {size / 1e6:.1f} MB"
        unlabelled = metadata.get("unlabelled", {}).get(f"{name}/{label}", 0)
        if unlabelled:
            lines.append(f"{part}, {unlabelled} without {label}")
            continue
        data = open_split(info.name, _data_root(home, info.name), split=name, label=label)
        some = np.unique(np.linspace(0, len(data) - 1, min(512, len(data))).astype(int))
        footage = [data.reader.open(int(i)) for i in some]
        frames, seconds = (
            np.array([f(x) for x in footage]) for f in (lambda x: len(x.times), lambda x: x.seconds)
        )
        lines.append(
            f"{part}; of {len(some)} clips: {frames.min()} to {frames.max()} frames, "
            f"{seconds.min():.2f} to {seconds.max():.2f} s"
        )
        counts = Counter(data.class_names[x.labels[label]] for x in footage)
        lines.append("  " + ", ".join(f"{k} {n}" for k, n in counts.most_common(8)))
        shown += [
            (f"{name}: {data.class_names[footage[k].labels[label]]}", footage[k])
            for k in np.linspace(0, len(footage) - 1, min(8, len(footage))).astype(int)
        ]
    path = Path(sheet) if sheet else home / "contact_sheet.png"
    contact_sheet(shown).save(path)
    lines.append(f"contact sheet: {path}")
    return "\n".join(lines)


def contact_sheet(clips: list[tuple[str, Footage]], *, moments: int = 6) -> Image.Image:
    """A row a clip: frames from its beginning to its end, with its class."""
    row = TILE * 3 // 4 + 16
    sheet = Image.new("RGB", (TILE * moments, row * len(clips)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (title, footage) in enumerate(clips):
        draw.text((4, y * row), title, fill="black")
        numbers = np.linspace(0, len(footage.times) - 1, moments).astype(int)
        for x, frame in enumerate(footage.read(numbers, None)):
            sheet.paste(_tile(frame), (x * TILE, y * row + 14))
    return sheet


def _tile(frame: np.ndarray) -> Image.Image:
    image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).convert("RGB")
    scale = min(TILE / image.width, TILE * 3 / 4 / image.height)
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def _thumbnail(clip: Clip, root: str | Path) -> str:
    """The middle frame, where it can be had."""
    try:
        footage = open_file(clip, root, short_side=TILE, limits=Limits(timeout=10.0))
        frame = footage.read(np.array([len(footage.times) // 2]), None)[0]
    except Damaged:
        return "<span class=n>no picture</span>"
    file = io.BytesIO()
    _tile(frame).save(file, "JPEG", quality=80)
    return f"<img src='data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'>"


def _bars(label: str, splits: dict[str, dict[str, int]]) -> str:
    parts = [f"<h2>{_text(label)}</h2>"]
    for split, classes in splits.items():
        most = max(classes.values())
        rows = "".join(
            f"<tr><td>{_text(name)}<td>{count}<td><span class=bar "
            f"style='width:{200 * count / most:.0f}px'></span>"
            for name, count in sorted(classes.items(), key=lambda item: -item[1])
        )
        parts.append(f"<h3>{_text(split)}</h3><table>{rows}</table>")
    return "".join(parts)


def _text(text: str) -> str:
    return html.escape(text)


def _data_root(home: Path, name: str) -> Path:
    """The folder that open_split wants of a data set's version folder."""
    return home.parent.parent if home.parent.name == name else home.parent.parent.parent
