"""Position embeddings of one grid for another: RESIZES, and tables of single axes."""

from collections.abc import Callable

import jax
import numpy as np
import scipy.ndimage
from jaxtyping import Float

from vivit.registry import Registry

# A table over one to three axes of a grid, of the lengths in front of D.
Table = Float[np.ndarray, "*lengths D"]

# (a table [*old, D], new lengths) -> [*new, D]
RESIZES: Registry[Callable[[np.ndarray, tuple[int, ...]], np.ndarray]] = Registry("resize")


def _antialiased(method: str) -> Callable[[np.ndarray, tuple[int, ...]], np.ndarray]:
    def resize(table: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
        shape = (*lengths, table.shape[-1])
        return np.asarray(jax.image.resize(table, shape, method, antialias=True))

    return resize


RESIZES.add("linear", _antialiased("linear"))
RESIZES.add("cubic", _antialiased("cubic"))


@RESIZES.register("zoom")
def zoom(table: Table, lengths: tuple[int, ...]) -> np.ndarray:
    """Returns scipy.ndimage.zoom(order=1), as Scenic: corners on corners, not antialiased. An axis
    of length 1 is repeated."""
    for axis, length in enumerate(lengths):
        if table.shape[axis] == 1:
            table = np.repeat(table, length, axis=axis)
    factors = [new / old for new, old in zip(lengths, table.shape, strict=False)]
    if all(factor == 1 for factor in factors):
        return table
    return np.asarray(scipy.ndimage.zoom(table, (*factors, 1), order=1))


@RESIZES.register("tile")
def tile(table: Table, lengths: tuple[int, ...]) -> np.ndarray:
    """Returns the table repeated along each axis, to a multiple of its length."""
    axes = list(zip(table.shape, lengths, strict=False))
    wrong = [f"{old} -> {new}" for old, new in axes if new % old]
    if wrong:
        raise ValueError(f"can't tile positions {', '.join(wrong)}: not a multiple")
    return np.tile(table, (*(new // old for old, new in axes), 1))


@RESIZES.register("square_zoom")
def square_zoom(table: Table, lengths: tuple[int, ...]) -> np.ndarray:
    """Returns Scenic's "resize": all positions, of all time steps together, as one square image."""
    width = table.shape[-1]
    old, new = (round(np.prod(n) ** 0.5) for n in (table.shape[:-1], lengths))
    if old**2 != np.prod(table.shape[:-1]) or new**2 != np.prod(lengths):
        raise ValueError(f"{table.shape[:-1]} -> {lengths} are not square numbers of positions")
    image = table.reshape(old, old, width)
    zoomed = np.asarray(scipy.ndimage.zoom(image, (new / old, new / old, 1), order=1))
    return zoomed.reshape(*lengths, width)


def resize(table: Table, lengths: tuple[int, ...], *, method: str) -> np.ndarray:
    """Returns a table [*old, D] at [*lengths, D]; the same array where the lengths are the same."""
    if table.shape[:-1] == tuple(lengths):
        return table
    return RESIZES[method](table, tuple(lengths)).astype(np.float32)


def marginals(table: Table) -> list[np.ndarray]:
    """Returns tables of the single axes whose outer sum is nearest to a table [*lengths, D].

    The first has the mean, the others only what differs from it: zeros for an axis of length 1.
    """
    axes = range(table.ndim - 1)
    means = [table.mean(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    whole = table.mean(axis=tuple(axes))
    return means[:1] + [mean - whole for mean in means[1:]]
