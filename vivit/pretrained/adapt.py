"""From a source's model to the wanted one: another clip, family, tubelet, head.

Parameters are flat: path -> array, of unrolled models. Nothing is left over or left out silently:
all that the options do not explain is one error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from vivit.attention import Pattern
from vivit.cost import abstract_params
from vivit.model.config import ModelConfig, StageConfig
from vivit.model.vivit import ViViT, build
from vivit.pretrained.choices import CLASS_TOKENS, HEADS, INFLATIONS, TIME_ATTENTIONS, inflate
from vivit.pretrained.files import Arrays, flat_params
from vivit.pretrained.positions import PositionSpec, convert
from vivit.pretrained.report import Row
from vivit.pretrained.resize import RESIZES
from vivit.pretrained.settings import LoadOptions
from vivit.pretrained.sources import SourceModel, raise_problems, shape_problems

LARGEST = 2**31  # numbers in the tokens of one clip
PLAIN = {"scan": False, "remat": "none", "kernel": "dense", "dtype": "float32"}


def build_plain(model_config: Mapping[str, Any]) -> ViViT:
    """Returns the model of a config as its parameters need it: unrolled, by a kernel that runs on
    any device. Raises ValueError for a size that only a damaged file can have."""
    model = build({**model_config, **PLAIN})
    config = model.config
    values = math.prod(config.grid) * config.width
    if values > LARGEST:  # tables of this size would be made
        raise ValueError(
            f"clip={config.clip} with tubelets {config.tubelet} and width={config.width} has "
            f"{values} token values, more than {LARGEST}; is the config of these weights right?"
        )
    return model


class Adapted(NamedTuple):
    """Parameters of a model, where each came from, and name in the file -> why it was dropped."""

    params: Arrays
    rows: tuple[Row, ...]
    dropped: dict[str, str]


class Filled(NamedTuple):
    """How a parameter is filled.

    array: None for one that is newly initialised. action: of `vivit.pretrained.report.Row`.
    origins: paths of the source's parameters that are used. problem: why it can't be filled.
    """

    array: np.ndarray | None = None
    action: str = "fresh"
    origins: tuple[str, ...] = ()
    problem: str = ""


FRESH = Filled()


def adapt(
    source: SourceModel,
    model_config: Mapping[str, Any],
    options: LoadOptions,
    *,
    classes: Sequence[int] | None = None,
    seed: int = 0,
) -> Adapted:
    """Returns parameters for the model of a config.

    classes: of the source's head that are kept, by number; None for a head by `options.head`.

    Raises ValueError that lists all parameters that are missing, unexpected or of a wrong shape.
    """
    task = _Adaptation(source, build_plain(model_config), options, classes)
    raise_problems(task.source_problems(), "the file's arrays")
    filled = {path: task.fill(path) for path in task.shapes}
    problems = [task.problem(path, how) for path, how in filled.items()]
    rows = tuple(task.row(path, how) for path, how in filled.items())
    dropped, unexpected = task.account_for_the_rest(filled, {row.origin for row in rows})
    raise_problems([p for p in (*problems, *unexpected) if p], "the weights for this model")
    drawn = _draw(task.model, [path for path, how in filled.items() if how.array is None], seed)
    params = {path: drawn[path] if how.array is None else how.array for path, how in filled.items()}
    return Adapted(params, rows, dropped)


@dataclass
class _Adaptation:
    source: SourceModel
    model: ViViT
    options: LoadOptions
    classes: Sequence[int] | None

    def __post_init__(self) -> None:
        options = self.options  # unknown names raise
        _ = INFLATIONS[options.inflation], RESIZES[options.position_resize]
        _ = TIME_ATTENTIONS[options.time_attention], CLASS_TOKENS[options.class_token]
        self.original = build_plain(self.source.model_config)
        self.shapes = parameter_shapes(self.model.config)
        self.stages = self.model.config.stages

    def source_problems(self) -> list[str]:
        """Returns what is wrong with the source's arrays for its own model."""
        source = self.source
        named = lambda path: f"{source.origin(path)} for {path}"
        found = {path: array.shape for path, array in source.params.items()}
        problems = shape_problems(found, parameter_shapes(self.original.config), named=named)
        infinite = [p for p, array in source.params.items() if not np.isfinite(array).all()]
        return source.problems + problems + [f"NaN or infinity: {named(p)}" for p in infinite]

    def fill(self, path: str) -> Filled:
        """Returns how a parameter of the model is filled."""
        part, *rest = path.split("/")
        if part == "head":
            return self._fill_head(path)
        if path == "tubelet/kernel":
            return self._fill_tubelet(path)
        if part.startswith("stage_"):
            return self._fill_in_stage(path, int(part.removeprefix("stage_")), *rest)
        return self._fill_same(path, may_be_fresh=part == "pre_logits")

    def _fill_in_stage(self, path: str, i: int, part: str, *rest: str) -> Filled:
        if not self._shares_stage(i) or (part == "pool" and not self._shares_readout(i)):
            return FRESH
        if part == "position":
            return self._fill_position(path, i, rest[0])
        if part.startswith("layer_") and path not in self.source.params:
            return self._fill_attention(path, i, part, *rest)
        if part == "class_token" and path in self.source.params:
            token = CLASS_TOKENS[self.options.class_token](self.source.params[path])
            return Filled(token, "loaded", (path,)) if token is not None else FRESH
        may_be_fresh = part in ("class_token", "pool", "registers", "reduce", "norm")
        return self._fill_same(path, may_be_fresh=may_be_fresh)

    def _shares_stage(self, i: int) -> bool:
        """Whether the source's stage i is the model's; the first may have other attentions."""
        if i >= min(len(self.stages), len(self.original.config.stages)):
            return False
        ours, theirs = self.stages[i], self.original.config.stages[i]
        return i == 0 or (ours.attentions, ours.block) == (theirs.attentions, theirs.block)

    def _shares_readout(self, i: int) -> bool:
        return self.stages[i].readout == self.original.config.stages[i].readout

    def _missing(self, path: str, reason: str = "", origins: tuple[str, ...] = ()) -> Filled:
        problem = f"missing: {path} {list(self.shapes[path])}{reason}"
        return Filled(problem=problem, origins=origins)

    def _fill_same(self, path: str, *, may_be_fresh: bool) -> Filled:
        if path in self.source.params:
            return Filled(self.source.params[path], "loaded", (path,))
        return FRESH if may_be_fresh else self._missing(path)

    def _fill_head(self, path: str) -> Filled:
        array = self.source.params.get(path)
        if array is None:
            return FRESH
        if self.classes is not None:
            return Filled(array[..., list(self.classes)], "sliced", (path,))
        kept = HEADS[str(self.options.head)](array, self.model.config.classes)
        return FRESH if kept is None else Filled(kept, "loaded", (path,))

    def _fill_tubelet(self, path: str) -> Filled:
        kernel, frames = self.source.params[path], self.shapes[path][0]
        try:
            inflated = inflate(kernel, frames, method=self.options.inflation)
        except ValueError as error:
            return Filled(problem=f"{path}: {error}")
        if inflated is None:
            return FRESH
        return Filled(inflated, "loaded" if inflated is kernel else "inflated", (path,))

    def _fill_position(self, path: str, i: int, leaf: str) -> Filled:
        start = f"stage_{i}/position/"
        params = self.source.params.items()
        tables = {p.removeprefix(start): array for p, array in params if p.startswith(start)}
        row = tables.pop("class_token", None)
        if leaf == "class_token":
            return FRESH if row is None else Filled(row, "loaded", (path,))
        old, new = (_position_spec(model, i) for model in (self.original, self.model))
        try:
            made = convert(leaf, tables, old, new, method=self.options.position_resize)
        except ValueError as error:
            return self._missing(path, f": {error}", tuple(start + name for name in tables))
        origins = tuple(start + name for name in made.leaves)
        return Filled(made.table, "loaded" if made.kept else "resized", origins)

    def _fill_attention(self, path: str, i: int, layer: str, name: str, *rest: str) -> Filled:
        """A parameter of an attention that the source's block does not have, from one it has."""
        stage, theirs = self.stages[i], self.original.config.stages[i]
        part, _, label = name.partition("_")  # attention_space/..., norm_space/...
        ours = {stage.block.attention_name(p): p for p in stage.attentions}
        known = [theirs.block.attention_name(p) for p in theirs.attentions]
        in_depth = int(layer.removeprefix("layer_")) < theirs.depth
        if not in_depth or label not in ours or label in known:
            return self._missing(path)
        origin = "/".join((f"stage_{i}", layer, f"{part}_{_most_like_space(theirs)}", *rest))
        if origin not in self.source.params:
            return FRESH
        pattern, array = ours[label], self.source.params[origin]
        # An attention over space or over all is copied; there is no choice of how it starts.
        make = TIME_ATTENTIONS[self.options.time_attention if pattern.axes == "t" else "copy"]
        made = make("norm" if part == "norm" else rest[0], array, stage.block.leaves_out(pattern))
        if made is None:
            return FRESH
        action = "copied" if made is array else "transformed" if made.any() else "zero"
        return Filled(made, action, (origin,))

    def problem(self, path: str, how: Filled) -> str:
        """Returns what is wrong with a filled parameter, or ""."""
        if how.problem or how.array is None or how.array.shape == self.shapes[path]:
            return how.problem
        name, shape = self.source.origin(how.origins[0]), list(how.array.shape)
        return f"wrong shape: {name} {shape} for {path} {list(self.shapes[path])}"

    def row(self, path: str, how: Filled) -> Row:
        """Returns the report's row of a filled parameter."""
        first, action = how.origins[0] if how.origins else "", how.action
        if action == "loaded" and first in self.source.changed:
            action = "transformed"
        named = bool(first) and action != "zero"
        return Row(path, self.shapes[path], action, self.source.origin(first) if named else "")

    def account_for_the_rest(
        self, filled: Mapping[str, Filled], named: set[str]
    ) -> tuple[dict[str, str], list[str]]:
        """Returns why arrays of the file are not used, by name, and those that nothing explains.

        named: the names in the file that the report's rows have.
        """
        used = {origin for how in filled.values() for origin in how.origins}
        dropped, unexpected = dict(self.source.dropped), []
        for path, array in self.source.params.items():
            if path in used:
                continue
            origin, why = self.source.origin(path), self._why_dropped(path)
            if why:
                dropped[f"{origin} (its part {path})" if origin in named else origin] = why
            else:
                shape = list(array.shape)
                unexpected.append(f"unexpected: {origin} {shape}: the model has no {path}")
        return dropped, unexpected

    def _why_dropped(self, path: str) -> str:
        """Returns why the model does not use a parameter of the source, or "" without a reason."""
        first, *rest = path.split("/")
        settings = self.model.config.settings
        reads = f"the model reads {settings.readout!r}"
        if path == "tubelet/kernel":
            return "the tubelet kernel is newly initialised"
        if first == "head":
            return "the head is replaced" if settings.classes else "the model has no head"
        if first == "pre_logits" and not settings.pre_logits:
            return "the model has no pre_logits"
        i = int(first.removeprefix("stage_")) if first.startswith("stage_") else -1
        if rest[-1] == "class_token":
            return "the class token is newly initialised" if path in self.shapes else reads
        if rest[0] == "pool" and not (self._shares_stage(i) and self._shares_readout(i)):
            return reads
        if not self._shares_stage(i):
            return ""
        if rest[0] == "position" and not any(
            p.startswith(f"{first}/position/") for p in self.shapes
        ):
            return f"the model's positions are {settings.position!r}"
        if rest[0] == "norm" and not self.stages[i].norm:
            return "the model has no norm before this readout"
        return ""


def _position_spec(model: ViViT, i: int) -> PositionSpec:
    stage = model.config.stages[i]
    return PositionSpec(model.config.settings.position, stage.position_axes, stage.lengths)


def _most_like_space(stage: StageConfig) -> str:
    """Returns the name of the attention that others start from: of a whole time step, or else of
    the whole clip, or else the first."""

    def rank(pattern: Pattern) -> int:
        whole = pattern.class_token  # such a pattern sees all along its axes
        return ("s", "ts").index(pattern.axes) if whole and "s" in pattern.axes else 2

    return stage.block.attention_name(min(stage.attentions, key=rank))


def _draw(model: ViViT, paths: Sequence[str], seed: int) -> Arrays:
    """Returns initial values of single parameters: XLA leaves out the draws of the others."""
    if not paths:
        return {}

    @jax.jit
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        clips = np.zeros((1, *model.config.clip, 3), np.float32)
        flat = flat_params(model.init(key, clips)["params"])
        return {path: flat[path] for path in paths}

    return {path: np.asarray(array) for path, array in draw(jax.random.key(seed)).items()}


@lru_cache(4)
def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of a model's parameters."""
    flat = flat_params(abstract_params(ViViT(config)))
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}
