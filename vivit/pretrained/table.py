"""A source's table: which array of its files is which parameter of ours, every one accounted for.

Parameters are named by their path in an unrolled model: "stage_0/layer_3/norm_mlp/scale".
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vivit.pretrained.files import Archive, Arrays
from vivit.registry import Registry


class Rule(NamedTuple):
    """pattern: of a whole name in the file. path: of the parameter, with the pattern's groups; ""
    for an array that is dropped on purpose. transform: array -> array, or -> {path: array} for
    arrays that hold several parameters; their paths follow `path`. why: it is dropped."""

    pattern: str
    path: str = ""
    transform: Callable[[np.ndarray], np.ndarray | Arrays] | None = None
    why: str = ""


class Asked(NamedTuple):
    """source_clip: the clip of the source's model, as the caller says; it must fit. clip: of the
    wanted model, which is taken for the source's where nothing else is known and it fits."""

    source_clip: tuple[int, int, int] | None = None
    clip: tuple[int, int, int] | None = None


@dataclass
class Native:
    """A source's model as it stands in its file, in our names.

    origins: path -> the array's name there. changed: paths whose array was transformed. dropped:
    name there -> why. problems: of the file, found so far. groups: name -> (start, end) of
    classes, where the head is of several tasks.
    """

    model_config: dict[str, Any]
    params: Arrays = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    labels: tuple[str, ...] = ()
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Somebody's checkpoints. about: what they are. recognises: whether an archive is one. read:
    (archive, asked) -> Native, or ValueError."""

    name: str
    about: str
    recognises: Callable[[Archive], bool]
    read: Callable[[Archive, Asked], Native]


SOURCES: Registry[Source] = Registry("source")


def source(name: str, *, about: str, recognises: Callable[[Archive], bool]) -> Callable:
    """Registers the decorated function as the reader of a source."""

    def register(read: Callable[[Archive, Asked], Native]) -> Callable:
        SOURCES.add(name, Source(name, about, recognises, read))
        return read

    return register


def apply_rules(native: Native, arrays: Arrays, rules: Sequence[Rule]) -> None:
    """Fills `native` from arrays; takes them out of `arrays`, so that no two copies are held.

    What no rule or several rules match, and parameters that come twice, go to its problems.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    problems = native.problems
    for name in list(arrays):
        matches = [(m, rule) for regex, rule in compiled if (m := regex.fullmatch(name))]
        if len(matches) != 1:
            how = "matched by several rules" if matches else "unexpected"
            problems.append(f"{how}: {name} {list(np.shape(arrays[name]))}")
            continue
        match, rule = matches[0]
        array = arrays.pop(name)
        if not rule.path:
            native.dropped[name] = rule.why
            continue
        if not array.size:
            native.dropped[name] = "it is empty"
            continue
        if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
            problems.append(f"not numbers with a fraction: {name} of {array.dtype}")
            continue
        path = match.expand(rule.path)
        try:
            made = array if rule.transform is None else rule.transform(array)
        except (ValueError, IndexError) as error:
            problems.append(f"wrong shape: {name} {list(array.shape)} for {path} ({error})")
            continue
        for tail, value in (made if isinstance(made, dict) else {"": made}).items():
            part = path + tail
            if part in native.params:
                problems.append(f"doubly matched: {name} and {native.origins[part]} for {part}")
                continue
            native.params[part] = np.asarray(value, np.float32)
            native.origins[part] = name
            if rule.transform is not None or array.dtype != np.float32:
                native.changed.add(part)


def raise_problems(problems: Sequence[str], what: str) -> None:
    """One ValueError of all problems, if there are any."""
    if problems:
        listed = "\n  ".join(sorted(problems)[:60])
        more = f"\n  and {len(problems) - 60} more" if len(problems) > 60 else ""
        raise ValueError(f"{len(problems)} problems with {what}:\n  {listed}{more}")


def shape_problems(
    there: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    named: Callable[[str], str] = str,
) -> list[str]:
    """Missing and unexpected paths, and those of another shape. named: how a path that is there is
    spoken of."""
    missing = [f"missing: {path} {list(wanted[path])}" for path in wanted if path not in there]
    others = []
    for path, shape in there.items():
        if path not in wanted:
            others.append(f"unexpected: {named(path)} {list(shape)}")
        elif shape != wanted[path]:
            others.append(f"wrong shape: {named(path)} {list(shape)}, not {list(wanted[path])}")
    return missing + others


def depth_of(names: Collection[str], pattern: str) -> int:
    """One more than the largest number that the pattern's only group has in the names, 0 for none.

    A number left out is found later, as a missing parameter; ValueError for one that no file of so
    few arrays can have.
    """
    regex = re.compile(pattern)
    numbers = [int(match[1]) for name in names if (match := regex.match(name))]
    depth = max(numbers, default=-1) + 1
    if depth > len(names):
        raise ValueError(f"{len(names)} arrays can't be those of {depth} layers")
    return depth


def split_class_row(table: np.ndarray) -> Arrays:
    """A position table [1, 1 + N, D] whose first row is the class token's."""
    return {"class_token": table[0, :1], "table": table[0, 1:]}


def grid_of(n: int, patch: Sequence[int], asked: Asked) -> tuple[int, int]:
    """Rows and columns of n places: those of source_clip, which must fit, or else a square."""
    for clip in (asked.source_clip, asked.clip if round(n**0.5) ** 2 != n else None):
        if clip:
            rows, columns = clip[1] // patch[0], clip[2] // patch[1]
            if rows * columns == n:
                return rows, columns
    if asked.source_clip or round(n**0.5) ** 2 != n:
        raise ValueError(
            f"{n} positions of patches {tuple(patch)} are no square and not those of "
            f"source_clip={asked.source_clip}; give the clip (F, H, W) of the file's model"
        )
    return round(n**0.5), round(n**0.5)
