"""The annotation files of the public data sets, each in the format that it was published in."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vivit.data.classes import UNLABELLED, Classes, mirror_names
from vivit.data.manifest import raise_all
from vivit.dataprep.convert import (
    FORMATS,
    Converted,
    Entry,
    numbered,
    read_class_names,
    split_of,
)

Paths = Sequence[Path]


@FORMATS.register("kinetics")
def kinetics(annotations: Paths, *, classes: str = "") -> Converted:
    """Kinetics-400, -600, -700: label, youtube_id, time_start, time_end, split.

    Files are {id}_{start:06d}_{end:06d}.mp4, or the whole video {id}.mp4, in class folders or
    flat. Class numbers are those of the sorted names (of all files given), as is customary.
    """
    rows = [(path, row) for path in annotations for row in _rows(path, "youtube_id", "time_start")]
    names = (
        read_class_names(classes)
        if classes
        else sorted({row["label"] for _, row in rows if row.get("label")})
    )
    known = {name: i for i, name in enumerate(names)}
    entries, problems = [], []
    for path, row in rows:
        start, end = float(row["time_start"]), float(row["time_end"])
        label = row.get("label", "")
        number = numbered(label, known, problems, path.name) if label else UNLABELLED
        stem = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
        split = (row.get("split") or split_of(path)).strip().lower()
        split = {"val": "validation", "validate": "validation"}.get(split, split)
        folder = f"{label}/" if label else ""
        entries.append(
            Entry(
                (f"{folder}{row['youtube_id']}",), split, {"label": number}, start, end, stem,
                whole_if=(f"{folder}{stem}",),
            )
        )  # fmt: skip
    raise_all("kinetics", problems)
    return Converted(entries, {"label": Classes(tuple(names), mirror_names(names))})


@FORMATS.register("list")
def path_list(annotations: Paths, *, classes: str = "") -> Converted:
    """Lists of SlowFast and mmaction: lines of a path, a space or comma, and a class number.

    Paths may begin with folders that do not exist: files are then found by name.
    """
    entries, problems, largest = [], [], -1
    for path in annotations:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            match = re.fullmatch(r"(.+?)[\s,]+(-?\d+)", line.strip())
            if not match or int(match[2]) < 0:
                problems.append(
                    f"{path.name} line {number}: {line!r} is not a path and class number"
                )
                continue
            largest = max(largest, int(match[2]))
            name = match[1].strip("\"'")
            entries.append(Entry((name,), split_of(path), {"label": int(match[2])}, id=name))
    names = read_class_names(classes) if classes else [str(i) for i in range(largest + 1)]
    if largest >= len(names):
        problems.append(f"class number {largest} is not in 0 .. {len(names) - 1} of {classes}")
    raise_all("list", problems)
    return Converted(entries, {"label": Classes(tuple(names), mirror_names(names))})


@FORMATS.register("something")
def something(annotations: Paths, *, classes: str) -> Converted:
    """Something-Something v2: train, validation and test .json; files are {id}.webm.

    classes: the labels .json (template -> number). Templates may have brackets around their
    "something". The test file has no labels, but a test-answers.csv (id;template) may be given.
    Classes that tell left from right know their mirror images.
    """
    names = read_class_names(classes)
    known = {_plain(name): i for i, name in enumerate(names)}
    entries, problems, answers = [], [], {}
    for path in (p for p in annotations if p.suffix == ".csv"):
        with open(path, newline="") as file:
            answers |= {row[0]: row[1] for row in csv.reader(file, delimiter=";") if row}
    for path in (p for p in annotations if p.suffix != ".csv"):
        for row in _json_rows(path, "id"):
            id = str(row["id"])
            template = row.get("template") or answers.get(id, "")
            number = UNLABELLED
            if template:
                number = numbered(
                    _plain(template), known, problems, f"{path.name} {id}", what="template"
                )
            entries.append(Entry((id,), split_of(path), {"label": number}, id=id))
    raise_all("something", problems)
    return Converted(entries, {"label": Classes(tuple(names), mirror_names(names))})


@FORMATS.register("ucf101")
def ucf101(annotations: Paths, *, classes: str) -> Converted:
    """UCF101: trainlist0N.txt and testlist0N.txt; classes: classInd.txt, which counts from 1.

    The class is the folder; HandstandPushups is written HandStandPushups in file names.
    """
    names = read_class_names(classes)
    known = {name.lower(): i for i, name in enumerate(names)}
    entries, problems = [], []
    for path in annotations:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            folder = Path(words[0]).parts[0]
            label = numbered(folder.lower(), known, problems, f"{path.name} line {number}")
            if len(words) > 1 and words[1] != str(label + 1):
                problems.append(
                    f"{path.name} line {number}: {folder} is {label + 1}, not {words[1]}"
                )
            entries.append(
                Entry((words[0],), split_of(path), {"label": label}, id=words[0], any_case=True)
            )
    raise_all("ucf101", problems)
    return Converted(entries, {"label": Classes(tuple(names))})


@FORMATS.register("hmdb51")
def hmdb51(annotations: Paths) -> Converted:
    """HMDB51: CLASS_test_splitN.txt of one N; a line is a file and 1 (train), 2 (test) or 0."""
    matches = {path: re.fullmatch(r"(.+)_test_split(\d)", path.stem) for path in annotations}
    problems = [
        f"{path.name} is not a CLASS_test_splitN.txt" for path, m in matches.items() if not m
    ]
    if len({m[2] for m in matches.values() if m}) > 1:
        problems.append("give the files of one split number: the three splits share clips")
    raise_all("hmdb51", problems)
    folders = {path: match[1] for path, match in matches.items() if match}
    names = sorted(set(folders.values()))
    entries = []
    for path, folder in folders.items():
        for line in path.read_text().splitlines():
            if not line.strip():
                continue
            name, use = line.strip().rsplit(maxsplit=1)
            if use not in ("0", "1", "2"):
                problems.append(f"{path.name}: {line!r} ends in neither 0, 1 nor 2")
            elif use != "0":
                split = "train" if use == "1" else "test"
                label = {"label": names.index(folder)}
                entries.append(Entry((f"{folder}/{name}",), split, label, id=name))
    raise_all("hmdb51", problems)
    return Converted(entries, {"label": Classes(tuple(names))})


@FORMATS.register("epic_kitchens")
def epic_kitchens(annotations: Paths, *, verbs: str, nouns: str) -> Converted:
    """Epic-Kitchens-100: EPIC_100_train.csv ...: segments of long videos, labels verb and noun.

    verbs, nouns: EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv (97 and 300 classes).
    """
    names = {"verb": _epic_names(Path(verbs)), "noun": _epic_names(Path(nouns))}
    entries, problems = [], []
    for path in annotations:
        for row in _rows(path, "video_id", "start_timestamp", "stop_timestamp"):
            labels = {}
            for label, known in names.items():
                text = row.get(f"{label}_class", "")
                labels[label] = int(text) if text else UNLABELLED
                if labels[label] >= len(known):
                    problems.append(f"{path.name}: {label}_class {text} of {len(known)} classes")
            start, end = (_clock(row[f"{x}_timestamp"]) for x in ("start", "stop"))
            id = row.get("narration_id") or f"{row['video_id']}_{start:.2f}"
            person = row["video_id"].split("_")[0]
            name = f"{person}/{row['video_id']}"
            entries.append(Entry((name,), split_of(path), labels, start, end, id))
    raise_all("epic_kitchens", problems)
    return Converted(entries, {label: Classes(tuple(known)) for label, known in names.items()})


@FORMATS.register("diving48")
def diving48(annotations: Paths, *, classes: str = "") -> Converted:
    """Diving48 v2: Diving48_V2_train.json and _test.json; classes: Diving48_vocab.json."""
    names = read_class_names(classes) if classes else [str(i) for i in range(48)]
    entries, problems = [], []
    for path in annotations:
        for row in _json_rows(path, "vid_name", "label"):
            if not 0 <= int(row["label"]) < len(names):
                problems.append(f"{path.name} {row['vid_name']}: label {row['label']}")
            entries.append(
                Entry((row["vid_name"],), split_of(path), {"label": int(row["label"])},
                      id=row["vid_name"])
            )  # fmt: skip
    raise_all("diving48", problems)
    return Converted(entries, {"label": Classes(tuple(names))})


@FORMATS.register("moments")
def moments(annotations: Paths, *, classes: str) -> Converted:
    """Moments in Time: trainingSet.csv and validationSet.csv (path, class, votes);
    classes: moments_categories.txt (class,number)."""
    names = read_class_names(classes)
    known = {name: i for i, name in enumerate(names)}
    entries, problems = [], []
    for path in annotations:
        with open(path, newline="") as file:
            for row in csv.reader(file):
                if len(row) < 2:
                    problems.append(f"{path.name}: {','.join(row)!r} is not a path and class")
                    continue
                label = numbered(row[1], known, problems, f"{path.name} {row[0]}")
                entries.append(Entry((row[0],), split_of(path), {"label": label}, id=row[0]))
    raise_all("moments", problems)
    return Converted(entries, {"label": Classes(tuple(names))})


@FORMATS.register("folder")
def folder(
    annotations: Paths, *, files: list[str], holdout: str = "0.1,0.1", seed: str = "0"
) -> Converted:
    """A folder of class folders, or of train/, validation/ (val/) and test/ with such folders.

    holdout: fractions of the files of each class for validation and test, where no folder is named
    after a split. The files are drawn with `seed`.
    """
    paths = files
    splits = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
    odd = [p for p in paths if Path(p).parts[0].lower() not in splits or len(Path(p).parts) < 3]
    by_split = not odd
    if odd and len(odd) < len(paths):
        raise ValueError(f"{odd[0]!r} is in no class folder of a split, as other files are")
    flat = [p for p in paths if len(Path(p).parts) < 2]
    if flat:
        raise ValueError(
            f"{flat[0]!r} is in no class folder; put the files into one folder per class"
        )
    label = lambda p: Path(p).parts[1 if by_split else 0]
    names = sorted({label(p) for p in paths})
    classes = {"label": Classes(tuple(names), mirror_names(names))}
    if by_split:
        of = {p: splits[Path(p).parts[0].lower()] for p in paths}
    else:
        fractions = [float(x) for x in str(holdout).split(",")]
        if len(fractions) != 2 or min(fractions) < 0 or sum(fractions) >= 1:
            raise ValueError(f"{holdout=} is not a pair of fractions below 1, such as 0.1,0.1")
        rng, of = np.random.default_rng(int(seed)), {}
        for name in names:
            members = [p for p in paths if label(p) == name]
            members = [members[i] for i in rng.permutation(len(members))]
            counts = [
                0 if len(members) < 3 else max(1, round(x * len(members))) * (x > 0)
                for x in fractions
            ]
            ends = np.cumsum(counts)
            for i, p in enumerate(members):
                of[p] = "validation" if i < ends[0] else "test" if i < ends[1] else "train"
    entries = [Entry((p,), of[p], {"label": names.index(label(p))}, id=p) for p in paths]
    return Converted(entries, classes)


def _rows(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path.name} has no column {', '.join(missing)}")
        yield from reader


def _json_rows(path: Path, *needed: str) -> list[dict]:
    try:
        rows = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(rows, list) or any(not all(k in row for k in needed) for row in rows):
        raise ValueError(f"{path.name} is not a list of entries with {', '.join(needed)}")
    return rows


def _plain(template: str) -> str:
    return re.sub(r"[\[\]]", "", template).strip().lower()


def _epic_names(path: Path) -> list[str]:
    rows = sorted(_rows(path, "id", "key"), key=lambda row: int(row["id"]))
    if [int(row["id"]) for row in rows] != list(range(len(rows))):
        raise ValueError(f"{path.name}: the ids are not 0 .. {len(rows) - 1}")
    return [row["key"] for row in rows]


def _clock(text: str) -> float:
    """Returns the seconds of "00:01:02.50"."""
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
