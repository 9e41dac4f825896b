"""Sources of weights: which array of a file is which parameter, with every array accounted for.

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
    """What an array of a file is.

    pattern: a regex of the whole name in the file.
    path: of the parameter, with the pattern's groups; "" for an array that is dropped. With AROUND
        before it, of one that pre-training has around the model.
    transform: array -> array, or -> {end of a path: array} for an array of several parameters,
        whose paths start with `path`.
    why: the reason that the array is dropped.
    """

    pattern: str
    path: str = ""
    transform: Callable[[np.ndarray], np.ndarray | Arrays] | None = None
    why: str = ""


AROUND = "around/"


class LoadHints(NamedTuple):
    """What a reader is given besides the file.

    source_clip: the clip of the source's model, as the caller gives it; it must fit the weights.
    clip: of the wanted model, which is taken for the source's where nothing else is known and it
        fits the weights.
    """

    source_clip: tuple[int, int, int] | None = None
    clip: tuple[int, int, int] | None = None


@dataclass
class SourceModel:
    """The model of a file, in the names of vivit.

    model_config: fields of ModelSettings. params: by path. origins: path -> name in the file.
    around: parameters of the networks of pre-training, which contain the model, by path.
    changed: paths whose array was transformed. dropped: name in the file -> why. problems: found
    in the file so far. labels: names of the classes. groups: name -> (start, end) of classes, for
    the head of several tasks. task: of TASKS, what the head predicts.
    """

    model_config: dict[str, Any]
    params: Arrays = field(default_factory=dict)
    around: Arrays = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    labels: tuple[str, ...] = ()
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)
    task: str = "classify"

    def origin(self, path: str) -> str:
        """Returns the name in the file of a parameter's array."""
        return self.origins.get(path, path)


Reader = Callable[[Archive, LoadHints], SourceModel]


@dataclass(frozen=True)
class Source:
    """A registered kind of checkpoint.

    about: one line for listings. recognises: whether an archive is of this kind. read: returns its
    model, or raises ValueError.
    """

    name: str
    about: str
    recognises: Callable[[Archive], bool]
    read: Reader


SOURCES: Registry[Source] = Registry("source")


def source(
    name: str, *, about: str, recognises: Callable[[Archive], bool]
) -> Callable[[Reader], Reader]:
    """Returns a decorator that registers a function as the reader of a source."""

    def register(read: Reader) -> Reader:
        SOURCES.add(name, Source(name, about, recognises, read))
        return read

    return register


def apply_rules(model: SourceModel, arrays: Arrays, rules: Sequence[Rule]) -> SourceModel:
    """Fills a model from arrays, and returns it.

    Arrays are taken out of `arrays`, so that no two copies are held. Arrays that no rule or several
    rules match, and parameters that come twice, are added to the model's problems.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    for name in list(arrays):
        matches = [(m, rule) for regex, rule in compiled if (m := regex.fullmatch(name))]
        if len(matches) == 1:
            _apply_rule(model, name, arrays.pop(name), *matches[0])
        else:
            how = "matched by several rules" if matches else "unexpected"
            model.problems.append(f"{how}: {name} {list(np.shape(arrays[name]))}")
    return model


def _apply_rule(
    model: SourceModel, name: str, array: np.ndarray, match: re.Match[str], rule: Rule
) -> None:
    if not rule.path or not array.size:
        model.dropped[name] = "it is empty" if rule.path else rule.why
        return
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        model.problems.append(f"not numbers with a fraction: {name} of {array.dtype}")
        return
    path = match.expand(rule.path)
    try:
        made = array if rule.transform is None else rule.transform(array)
    except (ValueError, IndexError) as error:
        model.problems.append(f"wrong shape: {name} {list(array.shape)} for {path} ({error})")
        return
    for tail, value in (made if isinstance(made, dict) else {"": made}).items():
        part = path + tail
        if part.startswith(AROUND):
            model.around[part.removeprefix(AROUND)] = np.asarray(value, np.float32)
            model.dropped[name] = rule.why
            continue
        if part in model.params:
            model.problems.append(f"doubly matched: {name} and {model.origins[part]} for {part}")
            continue
        model.params[part] = np.asarray(value, np.float32)
        model.origins[part] = name
        if rule.transform is not None or array.dtype != np.float32:
            model.changed.add(part)


def raise_problems(problems: Sequence[str], what: str) -> None:
    """Raises one ValueError of all problems, if there are any."""
    if problems:
        listed = "\n  ".join(sorted(problems)[:60])
        more = f"\n  and {len(problems) - 60} more" if len(problems) > 60 else ""
        raise ValueError(f"{len(problems)} problems with {what}:\n  {listed}{more}")


def shape_problems(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    named: Callable[[str], str] = str,
) -> list[str]:
    """Returns one line for each path that is missing, unexpected or of another shape.

    named: a found path -> what the line calls it.
    """
    missing = [f"missing: {path} {list(wanted[path])}" for path in wanted if path not in found]
    others = []
    for path, shape in found.items():
        if path not in wanted:
            others.append(f"unexpected: {named(path)} {list(shape)}")
        elif shape != wanted[path]:
            others.append(f"wrong shape: {named(path)} {list(shape)}, not {list(wanted[path])}")
    return missing + others


def depth_of(names: Collection[str], pattern: str) -> int:
    """Returns one more than the largest number that the pattern's group has in the names, or 0.

    A number that is left out is found later, as a missing parameter. Raises ValueError for one that
    no file of so few arrays can have.
    """
    regex = re.compile(pattern)
    numbers = [int(match[1]) for name in names if (match := regex.match(name))]
    depth = max(numbers, default=-1) + 1
    if depth > len(names):
        raise ValueError(f"{len(names)} arrays can't be those of {depth} layers")
    return depth


def split_class_row(table: np.ndarray) -> Arrays:
    """Returns the parts of a position table [1, 1 + N, D] whose first row is the class token's."""
    return {"class_token": table[0, :1], "table": table[0, 1:]}


def grid_of(n: int, patch: Sequence[int], hints: LoadHints) -> tuple[int, int]:
    """Returns rows and columns of n positions: those of source_clip, which must fit, or a square.

    Raises ValueError where neither fits.
    """
    for clip in (hints.source_clip, hints.clip if round(n**0.5) ** 2 != n else None):
        if clip:
            rows, columns = clip[1] // patch[0], clip[2] // patch[1]
            if rows * columns == n:
                return rows, columns
    if hints.source_clip or round(n**0.5) ** 2 != n:
        raise ValueError(
            f"{n} positions of patches {tuple(patch)} are not a square and not those of "
            f"source_clip={hints.source_clip}; give the clip (F, H, W) of the file's model"
        )
    return round(n**0.5), round(n**0.5)
