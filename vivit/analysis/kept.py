"""Summaries of attention that were kept: arrays with named axes, to compare, save and load."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import safe_open
from safetensors.numpy import save

from vivit.analysis.attention import Attention
from vivit.analysis.summaries import SUMMARIES, chosen
from vivit.io import write_atomically
from vivit.model.config import ModelConfig

if TYPE_CHECKING:
    from xarray import DataTree

Queries = Sequence[Sequence[int]]  # (t, y, x) on the clip's grid
AXES_BEFORE = ("layer", "clip")
FORMAT = "vivit attention summaries 1"


@dataclass(frozen=True, repr=False)
class Kept:
    """Summaries of a model's attention in some clips.

    kept["stage 0, space"]["entropy"] is an array [layer, clip, head, t, s]. `kept[...]` of one
    attention is that of all its layers.

    arrays: attention -> name -> values. axes: name -> the names of all its axes. grids: attention
    -> time steps, rows and columns of its stage. tubelet: frames, rows and columns of pixels of a
    token. queries: (t, y, x) of the array "rows". Arrays of tokens, "t" and "s", are on these
    grids, with s in row-major order.
    """

    arrays: dict[str, dict[str, Any]]
    axes: dict[str, tuple[str, ...]]
    grids: dict[str, tuple[int, int, int]]
    tubelet: tuple[int, int, int]
    queries: tuple[tuple[int, int, int], ...] = ()

    def __getitem__(self, attention: str) -> Mapping[str, Any]:
        if attention not in self.arrays:
            raise ValueError(f"no attention {attention!r}; there are {'; '.join(self.arrays)}")
        return self.arrays[attention]

    def __repr__(self) -> str:
        return f"<{', '.join(self.axes)} of {'; '.join(self.arrays)}>"

    def __sub__(self, other: "Kept") -> "Kept":
        """Returns the differences of all arrays, of two models or of two sets of clips.

        Raises ValueError unless both have the same summaries, of attentions of the same shapes, and
        for places of tokens, which have no difference.
        """
        places = [name for name, x in self.flat.items() if np.issubdtype(x.dtype, np.integer)]
        if places:
            raise ValueError(f"{places[0]} holds places of tokens; keep what subtracts, without it")
        ours, theirs = (
            {k: np.shape(x) for k, x in part.items()} for part in (self.flat, other.flat)
        )
        if ours != theirs or self.queries != other.queries:
            different = sorted({k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)})
            listed = ", ".join(f"{k} {ours.get(k)} and {theirs.get(k)}" for k in different)
            raise ValueError(
                f"these have different shapes: {listed or 'queries'}; subtract arrays of single "
                "attentions that fit, such as a['stage 0, space']['entropy']"
            )
        arrays = {
            of: {name: x - other.arrays[of][name] for name, x in named.items()}
            for of, named in self.arrays.items()
        }
        return replace(self, arrays=arrays)

    @property
    def flat(self) -> dict[str, Any]:
        """All arrays by "attention/name"."""
        return {f"{of}/{k}": x for of, named in self.arrays.items() for k, x in named.items()}

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file, whose metadata describe the arrays as JSON, and returns its
        path. An existing file is replaced."""
        about = {
            "axes": self.axes, "grids": self.grids, "tubelet": self.tubelet, "queries": self.queries
        }  # fmt: skip
        arrays = {k: np.ascontiguousarray(x) for k, x in self.flat.items()}
        data = save(arrays, {"format": FORMAT, "about": json.dumps(about)})
        write_atomically(Path(path), data)
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> "Kept":
        """Returns what `save` wrote. Raises ValueError for another file."""
        if not Path(path).is_file():
            raise ValueError(f"{path} is not a file; give one that Kept.save wrote")
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                flat = {key: file.get_tensor(key) for key in file.keys()}
        except Exception as error:
            raise ValueError(f"{path} can't be read as safetensors: {error}") from error
        if about.get("format") != FORMAT:
            raise ValueError(f"{path} holds no summaries of attention: Kept.save wrote none there")
        try:
            known = json.loads(about["about"])
            arrays: dict[str, dict[str, Any]] = {of: {} for of in known["grids"]}
            for key, x in flat.items():
                of, _, name = key.rpartition("/")
                arrays[of][name] = x
            by_name = lambda name: {k: tuple(v) for k, v in known[name].items()}
            queries = tuple(tuple(query) for query in known["queries"])
            tubelet = tuple(known["tubelet"])
            return Kept(arrays, by_name("axes"), by_name("grids"), tubelet, queries)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has another description than its arrays: {error}") from error

    def to_xarray(self) -> "DataTree":
        """Returns an xarray.DataTree: a node for each attention, "stage_0_space", whose arrays have
        named axes, with y and x for s. Needs `pip install vivit[xarray]`."""
        try:
            import xarray
        except ModuleNotFoundError:
            raise ValueError("xarray is missing: pip install 'vivit[xarray]'") from None
        nodes = {}
        for of, named in self.arrays.items():
            _, rows, columns = self.grids[of]
            variables = {}
            for name, x in named.items():
                axes, shape = [], []
                for axis, size in zip(self.axes[name], np.shape(x), strict=True):
                    split = axis.startswith("s_")
                    axes += [f"y{axis[1:]}", f"x{axis[1:]}"] if split else [axis]
                    shape += [rows, columns] if split else [size]
                variables[name] = (axes, np.asarray(x).reshape(shape))
            nodes[identifier(of)] = xarray.Dataset(
                variables, attrs={"attention": of, "tubelet": self.tubelet}
            )
        return xarray.DataTree.from_dict(nodes)


def identifier(name: str) -> str:
    """Returns a name such as "stage 0, space" as one of letters, digits and underscores."""
    return "".join(c if c.isalnum() else "_" for c in name.replace(", ", "_"))


def keep(
    attentions: Sequence[Attention], config: ModelConfig, want: Sequence[str], queries: Queries
) -> Kept:
    """Returns summaries of attentions; see `AttentionMaps.keep`."""
    entries = chosen(want) if want or not queries else {}
    axes = {k: (*AXES_BEFORE, *v) for entry in entries.values() for k, v in entry.arrays.items()}
    if queries:
        axes["rows"] = (*AXES_BEFORE, "head", "query", "t_k", "s_k")
        _check_queries(queries, config)
    groups: dict[str, list[Attention]] = {}
    for attention in attentions:
        groups.setdefault(attention.of_layers, []).append(attention)
    check_size(attentions, config, want)
    arrays: dict[str, dict[str, Any]] = {}
    for of, layers in groups.items():
        made = [_made(attention, config, tuple(want), queries) for attention in layers]
        arrays[of] = {name: jnp.stack([layer[name] for layer in made]) for name in axes}
    grids = {of: (x[0].clip_grid[0], *x[0].layout.space) for of, x in groups.items()}
    at: Any = tuple(tuple(int(i) for i in query) for query in queries)
    return Kept(arrays, axes, grids, config.tubelet, at)


def concatenate(parts: Sequence[Kept]) -> Kept:
    """Returns the summaries of all clips, in their order."""
    first = parts[0]
    if len(parts) == 1:
        return first
    arrays = {
        of: {
            name: jnp.concatenate([part.arrays[of][name] for part in parts], axis=1)
            for name in named
        }
        for of, named in first.arrays.items()
    }
    return replace(first, arrays=arrays)


def _made(attention: Attention, config: ModelConfig, want: tuple[str, ...], queries: Queries):
    made: dict[str, Array] = {}
    for name in want:
        made |= _summary(name, config, attention.of_any_layer)
    if queries:
        (steps, places), columns = attention.clip_grid, config.grid[2]
        # A stage that has pooled an axis has one token for all of it.
        at = [(t if steps > 1 else 0, y * columns + x if places > 1 else 0) for t, y, x in queries]
        made["rows"] = attention.rows(at)
    return made


@partial(jax.jit, static_argnums=(0, 1))
def _summary(name: str, config: ModelConfig, attention: Attention) -> dict[str, Array]:
    entry = SUMMARIES[name]
    return entry.make(attention, config, **entry.options)


def _check_queries(queries: Queries, config: ModelConfig) -> None:
    for query in queries:
        fits = len(query) == 3 and all(0 <= i < n for i, n in zip(query, config.grid, strict=True))
        if not fits:
            t, y, x = (n - 1 for n in config.grid)
            raise ValueError(
                f"no query {tuple(query)} on the grid: queries are (t, y, x), from (0, 0, 0) to "
                f"({t}, {y}, {x})"
            )


def check_size(attentions: Sequence[Attention], config: ModelConfig, want: Sequence[str]) -> None:
    """Raises ValueError if the summaries that are wanted are larger than the memory of a device."""
    needed: dict[str, int] = {}
    for name in want:
        shapes = partial(jax.eval_shape, partial(_summary, name, config))
        made = [shapes(attention.of_any_layer) for attention in attentions]
        needed[name] = sum(x.size * x.dtype.itemsize for layer in made for x in layer.values())
    limit = memory_of_device()
    if sum(needed.values()) > limit:
        largest = max(needed, key=lambda name: needed[name])
        raise ValueError(
            f"{largest!r} takes {needed[largest] / 1e9:.1f} GB for these clips, and a device has "
            f"{limit / 1e9:.1f} GB; give fewer clips, or ask for 'over_time', 'over_space' or "
            "'top(8)', or for the rows of some queries"
        )


def memory_of_device() -> int:
    """Returns the bytes that arrays may take on a device; those of the machine for a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", installed)
