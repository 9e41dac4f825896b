"""Position tables of one stage from those of another: other lengths, axes, kinds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vivit.pretrained.files import Arrays
from vivit.pretrained.resize import marginals, resize

Stage = Mapping[str, Any]  # of `vivit.plan.plan_stages`


class Placed(NamedTuple):
    """table: [n, D]. leaves: the source's tables that it was made from. kept: whether it is one."""

    table: np.ndarray
    leaves: tuple[str, ...]
    kept: bool


def place(leaf: str, tables: Arrays, old: Stage, new: Stage, *, method: str) -> Placed:
    """The table `leaf` ("table", "table_0", "space", "time") of a stage `new` from the tables of a
    stage `old`, each resized over its own axes.

    From one kind or set of axes to another it goes by the sum of the tables on the grid: over
    places alone it is the mean over time, over more axes it is the same along the new ones, and
    tables of single axes are those whose sum is nearest. ValueError where nothing leads there.
    """
    lengths = _lengths(leaf, new)
    same = all(old[key] == new[key] for key in ("position", "position_axes"))
    if same and leaf in tables:
        table, leaves = tables[leaf].reshape(*_lengths(leaf, old), -1), (leaf,)
    elif tables and set(old["position_axes"]) & set(new["position_axes"]):
        table, leaves = _part(leaf, _over_axes(_on_grid(tables, old), old, new)), tuple(tables)
    else:
        raise ValueError(
            f"can't be made from {old['position']} positions over "
            f"{old['position_axes'] or 'nothing'}"
        )
    resized = resize(table, lengths, method=method)
    return Placed(resized.reshape(-1, table.shape[-1]), leaves, same and resized is table)


def _on_grid(tables: Arrays, stage: Stage) -> np.ndarray:
    """The sum of a stage's tables on its axes [*lengths, D]."""
    rank, total = len(stage["lengths"]), np.zeros(1, np.float32)
    for leaf, table in tables.items():
        lengths, first = _lengths(leaf, stage), _first_axis(leaf, stage)
        shape = (1,) * first + lengths + (1,) * (rank - first - len(lengths))
        total = total + table.reshape(*shape, -1)
    return total


def _over_axes(table: np.ndarray, old: Stage, new: Stage) -> np.ndarray:
    """A table on a stage's axes, on those of another."""
    axes = old["position_axes"], new["position_axes"]
    if axes == ("ts", "s"):
        return table.mean(axis=0)  # [T, Y, X, D] -> [Y, X, D]
    return table[None] if axes == ("s", "ts") else table


def _part(leaf: str, table: np.ndarray) -> np.ndarray:
    """What the table `leaf` holds of a table on the grid."""
    if leaf == "table" or (leaf == "space" and table.ndim == 3) or table.ndim == 2:
        return table
    if leaf in ("space", "time"):
        t, y, x, d = table.shape
        space, time = marginals(table.reshape(t, y * x, d).swapaxes(0, 1))  # [Y·X, D], [T, D]
        return time if leaf == "time" else space.reshape(y, x, d)
    return marginals(table)[int(leaf.removeprefix("table_"))]


def _first_axis(leaf: str, stage: Stage) -> int:
    if leaf == "space":
        return len(stage["lengths"]) - 2
    return int(leaf.removeprefix("table_")) if leaf.startswith("table_") else 0


def _lengths(leaf: str, stage: Stage) -> tuple[int, ...]:
    """The lengths of the axes that a table spans."""
    if leaf == "table":
        return stage["lengths"]
    first = _first_axis(leaf, stage)
    return stage["lengths"][first : first + (2 if leaf == "space" else 1)]
