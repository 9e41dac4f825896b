"""From a source's model to the one that is wanted: another clip, family, tubelet, head.

Parameters are flat: path -> array, of unrolled models. Nothing is left over or left out silently:
what can't be explained by what was asked for is one error.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vivit.attention import PATTERNS
from vivit.cost import abstract_params
from vivit.model import ViViT, build
from vivit.plan import plan_stages
from vivit.pretrained.files import Arrays
from vivit.pretrained.positions import place
from vivit.pretrained.report import Row
from vivit.pretrained.resize import INFLATIONS, RESIZES, inflate
from vivit.pretrained.table import Native, raise_problems, shape_problems

TIME_ATTENTION = ("zero_out", "copy", "scenic", "fresh")
CLASS_TOKEN = ("keep", "fresh")
LARGEST = 2**31  # numbers in the tokens of one clip


@dataclass(frozen=True)
class Surgery:
    """How what the source does not have is made; see `vivit.pretrained.load`.

    classes: of the source's head that are kept, by number; None for all or, with head "replace",
    none.
    """

    head: str = "auto"
    classes: tuple[int, ...] | None = None
    inflation: str = "central_frame"
    positions: str = "linear"
    time_attention: str = "zero_out"
    class_token: str = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inflation != "fresh":
            INFLATIONS[self.inflation]  # raises for an unknown name, as the next does
        RESIZES[self.positions]
        for name, known in (("time_attention", TIME_ATTENTION), ("class_token", CLASS_TOKEN)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; known: {', '.join(known)}")


def build_plain(model_config: Mapping[str, Any]) -> ViViT:
    """The model of a config as its parameters need it: unrolled, by a kernel that runs anywhere."""
    plain = {"scan": False, "remat": "none", "kernel": "dense", "dtype": "float32"}
    model = build({**model_config, **plain})
    values = math.prod(model.grid) * model.width
    if values > LARGEST:  # tables would be made, of a size that a damaged file claims
        raise ValueError(
            f"clip={model.clip} with tubelets {model.tubelet} and width={model.width} has {values} "
            f"token values, more than {LARGEST}; is the config of these weights right?"
        )
    return model


def as_fields(model: ViViT) -> dict[str, Any]:
    """A built model's fields as a config, its sizes resolved."""
    names = {f.name for f in dataclasses.fields(ViViT)} - {"parent", "name", "size"}
    return {name: getattr(model, name) for name in names}


def adapt(
    native: Native, model_config: Mapping[str, Any], surgery: Surgery
) -> tuple[Arrays, list[Row], dict[str, str]]:
    """Parameters for the model of that config, where each came from, and what was dropped.

    ValueError lists all parameters that nothing explains: missing, unexpected, of a wrong shape.
    """
    made = _Adaptation(native, build_plain(model_config), surgery)
    made.check_native()
    for path in made.wanted:
        made.fill(path)
    made.account_for_the_rest()
    raise_problems(made.problems, "the weights for this model")
    made.draw_fresh()
    order = list(made.wanted)
    return {path: made.params[path] for path in order}, [made.rows[p] for p in order], made.dropped


class _Adaptation:
    def __init__(self, native: Native, model: ViViT, surgery: Surgery) -> None:
        self.native, self.model, self.surgery = native, model, surgery
        self.source = build_plain(native.model_config)
        self.wanted = parameter_shapes(model)
        self.stages, self.source_stages = plan_stages(model), plan_stages(self.source)
        self.params: Arrays = {}
        self.rows: dict[str, Row] = {}
        self.used: set[str] = set()
        self.fresh: list[str] = []
        self.dropped = dict(native.dropped)
        self.problems: list[str] = []

    def check_native(self) -> None:
        """The file holds its own model, whole."""
        named = lambda path: f"{self.native.origins.get(path, path)} for {path}"
        there = {path: array.shape for path, array in self.native.params.items()}
        problems = self.native.problems + shape_problems(
            there, parameter_shapes(self.source), named=named
        )
        for path, array in self.native.params.items():
            if not np.isfinite(array).all():
                problems.append(f"NaN or infinity: {named(path)}")
        raise_problems(problems, "the file's arrays")

    def take(self, path: str, origin: str, action: str, array: np.ndarray) -> None:
        self.used.add(origin)
        if array.shape != self.wanted[path]:
            name = self.native.origins.get(origin, origin)
            self.problems.append(
                f"wrong shape: {name} {list(array.shape)} for {path} {list(self.wanted[path])}"
            )
            return
        if action == "loaded" and origin in self.native.changed:
            action = "transformed"
        self.params[path] = array
        named = self.native.origins.get(origin, origin)
        self.rows[path] = Row(path, array.shape, action, "" if action == "zero" else named)

    def leave_fresh(self, path: str) -> None:
        self.fresh.append(path)
        self.rows[path] = Row(path, self.wanted[path], "fresh", "")

    def fill(self, path: str) -> None:
        stage, *rest = path.split("/")
        if stage == "head":
            self._fill_head(path)
        elif path == "tubelet/kernel":
            self._fill_tubelet(path)
        elif not stage.startswith("stage_"):
            self._fill_same(path, may_be_fresh=stage == "pre_logits")
        else:
            self._fill_in_stage(path, int(stage.removeprefix("stage_")), *rest)

    def _fill_in_stage(self, path: str, i: int, kind: str, *rest: str) -> None:
        if not self._shares_stage(i) or (kind == "pool" and not self._shares_pool(i)):
            self.leave_fresh(path)
        elif kind == "class_token" and self.surgery.class_token == "fresh":
            self.leave_fresh(path)
        elif kind == "position":
            self._fill_position(path, i, rest[0])
        elif kind.startswith("layer_") and path not in self.native.params:
            self._fill_attention(path)
        else:
            may_be_fresh = kind in ("class_token", "pool", "registers", "reduce", "norm")
            self._fill_same(path, may_be_fresh=may_be_fresh)

    def _shares_stage(self, i: int) -> bool:
        """Whether the source's stage i is the model's, perhaps with other patterns in the first."""
        if i >= min(len(self.stages), len(self.source_stages)):
            return False
        return i == 0 or self.stages[i]["mixers"] == self.source_stages[i]["mixers"]

    def _shares_pool(self, i: int) -> bool:
        return self.stages[i]["pool"] == self.source_stages[i]["pool"]

    def _fill_same(self, path: str, *, may_be_fresh: bool) -> None:
        if path in self.native.params:
            self.take(path, path, "loaded", self.native.params[path])
        elif may_be_fresh:
            self.leave_fresh(path)
        else:
            self.problems.append(f"missing: {path} {list(self.wanted[path])}")

    def _fill_head(self, path: str) -> None:
        surgery, there = self.surgery, self.native.params
        if surgery.classes is not None and path in there:
            self.take(path, path, "sliced", there[path][..., list(surgery.classes)])
        elif surgery.head == "replace" or path not in there:
            self.leave_fresh(path)
        elif surgery.head == "auto" and there[path].shape[-1] != self.model.classes:
            self.leave_fresh(path)
        else:
            self.take(path, path, "loaded", there[path])

    def _fill_tubelet(self, path: str) -> None:
        kernel, steps = self.native.params[path], self.wanted[path][0]
        if kernel.shape[0] != steps and self.surgery.inflation == "fresh":
            self.leave_fresh(path)
            return
        action = "loaded" if kernel.shape[0] == steps else "inflated"
        try:
            inflated = inflate(kernel, steps, method=self.surgery.inflation)
        except ValueError as error:
            self.problems.append(f"{path}: {error}")
            return
        self.take(path, path, action, inflated)

    def _fill_position(self, path: str, i: int, leaf: str) -> None:
        start = f"stage_{i}/position/"
        there = self.native.params.items()
        tables = {p.removeprefix(start): array for p, array in there if p.startswith(start)}
        row = tables.pop("class_token", None)
        if leaf == "class_token":
            self.leave_fresh(path) if row is None else self.take(path, path, "loaded", row)
            return
        old, new, method = self.source_stages[i], self.stages[i], self.surgery.positions
        try:
            placed = place(leaf, tables, old, new, method=method)
        except ValueError as error:
            self.used.update(start + name for name in tables)
            self.problems.append(f"missing: {path} {list(self.wanted[path])}: {error}")
            return
        origins = [start + name for name in placed.leaves]
        self.used.update(origins)
        self.take(path, origins[0], "loaded" if placed.kept else "resized", placed.table)

    def _fill_attention(self, path: str) -> None:
        """Parameters of an attention that the source's block has not, from one that it has."""
        i, layer, name, *rest = path.removeprefix("stage_").split("/")
        kind, _, pattern = name.partition("_")
        mixers = [PATTERNS[m].name for m in self.source_stages[int(i)]["mixers"]]
        if (
            int(layer.removeprefix("layer_")) >= self.source_stages[int(i)]["depth"]
            or pattern in mixers
        ):
            self.problems.append(f"missing: {path} {list(self.wanted[path])}")
            return
        origin_name = next((m for m in ("space", "joint", *mixers) if m in mixers), None)
        origin = "/".join([f"stage_{i}", layer, f"{kind}_{origin_name}", *rest])
        over_time = PATTERNS[pattern].axes == "t"
        how = self.surgery.time_attention if over_time else "copy"
        if kind == "norm" and how == "scenic":
            how = "fresh"
        if how == "fresh" or origin not in self.native.params:
            self.leave_fresh(path)
            return
        array = self.native.params[origin]
        # A pattern with a projection starts from a projection of zeros instead.
        zero = how == "zero_out" and rest[0] == "out" and PATTERNS[pattern].projections == 1
        self.take(path, origin, "zero" if zero else "copied", array * 0 if zero else array)

    def account_for_the_rest(self) -> None:
        for path, array in self.native.params.items():
            if path in self.used:
                continue
            origin = self.native.origins.get(path, path)
            why = self._why_dropped(path)
            if why:
                shared = any(row.origin == origin for row in self.rows.values())
                self.dropped[f"{origin} (its part {path})" if shared else origin] = why
            else:
                shape = list(array.shape)
                self.problems.append(f"unexpected: {origin} {shape}: the model has no {path}")

    def _why_dropped(self, path: str) -> str:
        """What was asked for that leaves no place for a parameter, or "" where nothing does."""
        first, *rest = path.split("/")
        reads = f"the model reads {self.model.readout!r}"
        if path == "tubelet/kernel":
            return "the tubelet kernel starts afresh, as asked"
        if first == "head":
            return "the head is replaced" if self.model.classes else "the model has no head"
        if first == "pre_logits" and not self.model.pre_logits:
            return "the model has no pre_logits"
        i = int(first.removeprefix("stage_")) if first.startswith("stage_") else -1
        if rest[-1] == "class_token":
            asked = "the class token starts afresh, as asked"
            return asked if path in self.wanted else reads
        if rest[0] == "position" and self._shares_stage(i):
            if not any(p.startswith(f"{first}/position/") for p in self.wanted):
                return f"the model's positions are {self.model.position!r}"
        if rest[0] == "norm" and self._shares_stage(i) and not self.stages[i]["norm"]:
            return f"no norm stands before readout {self.stages[i]['pool']!r}"
        if rest[0] == "pool" and not (self._shares_stage(i) and self._shares_pool(i)):
            return reads
        return ""

    def draw_fresh(self) -> None:
        """Initial values of the fresh parameters alone: XLA leaves out the others' draws."""
        if not self.fresh:
            return
        model, clips = self.model, np.zeros((1, *self.model.clip, 3), np.float32)

        @jax.jit
        def draw(key: jax.Array) -> dict[str, jax.Array]:
            flat: dict[str, Any] = flatten_dict(model.init(key, clips)["params"], sep="/")
            return {path: flat[path] for path in self.fresh}

        drawn = draw(jax.random.key(self.surgery.seed))
        self.params |= {path: np.asarray(array) for path, array in drawn.items()}


@lru_cache(4)
def parameter_shapes(model: ViViT) -> dict[str, tuple[int, ...]]:
    """path -> shape of an unrolled model's parameters."""
    flat: dict[str, Any] = flatten_dict(abstract_params(model), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def kept_classes(
    native: Native, head: str | Sequence[str], classes: int | None
) -> tuple[int, ...] | None:
    """The classes, by number, that a choice of head keeps: None for "auto", "keep" and "replace",
    else those of a group ("nouns") or of names. ValueError lists the names that there are."""
    if head in ("auto", "keep", "replace"):
        return None
    names = (head,) if isinstance(head, str) else tuple(head)
    if len(names) == 1 and names[0] in native.groups:
        kept = tuple(range(*native.groups[names[0]]))
    else:
        unknown = [name for name in names if name not in native.labels]
        if unknown or not names:
            known = [*native.groups, *native.labels]
            listed = f"{', '.join(known[:20])}{', ...' if known[20:] else ''}" or "none"
            raise ValueError(
                f"{head=}: no classes {unknown} in the file; it names: {listed}. Or use auto, "
                "keep or replace"
            )
        kept = tuple(native.labels.index(name) for name in names)
    if classes is not None and classes != len(kept):
        raise ValueError(f"{head=} has {len(kept)} classes and {classes=}; leave out one of them")
    return kept
