"""From a source's model to the one that is wanted: another clip, family, tubelet, head.

Parameters are flat: path -> array, of unrolled models. Nothing is left over or left out silently:
what can't be explained by what was asked for is one error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vivit.attention import PATTERNS
from vivit.cost import abstract_params
from vivit.model import ViViT, build
from vivit.plan import plan_stages
from vivit.pretrained.files import Arrays
from vivit.pretrained.report import Row
from vivit.pretrained.resize import INFLATIONS, RESIZES, inflate, marginals, resize
from vivit.pretrained.table import Native, raise_problems

TIME_ATTENTION = ("zero_out", "copy", "scenic", "fresh")
CLASS_TOKEN = ("keep", "fresh")


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
    return build({**model_config, **plain})


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
        self.wanted = _shapes(model)
        self.stages, self.source_stages = plan_stages(model), plan_stages(self.source)
        self.params: Arrays = {}
        self.rows: dict[str, Row] = {}
        self.used: set[str] = set()
        self.fresh: list[str] = []
        self.dropped = dict(native.dropped)
        self.problems: list[str] = []

    def check_native(self) -> None:
        """The file holds its own model, whole."""
        there, expected = self.native.params, _shapes(self.source)
        problems = list(self.native.problems)
        problems += [
            f"missing: {path} {list(shape)}"
            for path, shape in expected.items()
            if path not in there
        ]
        for path, array in there.items():
            name = f"{self.native.origins.get(path, path)} for {path}"
            if path not in expected:
                problems.append(f"unexpected: {name} {list(array.shape)}")
            elif array.shape != expected[path]:
                problems.append(
                    f"wrong shape: {name} {list(array.shape)}, not {list(expected[path])}"
                )
        raise_problems(problems, "the file's arrays")

    def take(self, path: str, origin: str, action: str, array: np.ndarray) -> None:
        if array.shape != self.wanted[path]:
            name = self.native.origins.get(origin, origin)
            self.problems.append(
                f"wrong shape: {name} {list(array.shape)} for {path} {list(self.wanted[path])}"
            )
            return
        if action == "loaded" and origin in self.native.changed:
            action = "transformed"
        self.params[path] = array
        self.used.add(origin)
        named = self.native.origins.get(origin, origin)
        self.rows[path] = Row(path, array.shape, action, "" if action == "zero" else named)

    def leave_fresh(self, path: str) -> None:
        self.fresh.append(path)
        self.rows[path] = Row(path, self.wanted[path], "fresh", "")

    def fill(self, path: str) -> None:
        parts = path.split("/")
        there = self.native.params
        if parts[0] == "head":
            self._fill_head(path)
        elif path == "tubelet/kernel":
            self._fill_tubelet(path)
        elif not parts[0].startswith("stage_"):
            self._fill_same(path, may_be_fresh=parts[0] == "pre_logits")
        elif not self._shares_stage(int(parts[0][6:])):
            self.leave_fresh(path)
        elif parts[1] == "class_token":
            keep = path in there and self.surgery.class_token == "keep"
            self.take(path, path, "loaded", there[path]) if keep else self.leave_fresh(path)
        elif parts[1] == "position":
            self._fill_position(path, int(parts[0][6:]), parts[2])
        elif parts[1].startswith("layer_") and path not in there:
            self._fill_attention(path)
        else:
            own_kinds = ("pool", "registers", "reduce", "norm")
            self._fill_same(path, may_be_fresh=parts[1] in own_kinds)

    def _shares_stage(self, i: int) -> bool:
        """Whether the source's stage i is the model's, perhaps with other patterns in the first."""
        if i >= len(self.source_stages):
            return False
        return i == 0 or self.stages[i]["mixers"] == self.source_stages[i]["mixers"]

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
        self.take(path, path, action, inflate(kernel, steps, method=self.surgery.inflation))

    def _fill_position(self, path: str, i: int, leaf: str) -> None:
        there = self.native.params
        if leaf == "class_token":
            known = path in there
            self.take(path, path, "loaded", there[path]) if known else self.leave_fresh(path)
            return
        stage, old = self.stages[i], self.source_stages[i]
        same = (stage["position"], stage["position_axes"]) == (
            old["position"],
            old["position_axes"],
        )
        if same and (path in there):
            lengths, new = (_lengths_of(leaf, s) for s in (old, stage))
            origin, table = path, there[path].reshape(*lengths, -1)
        else:
            dense = self._dense_positions(i)
            if dense is None:
                self.problems.append(
                    f"missing: {path} {list(self.wanted[path])}, which can't be made from "
                    f"{old['position']} positions over {old['position_axes'] or 'nothing'}"
                )
                return
            origin, table = dense
            table, new = self._marginal(table, stage, old, leaf), _lengths_of(leaf, stage)
        try:
            resized = resize(table, new, method=self.surgery.positions)
        except ValueError as error:
            self.problems.append(f"{path}: {error}")
            return
        action = "loaded" if same and resized is table else "resized"
        self.take(path, origin, action, resized.reshape(-1, table.shape[-1]))

    def _dense_positions(self, i: int) -> tuple[str, np.ndarray] | None:
        """The source's learned positions of a stage on its grid [*lengths, D]."""
        old, start = self.source_stages[i], f"stage_{i}/position/"
        tables = {
            p: a
            for p, a in self.native.params.items()
            if p.startswith(start) and not p.endswith("/class_token")
        }
        if not tables:
            return None
        total = np.zeros((*old["lengths"], self.model.width), np.float32)
        for path, table in tables.items():
            leaf = path.removeprefix(start)
            self.used.add(path)
            lengths = _lengths_of(leaf, old)
            first = _first_axis(leaf, old)
            shape = [1] * len(old["lengths"])
            shape[first : first + len(lengths)] = lengths
            total = total + table.reshape(*shape, -1)
        return next(iter(tables)), total

    def _marginal(self, table: np.ndarray, stage: dict, old: dict, leaf: str) -> np.ndarray:
        """That part of a dense table that a table of another kind, or over other axes, holds."""
        if old["position_axes"] == "ts" and stage["position_axes"] == "s":
            table = table.mean(axis=0)
        elif old["position_axes"] == "s" and stage["position_axes"] == "ts":
            table = table[None]
        if leaf == "table":
            return table
        if leaf in ("space", "time"):
            joined = table.reshape(*table.shape[:-3], -1, table.shape[-1])
            if joined.ndim == 2:
                return table
            space, time = marginals(joined.swapaxes(0, 1))
            return time if leaf == "time" else space.reshape(*table.shape[-3:])
        return marginals(table)[int(leaf.removeprefix("table_"))]

    def _fill_attention(self, path: str) -> None:
        """Parameters of an attention that the source's block has not, from one that it has."""
        i, layer, name, *rest = path.removeprefix("stage_").split("/")
        kind, _, pattern = name.partition("_")
        mixers = [PATTERNS[m].name for m in self.source_stages[int(i)]["mixers"]]
        if int(layer[6:]) >= self.source_stages[int(i)]["depth"] or pattern in mixers:
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
                self.dropped[origin] = why
            else:
                self.problems.append(f"unexpected: {origin} {list(array.shape)}, {path} in ours")

    def _why_dropped(self, path: str) -> str:
        parts = path.split("/")
        if path == "tubelet/kernel":
            return "the tubelet kernel starts afresh, as asked"
        if parts[0] == "head":
            return "the head is replaced" if self.model.classes else "the model has no head"
        if parts[0] == "pre_logits" and not self.model.pre_logits:
            return "the model has no pre_logits"
        if parts[-1] == "class_token":
            if path in self.wanted:
                return "the class token starts afresh, as asked"
            return f"the model reads {self.model.readout!r}"
        if parts[1] == "position" and self._shares_stage(int(parts[0][6:])):
            if not any(p.startswith(f"{parts[0]}/position/") for p in self.wanted):
                return f"the model's positions are {self.model.position!r}"
        if parts[1] == "pool" and not any(p.startswith("/".join(parts[:2])) for p in self.wanted):
            return f"the model reads {self.model.readout!r}"
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


def _shapes(model: ViViT) -> dict[str, tuple[int, ...]]:
    flat: dict[str, Any] = flatten_dict(abstract_params(model), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _first_axis(leaf: str, stage: dict) -> int:
    if leaf == "space":
        return len(stage["lengths"]) - 2
    return int(leaf.removeprefix("table_")) if leaf.startswith("table_") else 0


def _lengths_of(leaf: str, stage: dict) -> tuple[int, ...]:
    """The lengths of the axes that a position table spans."""
    lengths = stage["lengths"]
    by_leaf: dict[str, Callable[[], tuple[int, ...]]] = {
        "table": lambda: lengths,
        "space": lambda: lengths[-2:],
        "time": lambda: lengths[:1],
    }
    return by_leaf[leaf]() if leaf in by_leaf else (lengths[_first_axis(leaf, stage)],)


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
