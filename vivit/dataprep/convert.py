"""From a folder of videos and annotation files to a manifest.

The formats are in published.py and dmvr.py.
"""

import csv
import functools
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vivit.data.classes import UNLABELLED, Classes
from vivit.data.files import SUFFIXES, videos_below
from vivit.data.manifest import ClipRow, Manifest, raise_all
from vivit.dataprep.manifest_files import write_manifest
from vivit.io import write_atomically
from vivit.registry import Registry

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A line of an annotation file.

    names: what its video may be called, without suffix; of the first, parts of the folder may be
    left out. labels: class numbers.
    """

    names: tuple[str, ...]
    split: str
    labels: dict[str, int]
    start: float | None = None
    end: float | None = None
    id: str = ""
    whole_if: tuple[str, ...] = ()  # under these names the file is the segment already
    any_case: bool = False  # whether upper and lower case may differ
    is_record: bool = False  # the name is that of a record, not of a video file


class Converted(NamedTuple):
    entries: list[Entry]
    classes: dict[str, Classes]


FILE_OPTIONS = ("classes", "verbs", "nouns")  # options of formats that are files

# (annotation files, **options) -> Converted. A format that takes `videos` gets the folder of the
# videos, one that takes `files` the paths of all videos in it; a format without `files` needs
# annotation files.
FORMATS: Registry[Callable[..., Converted]] = Registry("annotation format")


def convert(
    format: str,
    videos: str | Path,
    annotations: Iterable[str | Path],
    out: str | Path,
    *,
    follow_links: bool = True,
    **options: Any,
) -> tuple[Manifest, list[str]]:
    """Writes a manifest of the clips whose files exist; returns it and the missing ids.

    The missing ones are listed in OUT.missing.txt. follow_links: whether links to files and folders
    are followed. Raises ValueError if no file exists, or an annotation file has another format.
    """
    paths = [Path(path) for path in annotations]
    if not str(out).endswith((".csv", ".parquet")):
        raise ValueError(f"{str(out)!r} must end in .csv or .parquet")
    entries, classes = _read(format, videos, paths, options, follow_links)
    find = Finder(videos, entries, follow_links)
    clips, missing = [], []
    for entry in entries:
        path, whole = find(entry)
        if path is None:
            missing.append(entry.id or entry.names[0])
            continue
        start, end = (None, None) if whole else (entry.start, entry.end)
        clips.append(ClipRow(path, entry.split, entry.labels, start, end, entry.id or path))
    if not clips:
        raise ValueError(
            f"none of the {len(entries)} annotated videos is below {str(videos)!r}; looked for "
            + ", ".join(repr(name) for name in entries[0].names)
        )
    out = Path(out)
    lost = out.with_suffix(".missing.txt")
    write_atomically(lost, "".join(f"{name}\n" for name in missing))
    if missing:
        log.info("%d of %d videos are missing: see %s", len(missing), len(entries), lost)
    manifest = Manifest(tuple(clips), classes)
    write_manifest(out, manifest)
    return manifest, missing


def _read(
    format: str, videos: str | Path, paths: list[Path], options: dict[str, Any], follow_links: bool
) -> Converted:
    """Returns what the annotation files of a format hold."""
    reader = FORMATS[format]
    takes = inspect.signature(reader).parameters
    if unknown := sorted(set(options) - set(takes)):
        known = ", ".join(name for name in takes if name not in ("annotations", "videos", "files"))
        raise ValueError(f"{format} takes no option {', '.join(unknown)}; its options: {known}")
    lost = [f"{str(path)!r} does not exist" for path in paths if not path.is_file()]
    for option, value in options.items():
        if option in FILE_OPTIONS and not Path(value).is_file():
            lost.append(f"--{option} {str(value)!r} does not exist")
    needed = [name for name in FILE_OPTIONS if name in takes and name not in options]
    needed = [name for name in needed if takes[name].default is inspect.Parameter.empty]
    if not paths and "files" not in takes:
        needed.insert(0, "annotations")
    if needed:
        about = inspect.getdoc(reader)
        flags = " and ".join(f"--{name} FILE" for name in needed)
        raise ValueError(f"{format} needs {flags}:\n{about}")
    raise_all("annotation files", lost)
    if "videos" in takes:
        options = {**options, "videos": videos}
    if paths and "files" in takes and not options.get("group"):
        raise ValueError(f"{format} takes no annotation files, but those of --group COLUMN")
    if "files" in takes:
        options = {**options, "files": videos_below(videos, follow_links=follow_links, report=True)}
    converted = reader(paths, **options)
    if not converted.entries:
        raise ValueError(f"the annotation files of {format} hold no clips")
    return converted


class Finder:
    """Finds the file of an entry by its name, in class folders, split folders or flat.

    It never returns a file in the folder of another class.
    """

    def __init__(self, videos: str | Path, entries: list[Entry], follow_links: bool) -> None:
        self.videos, self.follow_links = videos, follow_links
        self.classes = {x for e in entries for name in e.names for x in _folders(name)}

    @functools.cached_property
    def exact(self) -> set[str]:
        return set(videos_below(self.videos, follow_links=self.follow_links))

    @functools.cached_property
    def paths(self) -> dict[str, list[str]]:
        """Paths by stem, as it is and in lower case."""
        paths: dict[str, list[str]] = {}
        for path in sorted(self.exact):
            stem = _stem(path)
            for key in {stem, f"lower:{stem.lower()}"}:
                paths.setdefault(key, []).append(path)
        return paths

    def __call__(self, entry: Entry) -> tuple[str | None, bool]:
        """Returns the path, or None, and whether the file is the segment itself."""
        if entry.is_record:
            return entry.names[0], True
        for name in (*entry.whole_if, *entry.names):
            if name in self.exact:
                return name, name in entry.whole_if
            found = self.paths.get(_stem(name), [])
            if not found and entry.any_case:
                found = self.paths.get(f"lower:{_stem(name).lower()}", [])
            wanted = _folders(name)
            fits = [p for p in found if wanted & _folders(p) or not self.classes & _folders(p)]
            if fits:
                best = max(fits, key=lambda path: (_likeness(path, wanted, entry.split), path))
                return best, name in entry.whole_if
        return None, False


def _stem(name: str) -> str:
    base = os.path.basename(name)
    stem, suffix = os.path.splitext(base)
    return stem if suffix.lower() in SUFFIXES else base


def _folders(path: str) -> set[str]:
    """Returns folders in a form that compares equal: "tap dancing" is tap_dancing."""
    return {re.sub(r"[\W_]+", "", part.lower()) for part in Path(path).parts[:-1]} - {""}


def _likeness(path: str, wanted: set[str], split: str) -> tuple[int, bool]:
    """Returns how many folders of a name a path has, and whether it is in the split's folder."""
    folders = _folders(path)
    return len(wanted & folders), any(f.startswith(split[:3]) for f in folders)


def split_of(path: Path) -> str:
    """Returns the split that an annotation file's name contains; ValueError if it has none."""
    name = path.stem.lower()
    for word, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        # "ucfTrainTestlist" is a folder; a file has one of the words.
        if word in name:
            return split
    raise ValueError(f"{path.name!r} says neither train, val nor test: rename it, say val.csv")


def read_class_names(path: str | Path) -> list[str]:
    """Returns class names in the order of their numbers, from any of the usual files.

    One name per line; "number name" or "name,number" lines (from 0 or 1); or JSON: a list, or a
    mapping from names to numbers or from numbers to names.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        values = json.loads(text)
        if isinstance(values, list):
            return [x if isinstance(x, str) else "_".join(map(str, x)) for x in values]
        pairs = [(str(k), str(v)) for k, v in values.items()]
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        pairs = []
        for line in lines:
            if match := re.fullmatch(r"(\d+)[\s,]+(.+)", line):
                pairs.append((match[2], match[1]))
            elif match := re.fullmatch(r"(.+),\s*(\d+)", line):
                pairs.append((match[1], match[2]))
            else:
                return lines
    if all(key.isdecimal() for key, _ in pairs) and not all(v.isdecimal() for _, v in pairs):
        pairs = [(v, k) for k, v in pairs]
    bad = [f"{name!r} has number {number!r}" for name, number in pairs if not number.isdecimal()]
    raise_all(str(path), bad)
    numbers = {name.strip(): int(number) for name, number in pairs}
    first = min(numbers.values(), default=0)
    if sorted(numbers.values()) != list(range(first, first + len(numbers))) or first > 1:
        raise ValueError(f"{path}: the class numbers are not 0 .. {len(numbers) - 1}, once each")
    return sorted(numbers, key=lambda name: numbers[name])


def numbered(
    name: str, known: dict[str, int], problems: list[str], where: str, *, what: str = "class"
) -> int:
    """Returns the number of a class name, and adds a problem if it is unknown."""
    if name not in known:
        problems.append(f"{where}: unknown {what} {name!r}")
        return UNLABELLED
    return known[name]


def csv_rows(path: Path, *needed: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields where a row stands, for messages, and its values by column."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path.name} has no column {', '.join(missing)}")
        for row in reader:
            yield f"{path.name} line {reader.line_num}", row
