"""python -m vivit.data check MANIFEST: what is wrong with the files, before it costs a run.

Every file is opened and its frames are counted; with `decode` every frame is decoded too.
"""

import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vivit.data import guard, tfrecord
from vivit.data.decode import Damaged
from vivit.data.files import data_root, fetch, is_uri, locate
from vivit.data.footage import Footage, Limits, open_file
from vivit.data.manifest import UNLABELLED, Clip, Manifest, read_manifest, write_manifest
from vivit.io import write_atomically

UNUSUAL_RATE = 1.5  # times the median frame rate, or less than 1 / 1.5 of it
CHUNK = 64  # frames decoded at once


@dataclass
class Finding:
    """What a clip's file turned out to be. kind: "" where nothing is wrong."""

    clip: str
    split: str
    kind: str = ""
    message: str = ""
    frames: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    height: int = 0
    width: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Report:
    """findings: one a clip. duplicates: groups of clips of the same content and segment; leaks:
    those that are in several splits."""

    findings: list[Finding]
    duplicates: list[list[str]]
    leaks: list[list[str]]
    histogram: dict[str, dict[str, dict[str, int]]]  # label -> split -> class -> clips

    @property
    def kinds(self) -> dict[str, int]:
        return dict(Counter(f.kind for f in self.findings if f.kind).most_common())

    def as_json(self) -> dict[str, Any]:
        return {
            "clips": len(self.findings),
            "kinds": self.kinds,
            "duplicates": self.duplicates,
            "leaks": self.leaks,
            "histogram": self.histogram,
            "findings": [asdict(finding) for finding in self.findings],
        }


def check(
    manifest: str | Path,
    *,
    root: str | Path | None = None,
    frames: int = 1,
    decode: bool = False,
    limits: Limits = Limits(),
) -> Report:
    """Probes every clip of a manifest on all cores.

    frames: fewer than these make a clip too short. decode: whether to decode all its frames.
    """
    rows = read_manifest(manifest)
    base = data_root(root, manifest)
    probe = lambda clip: _probe(clip, base, frames, decode, limits)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(probe, rows.clips)
        findings = list(
            tqdm(found, "files", len(rows.clips), disable=not sys.stderr.isatty(), unit="file")
        )
    _mark_rates(findings)
    duplicates, leaks = _duplicates(rows.clips, findings)
    return Report(findings, duplicates, leaks, _histogram(rows))


def write_hashes(manifest: str | Path, report: Report, out: str | Path) -> None:
    """The manifest again, with the hash of each file: readers then refuse any other content."""
    rows = read_manifest(manifest)
    pairs = zip(rows.clips, report.findings, strict=True)
    clips = tuple(
        clip if tfrecord.is_record(clip.path) else replace(clip, sha256=finding.sha256)
        for clip, finding in pairs
    )
    write_manifest(out, replace(rows, clips=clips))


def write_findings(path: Path, report: Report) -> None:
    write_atomically(path, json.dumps(report.as_json(), indent=1) + "\n")


def table(report: Report) -> str:
    """The report for a terminal."""
    count = len(report.findings)
    lines = [f"{count} clips, {sum(not f.kind for f in report.findings)} with nothing to report"]
    lines += [f"  {kind}: {number}" for kind, number in report.kinds.items()]
    lines.append(f"  duplicates: {len(report.duplicates)} groups")
    lines.append(f"  shared between splits: {len(report.leaks)} groups")
    good = [f for f in report.findings if f.frames]
    if good:
        for name in ("frames", "seconds", "rate"):
            low, middle, high = np.percentile([getattr(f, name) for f in good], [0, 50, 100])
            lines.append(f"  {name}: {low:.4g} to {high:.4g}, median {middle:.4g}")
        sizes = Counter(f"{f.width}x{f.height}" for f in good).most_common(4)
        lines.append("  sizes: " + ", ".join(f"{size} ({number})" for size, number in sizes))
    for label, splits in report.histogram.items():
        for split, classes in splits.items():
            least, most = min(classes.values()), max(classes.values())
            lines.append(f"  {label} in {split}: {len(classes)} classes, {least} to {most} clips")
    shown = [f for f in report.findings if f.kind][:10]
    lines += [f"  {f.clip}: {f.kind}: {f.message}" for f in shown]
    lines += [f"  in several splits: {', '.join(group)}" for group in report.leaks[:10]]
    return "\n".join(lines)


def _probe(clip: Clip, root: str, frames: int, decode: bool, limits: Limits) -> Finding:
    finding = Finding(clip.name, clip.split)
    try:
        if not tfrecord.is_record(clip.path):
            located = locate(root, clip.path)
            finding.sha256 = _hash(located, limits)
        footage = open_file(clip, root, limits=limits)
        finding.frames, finding.seconds = len(footage.times), round(footage.seconds, 3)
        finding.rate = round(len(footage.times) / max(footage.seconds, 1e-6), 3)
        finding.height, finding.width = footage.height, footage.width
        if finding.frames < frames:
            raise Damaged("too short", f"{finding.frames} frames are fewer than {frames}")
        if decode:
            _decode_all(footage)
    except Damaged as error:
        finding.kind, finding.message = error.kind, str(error)
    return finding


def _hash(located: str, limits: Limits) -> str:
    if is_uri(located):
        _, data = fetch(located)
        return hashlib.sha256(data).hexdigest()
    values, _ = guard.call("hash", located, timeout=limits.timeout)
    return values["sha256"]


def _decode_all(footage: Footage) -> None:
    for start in range(0, len(footage.times), CHUNK):
        footage.read(np.arange(start, min(start + CHUNK, len(footage.times))), None)


def _mark_rates(findings: list[Finding]) -> None:
    """Frame rates far from the others': strides in frames then mean different times."""
    good = [f for f in findings if not f.kind and f.frames > 1]
    if not good:
        return
    median = float(np.median([f.rate for f in good]))
    for finding in good:
        if not median / UNUSUAL_RATE <= finding.rate <= median * UNUSUAL_RATE:
            finding.kind = "odd frame rate"
            finding.message = f"{finding.rate:g} frames a second, where {median:g} are usual"


def _duplicates(clips: tuple[Clip, ...], findings: list[Finding]):
    groups: dict[Any, list[Clip]] = defaultdict(list)
    for clip, finding in zip(clips, findings, strict=True):
        if finding.sha256:
            groups[finding.sha256, clip.start, clip.end].append(clip)
    several = [group for group in groups.values() if len(group) > 1]
    names = lambda group: [f"{clip.name} ({clip.split})" for clip in group]
    leaks = [group for group in several if len({clip.split for clip in group}) > 1]
    return [names(group) for group in several], [names(group) for group in leaks]


def _histogram(manifest: Manifest) -> dict[str, dict[str, dict[str, int]]]:
    histogram: dict[str, dict[str, dict[str, int]]] = {}
    for label, classes in manifest.classes.items():
        for clip in manifest.clips:
            number = clip.labels[label]
            name = "(none)" if number == UNLABELLED else classes.names[number]
            own = histogram.setdefault(label, {}).setdefault(clip.split, {})
            own[name] = own.get(name, 0) + 1
    return histogram
