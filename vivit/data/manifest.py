"""The manifest: one row a clip, whatever data set it came from. CSV or Parquet.

Columns: path (below the data root, or a URI; `file.tfrecord#BYTE` is a record), split, and, where
they are wanted, start and end (seconds of the file), id, sha256 (of the file). Every other column
is a label of that name: class names, or class numbers; empty where there is none. Beside
NAME.csv may lie NAME.classes.json: {label: {"names": [...], "flip": {name: mirrored name}}}.
"""

import csv
import functools
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from vivit.io import write_atomically

COLUMNS = ("path", "start", "end", "split", "id", "sha256")
UNLABELLED = -1
MIRRORED = {  # words of class names -> what a mirror makes of them
    "left": ("right",),
    "right": ("left",),
    "clockwise": ("anticlockwise", "counterclockwise"),
    "anticlockwise": ("clockwise",),
    "counterclockwise": ("clockwise",),
}
MOST_CLASSES = 100_000
SHOWN = 10  # problems that an error spells out


@dataclass(frozen=True)
class Clip:
    """One row. labels: label -> class number, UNLABELLED where there is none."""

    path: str
    split: str
    labels: dict[str, int]
    start: float | None = None
    end: float | None = None
    id: str = ""
    sha256: str = ""

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.start is None and self.end is None:
            return self.path
        end = "end" if self.end is None else f"{self.end:g} s"
        return f"{self.path} ({self.start or 0:g} s to {end})"


@dataclass(frozen=True)
class Classes:
    """Class names of a label in the order of their numbers.

    flip: name -> the class that its mirror image is of, for classes that tell left from right;
    None in the place of a name where there is no such class.
    """

    names: tuple[str, ...]
    flip: dict[str, str | None] = field(default_factory=dict)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def mirrored(self) -> list[int]:
        """The class number of each class's mirror image; UNLABELLED where there is none."""
        to = [self.flip.get(name, name) for name in self.names]
        return [UNLABELLED if name is None else self.numbers[name] for name in to]


@dataclass(frozen=True)
class Manifest:
    clips: tuple[Clip, ...]
    classes: dict[str, Classes]

    def split(self, name: str) -> list[Clip]:
        found = [clip for clip in self.clips if clip.split == name]
        if not found:
            splits = ", ".join(sorted({clip.split for clip in self.clips}))
            raise ValueError(f"no clip is of split {name!r}; there are: {splits}")
        return found


def read_manifest(path: str | Path) -> Manifest:
    """A manifest with all its rows checked. ValueError lists what is wrong, with the rows."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no manifest {str(path)!r}; make one with: python -m vivit.data convert")
    try:
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as {path.suffix[1:] or 'CSV'}: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    names = [name for name in rows[0] if name not in COLUMNS]
    problems = [f"no column {name!r}" for name in ("path", "split") if name not in rows[0]]
    if not names:
        problems.append(f"no column of labels, which is any but {', '.join(COLUMNS)}")
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


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Writes CSV, or Parquet for a name that ends so, and the classes beside it."""
    path = Path(path)
    columns = [*COLUMNS, *manifest.classes]
    rows = [
        [c.path, c.start, c.end, c.split, c.id, c.sha256]
        + [
            "" if c.labels[k] == UNLABELLED else manifest.classes[k].names[c.labels[k]]
            for k in manifest.classes
        ]
        for c in manifest.clips
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if path.suffix == ".parquet":
        arrays = list(zip(*rows, strict=True))
        parquet.write_table(pa.table(dict(zip(columns, map(list, arrays), strict=True))), part)
    else:
        with open(part, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(["" if x is None else x for x in row] for row in rows)
    values = {k: {"names": v.names, "flip": v.flip} for k, v in manifest.classes.items()}
    write_atomically(classes_path(path), json.dumps(values, indent=1) + "\n")
    part.replace(path)


def classes_path(path: Path) -> Path:
    return path.with_suffix(".classes.json")


def raise_all(what: str, problems: Sequence[str]) -> None:
    """ValueError with the first problems and the number of all, if there are any."""
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{what}:\n  " + "\n  ".join(problems[:SHOWN]) + more)


def mirror_names(names: Iterable[str]) -> dict[str, str | None]:
    """The classes that tell left from right -> their mirror images, by the words in their names."""
    names = tuple(names)
    known = {name.lower(): name for name in names}
    mirrored = {}
    for name in names:
        words = re.split(r"(\W+|_)", name.lower())
        if any(word in MIRRORED for word in words):
            choices = itertools.product(*(MIRRORED.get(word, (word,)) for word in words))
            found = (known.get("".join(choice)) for choice in choices)
            mirrored[name] = next((other for other in found if other), None)
    return mirrored


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restkey="", restval="")
        rows = list(reader)
    long = [i for i, row in enumerate(rows, start=2) if "" in row]
    raise_all(str(path), [f"row {i} has more fields than the first line" for i in long])
    return rows


def _read_parquet(path: Path) -> list[dict[str, str]]:
    rows = parquet.read_table(path).to_pylist()
    return [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


def _classes(path: Path, labels: Sequence[str], rows: list[dict[str, str]]) -> dict[str, Classes]:
    """From the file beside the manifest, or else from the values that there are."""
    beside = classes_path(path)
    told = _read_classes(beside) if beside.exists() else {}
    classes = {}
    for label in labels:
        values = {row[label] for row in rows} - {""}
        if label in told:
            names = tuple(told[label]["names"])
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{beside} has {label} classes twice: {', '.join(repeated)}")
            flip = told[label].get("flip", mirror_names(names))
            odd = [k for k, v in flip.items() if k not in names or (v and flip.get(v, v) != k)]
            raise_all(f"{beside}: flip must pair classes of {label}, both ways", odd)
            classes[label] = Classes(names, dict(flip))
        elif numbers := [value for value in map(_number, values) if value is not None]:
            if len(numbers) < len(values):
                text = next(value for value in values if _number(value) is None)
                raise ValueError(f"{path}: {label} mixes numbers and names, such as {text!r}")
            if max(numbers) >= MOST_CLASSES:
                raise ValueError(
                    f"{path}: {label} {max(numbers):g} is no class number; every column but "
                    f"{', '.join(COLUMNS)} is a label: leave out the others"
                )
            classes[label] = Classes(tuple(str(i) for i in range(int(max(numbers)) + 1)))
        else:
            names = tuple(sorted(values))
            classes[label] = Classes(names, mirror_names(names))
    return classes


def _read_classes(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
        if all(isinstance(told[label]["names"], list) for label in told):
            return told
    except (json.JSONDecodeError, TypeError, KeyError, IndexError):
        pass
    raise ValueError(f'{path} is not as it must be: {{"label": {{"names": ["first", ...]}}}}')


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _clip(row: dict[str, str], classes: dict[str, Classes]) -> tuple[Clip, list[str]]:
    problems: list[str] = []
    if not row["path"]:
        problems.append("no path")
    if not row["split"] or not re.fullmatch(r"\w+", row["split"]):
        problems.append(f"split {row['split']!r} is no word")
    seconds = {}
    for name in ("start", "end"):
        text = row.get(name, "")
        try:
            seconds[name] = float(text) if text else None
        except ValueError:
            seconds[name] = math.nan
        if seconds[name] is not None and not 0 <= seconds[name] < math.inf:
            problems.append(f"{name} {text!r} is no number of seconds")
            seconds[name] = None
    if None not in seconds.values() and seconds["end"] <= seconds["start"]:
        problems.append(f"ends at {seconds['end']:g} s, before its start at {seconds['start']:g} s")
    numbers = {}
    for label, known in classes.items():
        number, wrong = class_number(row[label], label, known)
        numbers[label] = number
        problems += wrong
    clip = Clip(
        row["path"], row["split"], numbers, **seconds, id=row.get("id", ""),
        sha256=row.get("sha256", ""),
    )  # fmt: skip
    return (clip if clip.id else replace(clip, id=clip.name)), problems


def class_number(value: Any, label: str, classes: Classes) -> tuple[int, list[str]]:
    """The number of a class by name or number, and what is wrong with it."""
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
        return UNLABELLED, [f"{label} {text} is no whole number"]
    if not 0 <= number < len(classes.names):
        return UNLABELLED, [f"{label} {text} is not in 0 .. {len(classes.names) - 1}"]
    return int(number), []


def _overlaps(clips: Sequence[Clip]) -> list[str]:
    """Footage that is in two splits: the same seconds of the same file."""
    files: dict[str, list[Clip]] = {}
    for clip in clips:
        files.setdefault(clip.path, []).append(clip)
    problems = []
    for own in files.values():
        own = sorted(own, key=lambda clip: clip.start or 0)
        latest: dict[str, float] = {}  # split -> where its footage of this file ends
        for clip in own:
            start = clip.start or 0
            others = [s for s, end in latest.items() if s != clip.split and end > start + 1e-6]
            problems += [f"{clip.name} is in {clip.split} and in {other}" for other in others]
            end = math.inf if clip.end is None else clip.end
            latest[clip.split] = max(latest.get(clip.split, 0), end)
    return problems
