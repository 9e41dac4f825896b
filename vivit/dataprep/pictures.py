"""Pictures of data: the HTML page of a check, and contact sheets of prepared data sets."""

import base64
import html
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

from vivit.data.manifest import ClipRow, read_manifest
from vivit.data.settings import DataSettings, ReadLimits
from vivit.data.sources import find, open_split
from vivit.data.split import NO_TASK
from vivit.data.video import ClipReadError, VideoReader
from vivit.data.video_files import open_video
from vivit.dataprep.check import CheckReport
from vivit.io import write_atomically

SHOWN = 12  # clips of each kind, and lines of each list, on the page
TILE = 160  # pixels across a thumbnail
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top}img{display:block}.n{color:#888}
.bar{background:#69c;height:.8em;display:inline-block}"""


def write_page(
    path: Path, report: CheckReport, manifest: str | Path, root: str | Path, limits: ReadLimits
) -> None:
    """Writes a check as one HTML file: kinds of findings, the worst first, with thumbnails."""
    counts = {
        **report.kinds,
        "in several splits": len(report.leaks),
        "look alike, in several splits": len(report.similar),
        "of one source by name, in several splits": len(report.sources),
    }
    kinds = "".join(f"<tr><td>{_text(k)}<td>{n}" for k, n in counts.items() if n)
    clips = read_manifest(manifest).clips

    def row(i: int) -> str:
        finding = report.findings[i]
        picture = _thumbnail(clips[i], root, limits)
        return f"<tr><td>{picture}<td>{_text(finding.clip)}<br>{_text(finding.message)}"

    page = [
        f"<!doctype html><meta charset=utf-8><title>{_text(str(manifest))}</title>",
        f"<style>{STYLE}</style><h1>{_text(str(manifest))}</h1>",
        f"<p>{len(report.findings)} clips, {sum(not f.kind for f in report.findings)} good.",
        f"<table><tr><th>what<th>how many{kinds}</table>" if kinds else "",
    ]
    for kind in report.kinds:
        found = report.of_kind(kind)
        rows = "".join(map(row, found[:SHOWN]))
        page.append(f"<h2>{_text(kind)}</h2><table>{rows}</table>{_more(len(found))}")
    page += [
        _listed("In several splits", [", ".join(group) for group in report.leaks]),
        _listed("Look alike, in several splits", [", ".join(pair) for pair in report.similar]),
        _listed("Of one source by name, in several splits", report.sources),
    ]
    page.append(_listed("Twice", [", ".join(group) for group in report.duplicates]))
    page += [_bars(label, splits) for label, splits in report.histogram.items()]
    for label, splits in report.unlabelled.items():
        page += [f"<p>{n} clips of {_text(s)} have no {_text(label)}." for s, n in splits.items()]
    write_atomically(path, "\n".join(page) + "\n")


def describe(folder: str | Path, *, sheet: str | Path | None = None, label: str = "") -> str:
    """Returns numbers and sizes of a prepared data set, and writes a contact sheet as a PNG."""
    place = Path(folder)
    home = place if (place / "dataset_info.json").exists() else find(place.name, place.parent)
    info = tfds.builder_from_directory(home).info
    metadata = info.metadata or {}
    if "labels" not in metadata:
        raise ValueError(f"{str(folder)!r} was not prepared by vivit")
    lines = [f"{info.name} {info.version}: {metadata.get('format', 'whole clips')}"]
    labels = [f"{k} ({len(v)})" for k, v in metadata["labels"].items()]
    lines.append(f"labels: {', '.join(labels) or 'none'}")
    label = label or next(iter(metadata["labels"]), "")
    if "largest" in metadata:
        height, width = metadata["largest"]
        lines.append(
            f"frames: up to {width} x {height} pixels, short side at least {metadata['smallest']}"
        )
        lines.append(f"left out: {metadata['skipped']} (skipped.csv)")
    settings = DataSettings(info.name, str(_data_root(home, info.name)), label)
    shown: list[tuple[str, VideoReader]] = []
    for name, split in info.splits.items():
        size = sum(path.stat().st_size for path in home.glob(f"**/*-{name}.array_record*"))
        part = f"{name}: {split.num_examples} clips, {size / 1e6:.1f} MB"
        unlabelled = metadata.get("unlabelled", {}).get(f"{name}/{label}", 0)
        if unlabelled:
            lines.append(f"{part}, {unlabelled} without {label}")
            continue
        more, videos = _describe_split(settings, name)
        lines += [f"{part}; {more[0]}", *more[1:]]
        shown += videos
    path = Path(sheet) if sheet else home / "contact_sheet.png"
    contact_sheet(shown).save(path)
    lines.append(f"contact sheet: {path}")
    return "\n".join(lines)


def _describe_split(
    settings: DataSettings, name: str
) -> tuple[list[str], list[tuple[str, VideoReader]]]:
    """Returns lines on lengths and classes of some clips, and clips to show with their titles."""
    label = settings.label
    data = open_split(settings, name, None if label else NO_TASK)
    some = np.unique(np.linspace(0, len(data) - 1, min(512, len(data))).astype(int))
    videos = [data.reader.open(int(i)) for i in some]
    frames, seconds = [len(x.times) for x in videos], [x.seconds for x in videos]
    names = data.classes[label].names if label else tuple[str, ...]()
    titles = [[names[i] for i in np.ravel(x.labels.get(label, ())).tolist()] for x in videos]
    classes = [", ".join(of_clip) or "none" for of_clip in titles]
    lines = [
        f"of {len(some)} clips: {min(frames)} to {max(frames)} frames, "
        f"{min(seconds):.2f} to {max(seconds):.2f} s",
    ]
    if label:
        counts = Counter(classes).most_common(8)
        lines.append("  " + ", ".join(f"{k} {n}" for k, n in counts))
    shown = np.linspace(0, len(videos) - 1, min(8, len(videos))).astype(int)
    return lines, [(f"{name}: {classes[k]}", videos[k]) for k in shown]


def contact_sheet(clips: list[tuple[str, VideoReader]], *, moments: int = 6) -> Image.Image:
    """Returns one row per clip: frames from its beginning to its end, with its class."""
    row = TILE * 3 // 4 + 16
    sheet = Image.new("RGB", (TILE * moments, row * len(clips)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (title, video) in enumerate(clips):
        draw.text((4, y * row), title, fill="black")
        numbers = np.linspace(0, len(video.times) - 1, moments).astype(int)
        for x, frame in enumerate(video.read(numbers, None)):
            sheet.paste(_tile(frame), (x * TILE, y * row + 14))
    return sheet


def _tile(frame: np.ndarray) -> Image.Image:
    image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).convert("RGB")
    scale = min(TILE / image.width, TILE * 3 / 4 / image.height)
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def _thumbnail(clip: ClipRow, root: str | Path, limits: ReadLimits) -> str:
    """Returns the middle frame as HTML, where it can be read within 10 seconds."""
    try:
        quick = replace(limits, timeout_seconds=10.0)
        video = open_video(clip, root, short_side=TILE, limits=quick)
        frame = video.read(np.array([len(video.times) // 2]), None)[0]
    except ClipReadError:
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


def _listed(title: str, items: list[str]) -> str:
    if not items:
        return ""
    lines = "".join(f"<li>{_text(item)}" for item in items[:SHOWN])
    return f"<h2>{_text(title)}</h2><ul>{lines}</ul>{_more(len(items))}"


def _more(count: int) -> str:
    return f"<p class=n>and {count - SHOWN} more" if count > SHOWN else ""


def _text(text: str) -> str:
    return html.escape(text)


def _data_root(home: Path, name: str) -> Path:
    """Returns the data root of a data set's version folder."""
    return home.parent.parent if home.parent.name == name else home.parent.parent.parent
