"""The annotation format "folder": one folder per class, with splits that do not leak."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vivit.data.classes import Classes, mirror_names
from vivit.data.manifest import raise_all
from vivit.dataprep.convert import FORMATS, Converted, Entry, csv_rows, log

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
SHOWN = 5  # sources that a warning names
# What counts the clips of one film: "_c03", "-clip 2", "_000123_000133", " (4)".
COUNTER = re.compile(
    r"[\W_]+(?:c|clip|cut|part|pt|scene|seg|segment|shot|take)?[\W_]*\d+(?:[\W_]+\d+)*\W*$",
    re.IGNORECASE,
)


@FORMATS.register("folder")
def folder(
    annotations: Sequence[Path],
    *,
    files: list[str],
    holdout: str = "0.1,0.1",
    seed: str = "0",
    group: str = "",
    skip: bool = False,
) -> Converted:
    """A folder of class folders, or of train/, validation/ (val/) and test/ with such folders.

    holdout: fractions of the files of each class for validation and test, where no folder is named
        after a split. The files are drawn with `seed`.
    group: keeps the files of a group in one split: a regular expression that finds the group's name
        in a path (its first group in parentheses, or all that it matches); or a column of an
        annotation file, a CSV with the column "path".
    skip: leaves out files that are in no class folder, which are an error otherwise.
    """
    of_split = [p for p in files if Path(p).parts[0].lower() in SPLITS and len(Path(p).parts) > 2]
    by_split = bool(of_split) and 2 * len(of_split) >= len(files)
    first = 1 if by_split else 0  # the part of a path that is the class
    fits = set(of_split) if by_split else {p for p in files if len(Path(p).parts) > 1}
    stray = [p for p in files if p not in fits]
    if stray and not skip:
        where = "class folder of a split" if by_split else "class folder"
        raise_all(f"files in no {where}; move them, or leave them out with --skip", stray)
    if stray:
        log.info("%d files are in no class folder and are left out", len(stray))
    paths = [p for p in files if p in fits]
    if not paths:
        raise ValueError("no file is in a class folder: put the files into one folder per class")
    label = {p: Path(p).parts[first] for p in paths}
    if by_split and group:
        raise ValueError("the folders name the splits; --group has nothing to draw, leave it out")
    if by_split:
        of = {p: SPLITS[Path(p).parts[0].lower()] for p in paths}
    elif group:
        of = _draw_groups(label, _groups(paths, group, annotations), _fractions(holdout), seed)
    else:
        of = _draw_files(label, _fractions(holdout), seed)
    warn_of_shared_sources(of)
    names = sorted(set(label.values()))
    missing = [n for n in names if not any(label[p] == n and of[p] == "train" for p in paths)]
    if missing:
        log.warning("no clip of split train is of: %s", ", ".join(missing))
    entries = [Entry((p,), of[p], {"label": names.index(label[p])}, id=p) for p in paths]
    return Converted(entries, {"label": Classes(tuple(names), mirror_names(names))})


def _fractions(holdout: str) -> list[float]:
    try:
        fractions = [float(x) for x in str(holdout).split(",")]
    except ValueError:
        fractions = []
    if len(fractions) != 2 or min(fractions) < 0 or sum(fractions) >= 1:
        raise ValueError(f"{holdout=} is not a pair of fractions below 1, such as 0.1,0.1")
    return fractions


def _seeded(seed: str) -> np.random.Generator:
    if not str(seed).isdecimal():
        raise ValueError(f"{seed=} is not a whole number")
    return np.random.default_rng(int(seed))


def _draw_files(label: Mapping[str, str], fractions: list[float], seed: str) -> dict[str, str]:
    """Returns the split of each file, drawn within each class."""
    rng, of = _seeded(seed), {}
    for name in sorted(set(label.values())):
        members = [p for p in label if label[p] == name]
        members = [members[i] for i in rng.permutation(len(members))]
        counts = [
            0 if len(members) < 3 else max(1, round(x * len(members))) * (x > 0) for x in fractions
        ]
        ends = np.cumsum(counts)
        for i, p in enumerate(members):
            of[p] = "validation" if i < ends[0] else "test" if i < ends[1] else "train"
    return of


def _groups(paths: Sequence[str], group: str, annotations: Sequence[Path]) -> dict[str, str]:
    """Returns the group of each path. Raises ValueError that lists the paths without one."""
    if annotations:
        found: dict[str, str] = {}
        for file in annotations:
            found |= {row["path"]: row[group] for _, row in csv_rows(file, "path", group)}
        raise_all(f"paths that have no {group}", [p for p in paths if not found.get(p)])
        return {p: found[p] for p in paths}
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"{group=} is not a regular expression: {error}") from error
    matches = {p: pattern.search(p) for p in paths}
    raise_all(f"paths in which {group!r} finds nothing", [p for p, m in matches.items() if not m])
    return {p: (m[1] if pattern.groups else m[0]) or "" for p, m in matches.items() if m}


def _draw_groups(
    label: Mapping[str, str], groups: Mapping[str, str], fractions: list[float], seed: str
) -> dict[str, str]:
    """Returns the split of each file: whole groups, large ones first, each to the split that lacks
    most of its classes."""
    members = defaultdict(list)
    for path, name in groups.items():
        members[name].append(path)
    shares = {"train": 1 - sum(fractions), "validation": fractions[0], "test": fractions[1]}
    shares = {split: share for split, share in shares.items() if share > 0}
    if len(members) < len(shares):
        raise ValueError(f"{len(members)} groups cannot be divided over {len(shares)} splits")
    names = sorted(members)
    order = [names[i] for i in _seeded(seed).permutation(len(names))]
    order.sort(key=lambda name: -len(members[name]))
    totals = Counter(label.values())
    lacking = {s: {c: share * n for c, n in totals.items()} for s, share in shares.items()}
    of, empty = {}, list(shares)
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        counts = Counter(label[p] for p in members[name])
        # The last groups go to splits that have none yet.
        choices = empty if left <= len(empty) else list(shares)
        need = lambda s, counts=counts: sum(
            n * lacking[s][c] / (shares[s] * totals[c]) for c, n in counts.items()
        )
        chosen = max(choices, key=need)
        empty = [s for s in empty if s != chosen]
        for c, n in counts.items():
            lacking[chosen][c] -= n
        of |= dict.fromkeys(members[name], chosen)
    return of


def source_of(path: str) -> str:
    """Returns what a clip seems to be cut from, by its name, or "" if nothing suggests it.

    That is the name without a counter at its end, in its folder; "0.mp4" and a class's name with
    a number suggest nothing.
    """
    place = Path(path)
    match = COUNTER.search(place.stem)
    if not match:
        return ""
    base = place.stem[: match.start()]
    plain = re.sub(r"[\W_]+", "", base.lower())
    folders = {re.sub(r"[\W_]+", "", part.lower()) for part in place.parts[:-1]}
    return base if len(plain) > 2 and plain not in folders else ""


def shared_sources(splits: Mapping[str, str]) -> list[str]:
    """Returns lines on sources whose clips are in several splits; splits: path -> split."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for path, split in splits.items():
        source = source_of(path)
        if source:
            counts[source][split] += 1
    several = {source: n for source, n in counts.items() if len(n) > 1}
    listed = lambda n: ", ".join(f"{k} in {split}" for split, k in sorted(n.items()))
    return [f"{source}: {listed(several[source])}" for source in sorted(several)]


def warn_of_shared_sources(splits: Mapping[str, str]) -> None:
    """Logs a warning if clips that seem to be of one film are in several splits."""
    found = shared_sources(splits)
    if found:
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        log.warning(
            "%d films seem to have clips in several splits, so that a score on them says little:"
            "\n  %s%s\nkeep those of a film together with --group REGEX, such as "
            r"--group '([^/]+)_\d+\.\w+$'",
            len(found),
            "\n  ".join(found[:SHOWN]),
            more,
        )
