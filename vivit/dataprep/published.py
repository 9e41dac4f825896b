"""The annotation files of the public data sets, each in the format that it was published in."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivit.data.classes import UNLABELLED, Classes, mirror_names
from vivit.data.manifest import raise_all
from vivit.dataprep.convert import (
    FORMATS,
    Converted,
    Entry,
    csv_rows,
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
    needed = ("youtube_id", "time_start", "time_end")
    rows = [(path, *found) for path in annotations for found in csv_rows(path, *needed)]
    names = (
        read_class_names(classes)
        if classes
        else sorted({row["label"] for _, _, row in rows if row.get("label")})
    )
    known = {name: i for i, name in enumerate(names)}
    entries, problems = [], []
    for path, where, row in rows:
        start, end = (_number(row, x, where, problems) for x in ("time_start", "time_end"))
        if not row["youtube_id"]:
            problems.append(f"{where}: no youtube_id")
        label = row.get("label", "")
        number = numbered(label, known, problems, where) if label else UNLABELLED
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
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=";")
            for row in (row for row in reader if row):
                if len(row) != 2:
                    where = f"{path.name} line {reader.line_num}"
                    problems.append(f"{where}: {';'.join(row)!r} is not like id;template")
                else:
                    answers[row[0]] = row[1]
    for path in (p for p in annotations if p.suffix != ".csv"):
        for where, row in _json_rows(path, "id"):
            id = str(row["id"])
            template = row.get("template") or answers.get(id, "")
            number = UNLABELLED
            if template:
                at = f"{where} ({id})"
                number = numbered(_plain(template), known, problems, at, what="template")
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
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.strip():
                continue
            name, _, use = line.strip().rpartition(" ")
            if not name or use not in ("0", "1", "2"):
                problems.append(f"{path.name} line {number}: {line!r} is not a file and 0, 1 or 2")
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
        for where, row in csv_rows(path, "video_id", "start_timestamp", "stop_timestamp"):
            labels = {}
            for label, known in names.items():
                text = row.get(f"{label}_class", "")
                labels[label] = int(text) if text.isdecimal() else UNLABELLED
                if text and not 0 <= labels[label] < len(known):
                    classes = f"0 .. {len(known) - 1}"
                    problems.append(f"{where}: {label}_class {text!r} is not in {classes}")
            start, end = (_clock(row, f"{x}_timestamp", where, problems) for x in ("start", "stop"))
            if not row["video_id"]:
                problems.append(f"{where}: no video_id")
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
        for where, row in _json_rows(path, "vid_name", "label"):
            number, name = row["label"], str(row["vid_name"])
            if not str(number).isdecimal() or int(number) >= len(names):
                problems.append(
                    f"{where} ({name}): label {number!r} is not in 0 .. {len(names) - 1}"
                )
                continue
            entries.append(Entry((name,), split_of(path), {"label": int(number)}, id=name))
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
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in reader:
                where = f"{path.name} line {reader.line_num}"
                if len(row) < 2:
                    problems.append(f"{where}: {','.join(row)!r} is not a path and class")
                    continue
                label = numbered(row[1], known, problems, where)
                entries.append(Entry((row[0],), split_of(path), {"label": label}, id=row[0]))
    raise_all("moments", problems)
    return Converted(entries, {"label": Classes(tuple(names))})


def _json_rows(path: Path, *needed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where an entry stands, for messages, and the entry."""
    try:
        rows = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path.name} is not a list of entries with {', '.join(needed)}")
    whole = lambda row: isinstance(row, dict) and all(key in row for key in needed)
    odd = [f"entry {i}: {row!r}" for i, row in enumerate(rows, start=1) if not whole(row)]
    raise_all(f"{path.name} has entries without {' or '.join(needed)}", odd)
    for i, row in enumerate(rows, start=1):
        yield f"{path.name} entry {i}", row


def _number(row: Mapping[str, Any], column: str, where: str, problems: list[str]) -> float:
    """Returns a number of 0 or more; adds a problem, and returns 0, if it is none."""
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf"):
        problems.append(f"{where}: {column} {row[column]!r} is not a number of 0 or more")
        return 0.0
    return value


def _plain(template: str) -> str:
    return re.sub(r"[\[\]]", "", template).strip().lower()


def _epic_names(path: Path) -> list[str]:
    rows = [row for _, row in csv_rows(path, "id", "key")]
    names = {row["id"]: row["key"] for row in rows}
    if set(names) != {str(i) for i in range(len(rows))}:
        raise ValueError(f"{path.name}: the ids are not 0 .. {len(rows) - 1}, once each")
    return [names[str(i)] for i in range(len(rows))]


def _clock(row: Mapping[str, str], column: str, where: str, problems: list[str]) -> float:
    """Returns the seconds of "00:01:02.50"; adds a problem, and returns 0, if it is not one."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", row[column].strip())
    if not match:
        problems.append(f"{where}: {column} {row[column]!r} is not a time such as 00:01:02.50")
        return 0.0
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
