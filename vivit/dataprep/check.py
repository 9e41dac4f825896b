"""python -m vivit.data check MANIFEST: finds what is wrong with the files before a run does.

Every file is opened and its frames are counted; with `decode` every frame is decoded too.
"""

import hashlib
import os
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vivit.data import decode_pool
from vivit.data.files import data_root, fetch, is_uri, locate
from vivit.data.manifest import UNLABELLED, ClipRow, Manifest, read_manifest
from vivit.data.settings import ReadLimits
from vivit.data.video import ClipReadError, VideoReader
from vivit.data.video_files import open_video
from vivit.dataprep.class_folders import shared_sources
from vivit.dataprep.manifest_files import write_manifest
from vivit.dataprep.similar import MOMENTS, hash_clip, similar_pairs
from vivit.io import write_json

ODD_RATE = "odd frame rate"
SEVERITY = (  # kinds of findings: a file that can't be used, then one that can't be used so
    "damaged", "missing", "outside", "not a file", "unreadable", "crashed", "timed out",
    "too large", "unsupported", "audio only", "too short", ODD_RATE,
)  # fmt: skip
SHOWN = 5  # clips of each kind that a terminal shows
UNUSUAL_RATE = 1.5  # times the median frame rate, or less than 1 / 1.5 of it
CHUNK = 64  # frames decoded at once


@dataclass
class Finding:
    """What is known of a clip's file. kind: "" where nothing is wrong."""

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
class CheckReport:
    """What is wrong with a manifest.

    findings: one per clip. duplicates: groups of clips of the same content and segment; leaks:
    those that are in several splits. similar: pairs of clips of different splits that look alike.
    sources: what seems to be cut into clips of several splits, by names. histogram: label -> split
    -> class -> clips; unlabelled: label -> split -> clips without one.
    """

    findings: list[Finding]
    duplicates: list[list[str]]
    leaks: list[list[str]]
    similar: list[list[str]]
    sources: list[str]
    histogram: dict[str, dict[str, dict[str, int]]]
    unlabelled: dict[str, dict[str, int]]

    @property
    def kinds(self) -> dict[str, int]:
        """How many clips have each kind of finding, the worst kind first."""
        counts = Counter(f.kind for f in self.findings if f.kind)
        return {kind: counts[kind] for kind in SEVERITY if counts[kind]}

    def of_kind(self, kind: str) -> list[int]:
        """Returns the numbers of the findings of a kind."""
        return [i for i, finding in enumerate(self.findings) if finding.kind == kind]

    def as_json(self) -> dict[str, Any]:
        return {
            "clips": len(self.findings),
            "kinds": self.kinds,
            "duplicates": self.duplicates,
            "leaks": self.leaks,
            "similar": self.similar,
            "sources": self.sources,
            "histogram": self.histogram,
            "unlabelled": self.unlabelled,
            "findings": [asdict(finding) for finding in self.findings],
        }


def check(
    manifest: str | Path,
    *,
    root: str | Path | None = None,
    frames: int = 1,
    decode: bool = False,
    similar: bool = True,
    limits: ReadLimits = ReadLimits(),
) -> CheckReport:
    """Probes every clip of a manifest on all cores.

    frames: fewer than these make a clip too short. decode: whether to decode all its frames.
    similar: whether to look at three frames of each clip for clips that look alike.
    """
    rows = read_manifest(manifest)
    base = data_root(root, manifest)
    probe = lambda clip: _probe(clip, base, frames, decode, similar, limits)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(probe, rows.clips)
        bar = tqdm(found, "files", len(rows.clips), disable=not sys.stderr.isatty(), unit="file")
        findings, hashes = map(list, zip(*bar, strict=True))
    _mark_rates(findings)
    duplicates, leaks = _duplicates(rows.clips, findings)
    pairs = similar_pairs(np.array(hashes), [clip.split for clip in rows.clips])
    known = {frozenset(group) for group in leaks}
    name = lambda i: _name(rows.clips[i])
    alike = [[name(i), name(j)] for i, j in pairs if {name(i), name(j)} not in known]
    return CheckReport(findings, duplicates, leaks, alike, _sources(rows), *_histogram(rows))


def write_hashes(manifest: str | Path, report: CheckReport, out: str | Path) -> None:
    """Writes the manifest with the hash of each file: readers then refuse any other content."""
    rows = read_manifest(manifest)
    pairs = zip(rows.clips, report.findings, strict=True)
    clips = tuple(
        clip if clip.is_record else replace(clip, sha256=finding.sha256) for clip, finding in pairs
    )
    write_manifest(out, replace(rows, clips=clips))


def write_findings(path: Path, report: CheckReport) -> None:
    write_json(path, report.as_json())


def summary(report: CheckReport) -> str:
    """Returns the report for a terminal."""
    count = len(report.findings)
    lines = [f"{count} clips, {sum(not f.kind for f in report.findings)} good"]
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
    for label, splits in report.unlabelled.items():
        lines += [f"  {n} clips of {split} have no {label}" for split, n in splits.items()]
    for kind in report.kinds:
        shown = [report.findings[i] for i in report.of_kind(kind)]
        lines += _first(kind, [f"{f.clip}: {f.message}" for f in shown])
    lines += _first("in several splits", [", ".join(group) for group in report.leaks])
    lines += _first("look alike, in several splits", [", ".join(x) for x in report.similar])
    lines += _first("of one source by name, in several splits", report.sources)
    return "\n".join(lines)


def _first(title: str, items: list[str]) -> list[str]:
    """Returns lines with a title, the first items, and how many more there are."""
    if not items:
        return []
    more = [f"    and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return [f"{title} ({len(items)}):", *(f"    {item}" for item in items[:SHOWN]), *more]


def _probe(
    clip: ClipRow, root: str, frames: int, decode: bool, similar: bool, limits: ReadLimits
) -> tuple[Finding, np.ndarray]:
    """Returns what is known of a clip's file, and hashes of its frames or zeros."""
    finding, hashes = Finding(clip.name, clip.split), np.zeros(len(MOMENTS), np.uint64)
    try:
        if not clip.is_record:
            located = locate(root, clip.path, follow_links=limits.follow_links)
            finding.sha256 = _hash(located, limits)
        video = open_video(clip, root, limits=limits)
        finding.frames, finding.seconds = len(video.times), round(video.seconds, 3)
        finding.rate = round(len(video.times) / max(video.seconds, 1e-6), 3)
        finding.height, finding.width = video.height, video.width
        if finding.frames < frames:
            raise ClipReadError("too short", f"{finding.frames} frames are fewer than {frames}")
        if decode:
            _decode_all(video)
        if similar:
            hashes = hash_clip(video)
    except ClipReadError as error:
        finding.kind, finding.message = error.kind, str(error)
    return finding, hashes


def _hash(located: str, limits: ReadLimits) -> str:
    if is_uri(located):
        _, data = fetch(located)
        return hashlib.sha256(data).hexdigest()
    return decode_pool.sha256_of(located, timeout=limits.timeout_seconds)


def _decode_all(video: VideoReader) -> None:
    for start in range(0, len(video.times), CHUNK):
        video.read(np.arange(start, min(start + CHUNK, len(video.times))), None)


def _mark_rates(findings: list[Finding]) -> None:
    """Marks unusual frame rates, with which strides in frames mean different times."""
    good = [f for f in findings if not f.kind and f.frames > 1]
    if not good:
        return
    median = float(np.median([f.rate for f in good]))
    for finding in good:
        if not median / UNUSUAL_RATE <= finding.rate <= median * UNUSUAL_RATE:
            finding.kind = ODD_RATE
            finding.message = f"{finding.rate:g} frames per second; the median is {median:g}"


def _duplicates(clips: tuple[ClipRow, ...], findings: list[Finding]):
    groups: dict[Any, list[ClipRow]] = defaultdict(list)
    for clip, finding in zip(clips, findings, strict=True):
        if finding.sha256:
            groups[finding.sha256, clip.start, clip.end].append(clip)
    several = [group for group in groups.values() if len(group) > 1]
    names = lambda group: [_name(clip) for clip in group]
    leaks = [group for group in several if len({clip.split for clip in group}) > 1]
    return [names(group) for group in several], [names(group) for group in leaks]


def _name(clip: ClipRow) -> str:
    return f"{clip.name} ({clip.split})"


def _sources(manifest: Manifest) -> list[str]:
    """Returns lines on films with clips in several splits: segments of a file, and by name."""
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in manifest.clips:
        splits[clip.path][clip.split] += 1
    listed = lambda n: ", ".join(f"{count} in {split}" for split, count in sorted(n.items()))
    segments = [f"{path}: {listed(n)}" for path, n in sorted(splits.items()) if len(n) > 1]
    return segments + shared_sources({path: next(iter(n)) for path, n in splits.items()})


def _histogram(manifest: Manifest):
    histogram: dict[str, dict[str, dict[str, int]]] = {}
    unlabelled: dict[str, dict[str, int]] = {}
    for label, classes in manifest.classes.items():
        for clip in manifest.clips:
            for number in np.ravel(clip.labels[label]).astype(int):
                if number == UNLABELLED:
                    counts, name = unlabelled.setdefault(label, {}), clip.split
                else:
                    counts = histogram.setdefault(label, {}).setdefault(clip.split, {})
                    name = classes.names[number]
                counts[name] = counts.get(name, 0) + 1
    return histogram, unlabelled
