"""Position embeddings of one stage from those of another: other lengths, axes and kinds."""

from typing import NamedTuple

import numpy as np

from vivit.pretrained.files import Arrays
from vivit.pretrained.resize import marginals, resize


class PositionSpec(NamedTuple):
    """The position embeddings that start in a stage: their kind, a name of POSITION_EMBEDDINGS,
    and their axes "t", "s" or "ts" with the lengths of those."""

    kind: str
    axes: str
    lengths: tuple[int, ...]

    def span(self, leaf: str) -> slice:
        """Returns the axes that the parameter `leaf` is over: "table" all, "time", "space", or one
        as "table_0". Raises ValueError for another parameter, which no other kind can read."""
        rank = len(self.lengths)
        spans = {"table": slice(0, rank), "time": slice(0, 1), "space": slice(rank - 2, rank)}
        spans |= {f"table_{axis}": slice(axis, axis + 1) for axis in range(rank)}
        if leaf not in spans:
            raise ValueError(f"{self.kind} positions have a parameter {leaf!r} of unknown axes")
        return spans[leaf]

    def lengths_of(self, leaf: str) -> tuple[int, ...]:
        return self.lengths[self.span(leaf)]


class Converted(NamedTuple):
    """table: [n, D]. leaves: the source's tables that it was made from. kept: whether it is one."""

    table: np.ndarray
    leaves: tuple[str, ...]
    kept: bool


def convert(
    leaf: str, tables: Arrays, old: PositionSpec, new: PositionSpec, *, method: str
) -> Converted:
    """Returns the parameter `leaf` of `new` from the tables of `old`, each resized over its axes.

    Between kinds or sets of axes it goes by the sum of the tables on the grid: over space alone
    that is the mean over time, over more axes it is the same along the new ones, and tables of
    single axes are those whose sum is nearest. Raises ValueError where no conversion exists.
    """
    same = (old.kind, old.axes) == (new.kind, new.axes)
    if old == new and leaf in tables:
        return Converted(tables[leaf], (leaf,), kept=True)
    lengths = new.lengths_of(leaf)
    if same and leaf in tables:
        table, leaves = tables[leaf].reshape(*old.lengths_of(leaf), -1), (leaf,)
    elif tables and set(old.axes) & set(new.axes):
        table, leaves = _part(leaf, _over_axes(_on_grid(tables, old), old, new)), tuple(tables)
    else:
        raise ValueError(f"can't be made from {old.kind} positions over {old.axes or 'nothing'}")
    resized = resize(table, lengths, method=method)
    return Converted(resized.reshape(-1, table.shape[-1]), leaves, kept=same and resized is table)


def _on_grid(tables: Arrays, spec: PositionSpec) -> np.ndarray:
    """Returns the sum of tables on their axes [*lengths, D]."""
    rank, total = len(spec.lengths), np.zeros(1, np.float32)
    for leaf, table in tables.items():
        span = spec.span(leaf)
        shape = (1,) * span.start + spec.lengths[span] + (1,) * (rank - span.stop)
        total = total + table.reshape(*shape, -1)
    return total


def _over_axes(table: np.ndarray, old: PositionSpec, new: PositionSpec) -> np.ndarray:
    """Returns a table over the axes of `old`, over those of `new`."""
    if (old.axes, new.axes) == ("ts", "s"):
        return table.mean(axis=0)  # [T, Y, X, D] -> [Y, X, D]
    return table[None] if (old.axes, new.axes) == ("s", "ts") else table


def _part(leaf: str, table: np.ndarray) -> np.ndarray:
    """Returns the part of a table on the grid that the parameter `leaf` holds."""
    if leaf == "table" or (leaf == "space" and table.ndim == 3) or table.ndim == 2:
        return table
    if leaf in ("space", "time"):
        t, y, x, d = table.shape
        space, time = marginals(table.reshape(t, y * x, d).swapaxes(0, 1))  # [Y·X, D], [T, D]
        return time if leaf == "time" else space.reshape(y, x, d)
    return marginals(table)[int(leaf.removeprefix("table_"))]
