"""The manifest: one row per clip, in CSV or Parquet.

Columns: path (below the data root, or a URI; `file.tfrecord#BYTE` is a record), split, and
optionally start and end (seconds of the file), id, sha256 (of the file). Every other column is a
label of that name: class names or class numbers; empty where there is none. A file
NAME.classes.json next to NAME.csv has {label: {"names": [...], "flip": {name: mirrored name}}};
with "several": true a clip may have several classes, "dog|barking", or none.
"""

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vivit.data.classes import UNLABELLED, Classes, mirror_names

COLUMNS = ("path", "start", "end", "split", "id", "sha256")
MOST_CLASSES = 100_000
SEPARATOR = "|"  # of the classes of a clip that may have several
SHOWN = 10  # problems that an error spells out


@dataclass(frozen=True)
class ClipRow:
    """One row. labels: label -> class number, UNLABELLED where there is none; class numbers, for a
    label of which a clip may have several."""

    path: str
    split: str
    labels: dict[str, Any]
    start: float | None = None
    end: float | None = None
    id: str = ""
    sha256: str = ""

    @property
    def is_record(self) -> bool:
        """Whether the path names a record in a file: `file.tfrecord#BYTE`."""
        return re.fullmatch(r".+#\d+", self.path) is not None

    @property
    def name(self) -> str:
        """What messages call the clip."""
        if self.start is None and self.end is None:
            return self.path
        end = "end" if self.end is None else f"{self.end:g} s"
        return f"{self.path} ({self.start or 0:g} s to {end})"


@dataclass(frozen=True)
class Manifest:
    clips: tuple[ClipRow, ...]
    classes: dict[str, Classes]

    def split(self, name: str) -> list[ClipRow]:
        found = [clip for clip in self.clips if clip.split == name]
        if not found:
            splits = ", ".join(sorted({clip.split for clip in self.clips}))
            raise ValueError(f"no clip is of split {name!r}; there are: {splits}")
        return found


def read_manifest(path: str | Path) -> Manifest:
    """Returns a manifest with all its rows checked; ValueError lists the rows that are wrong."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no manifest {str(path)!r}; make one with: python -m vivit.data convert")
    try:
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as CSV: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    names = [name for name in rows[0] if name not in COLUMNS]
    problems = [f"no column {name!r}" for name in ("path", "split") if name not in rows[0]]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    classes = _classes(path, names, rows)
    clips = []
    for number, row in enumerate(rows, start=2):  # as an editor counts the lines of a CSV
        clip, wrong = _clip(row, classes)
        clips.append(clip)
        problems += [f"row {number}: {x}" for x in wrong]
    problems += _overlaps(clips)
    raise_all(str(path), problems)
    return Manifest(tuple(clips), classes)


def count_unlabelled(clips: Sequence[ClipRow], classes: dict[str, Classes]) -> dict[str, int]:
    """Returns label -> how many clips have none.

    Of a label of which clips may have several a clip may have none; where none has any, all count.
    """
    counts = {k: sum(clip.labels[k] in (UNLABELLED, ()) for clip in clips) for k in classes}
    return {k: n if n == len(clips) or not classes[k].several else 0 for k, n in counts.items()}


def classes_path(path: Path) -> Path:
    return path.with_suffix(".classes.json")


def raise_all(what: str, problems: Sequence[str]) -> None:
    """Raises ValueError with the first problems and the number of all, if there are any."""
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{what}:\n  " + "\n  ".join(problems[:SHOWN]) + more)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restkey="", restval="")
        rows = list(reader)
    long = [i for i, row in enumerate(rows, start=2) if "" in row]
    raise_all(str(path), [f"row {i} has more fields than the first line" for i in long])
    return rows


def _read_parquet(path: Path) -> list[dict[str, str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} can't be read as Parquet: {error}") from error
    lists = {k for row in rows for k, v in row.items() if isinstance(v, list)}
    file = classes_path(path)
    several = {label for label, classes in _read_classes(file).items() if classes.get("several")}
    if lists - several:
        listed = ", ".join(sorted(lists - several))
        raise ValueError(
            f"{path}: {listed} has lists; labels of which a clip may have several classes need "
            f'"several": true in {file.name}'
        )
    return [{k: _as_text(v) for k, v in row.items()} for row in rows]


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return SEPARATOR.join(map(str, value))
    return "" if value is None else str(value)


def _classes(path: Path, labels: Sequence[str], rows: list[dict[str, str]]) -> dict[str, Classes]:
    """Returns the classes of the file next to the manifest, or else of the values in the rows."""
    file = classes_path(path)
    known = _read_classes(file)
    classes = {}
    for label in labels:
        values = {row[label] for row in rows} - {""}
        if label in known:
            names = tuple(known[label]["names"])
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{file} has {label} classes twice: {', '.join(repeated)}")
            several = bool(known[label].get("several"))
            if several and (odd := [name for name in names if SEPARATOR in name]):
                raise ValueError(f"{file}: {label} {odd[0]!r} has a {SEPARATOR!r}, which separates")
            flip = known[label].get("flip", mirror_names(names))
            odd = [k for k, v in flip.items() if k not in names or (v and flip.get(v, v) != k)]
            raise_all(f"{file}: flip must pair classes of {label}, both ways", odd)
            classes[label] = Classes(names, dict(flip), several)
        elif numbers := [value for value in map(_number, values) if value is not None]:
            if len(numbers) < len(values):
                text = next(value for value in values if _number(value) is None)
                raise ValueError(f"{path}: {label} mixes numbers and names, such as {text!r}")
            if max(numbers) >= MOST_CLASSES:
                raise ValueError(
                    f"{path}: {label} {max(numbers):g} is not a class number; every column but "
                    f"{', '.join(COLUMNS)} is a label: leave out the others"
                )
            classes[label] = Classes(tuple(str(i) for i in range(int(max(numbers)) + 1)))
        else:
            names = tuple(sorted(values))
            classes[label] = Classes(names, mirror_names(names))
    return classes


def _read_classes(path: Path) -> dict[str, Any]:
    """Returns what the file next to a manifest says of each label; {} if there is none."""
    if not path.exists():
        return {}
    try:
        classes = json.loads(path.read_text())
        if all(
            isinstance(classes[label]["names"], list)
            and all(isinstance(name, str) for name in classes[label]["names"])
            for label in classes
        ):
            return classes
    except (json.JSONDecodeError, TypeError, KeyError, IndexError):
        pass
    raise ValueError(f'{path} must have the form {{"label": {{"names": ["first", ...]}}}}')


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _clip(row: dict[str, str], classes: dict[str, Classes]) -> tuple[ClipRow, list[str]]:
    problems: list[str] = []
    if not row["path"]:
        problems.append("no path")
    if not row["split"] or not re.fullmatch(r"\w+", row["split"]):
        problems.append(f"split {row['split']!r} is not a word")
    seconds = {}
    for name in ("start", "end"):
        text = row.get(name, "")
        try:
            seconds[name] = float(text) if text else None
        except ValueError:
            seconds[name] = math.nan
        if seconds[name] is not None and not 0 <= seconds[name] < math.inf:
            problems.append(f"{name} {text!r} is not a number of seconds")
            seconds[name] = None
    if None not in seconds.values() and seconds["end"] <= seconds["start"]:
        problems.append(f"ends at {seconds['end']:g} s, before its start at {seconds['start']:g} s")
    numbers: dict[str, Any] = {}
    for label, known in classes.items():
        texts = (
            [x for x in row[label].split(SEPARATOR) if x.strip()] if known.several else [row[label]]
        )
        found = [class_number(text, label, known) for text in texts]
        problems += [problem for _, wrong in found for problem in wrong]
        numbers[label] = tuple(n for n, _ in found) if known.several else found[0][0]
    clip = ClipRow(
        row["path"], row["split"], numbers, **seconds, id=row.get("id", ""),
        sha256=row.get("sha256", ""),
    )  # fmt: skip
    return (clip if clip.id else replace(clip, id=clip.name)), problems


def class_number(value: Any, label: str, classes: Classes) -> tuple[int, list[str]]:
    """Returns the number of a class given by name or number, and what is wrong with it."""
    text = str(value).strip()
    if text == "":
        return UNLABELLED, []
    if text in classes.numbers:
        return classes.numbers[text], []
    try:
        number = float(text)
    except ValueError:
        return UNLABELLED, [f"unknown {label} {text!r} (of {len(classes.names)} classes)"]
    if not number.is_integer():
        return UNLABELLED, [f"{label} {text} is not a whole number"]
    if not 0 <= number < len(classes.names):
        return UNLABELLED, [f"{label} {text} is not in 0 .. {len(classes.names) - 1}"]
    return int(number), []


def _overlaps(clips: Sequence[ClipRow]) -> list[str]:
    """Returns problems: the same seconds of the same file in two splits."""
    files: dict[str, list[ClipRow]] = {}
    for clip in clips:
        files.setdefault(clip.path, []).append(clip)
    problems = []
    for rows in files.values():
        latest: dict[str, float] = {}  # split -> where its part of this file ends
        for clip in sorted(rows, key=lambda clip: clip.start or 0):
            start = clip.start or 0
            others = [s for s, end in latest.items() if s != clip.split and end > start + 1e-6]
            problems += [f"{clip.name} is in {clip.split} and in {other}" for other in others]
            end = math.inf if clip.end is None else clip.end
            latest[clip.split] = max(latest.get(clip.split, 0), end)
    return problems
