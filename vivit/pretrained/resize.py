"""From images to clips and from one clip size to another: patch kernels and position tables."""

from collections.abc import Callable

import jax
import numpy as np
import scipy.ndimage

from vivit.registry import Registry

# (a 2D kernel [h, w, C, D], steps) -> a tubelet kernel [steps, h, w, C, D]
INFLATIONS: Registry[Callable[[np.ndarray, int], np.ndarray]] = Registry("inflation")


@INFLATIONS.register("central_frame")
def central_frame(kernel: np.ndarray, steps: int) -> np.ndarray:
    """All of it at the central frame, steps // 2; ViViT (2103.15691), equation 9."""
    out = np.zeros((steps, *kernel.shape), kernel.dtype)
    out[steps // 2] = kernel
    return out


@INFLATIONS.register("average_frames")
def average_frames(kernel: np.ndarray, steps: int) -> np.ndarray:
    """An equal share at every frame, "filter inflation"; ViViT, equation 8, after 1705.07750."""
    return np.tile(kernel[None] / steps, (steps, 1, 1, 1, 1))


@INFLATIONS.register("rank_pooling")
def rank_pooling(kernel: np.ndarray, steps: int) -> np.ndarray:
    """Weighted by approximate rank pooling, which tells the order of frames; Bilen et al.
    (1612.00738), equation 3, over the number of frames. A still clip gives zero.

    ValueError for one frame, which has no order.
    """
    if steps < 2:
        raise ValueError("rank_pooling needs tubelets of at least 2 frames")
    t = np.arange(1, steps + 1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / t)])
    weights = 2 * (steps - t + 1) - (steps + 1) * (harmonic[-1] - harmonic[:-1])
    shaped = (weights / steps).reshape(-1, 1, 1, 1, 1)
    return (kernel[None] * shaped).astype(kernel.dtype)


def inflate(kernel: np.ndarray, steps: int, *, method: str) -> np.ndarray:
    """A tubelet kernel [t, h, w, C, D] for tubelets of another number of frames.

    A kernel of several frames is summed first: that is what it makes of a clip that stands still,
    and central_frame and average_frames keep it.
    """
    if kernel.shape[0] == steps:
        return kernel
    still = kernel[0] if len(kernel) == 1 else kernel.sum(axis=0)
    return INFLATIONS[method](still, steps)


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
def zoom(table: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """scipy.ndimage.zoom(order=1): corners on corners, not antialiased; Scenic's. An axis of one
    place is repeated."""
    for axis, length in enumerate(lengths):
        if table.shape[axis] == 1:
            table = np.repeat(table, length, axis=axis)
    factors = [new / old for new, old in zip(lengths, table.shape, strict=False)]
    if all(factor == 1 for factor in factors):
        return table
    return np.asarray(scipy.ndimage.zoom(table, (*factors, 1), order=1))


@RESIZES.register("tile")
def tile(table: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Repeated along each axis, which must be a multiple of what it was."""
    wrong = [f"{a} -> {b}" for a, b in zip(table.shape, lengths, strict=False) if b % a]
    if wrong:
        raise ValueError(f"can't tile positions {', '.join(wrong)}: no multiple")
    return np.tile(
        table, (*(new // old for new, old in zip(lengths, table.shape, strict=False)), 1)
    )


@RESIZES.register("square_zoom")
def square_zoom(table: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Scenic's "resize": all places, those of all steps together, taken for one square image."""
    width = table.shape[-1]
    old, new = (round(np.prod(n) ** 0.5) for n in (table.shape[:-1], lengths))
    if old**2 != np.prod(table.shape[:-1]) or new**2 != np.prod(lengths):
        raise ValueError(f"{table.shape[:-1]} -> {lengths} are no square numbers of places")
    zoomed = scipy.ndimage.zoom(table.reshape(old, old, width), (new / old, new / old, 1), order=1)
    return zoomed.reshape(*lengths, width)


def resize(table: np.ndarray, lengths: tuple[int, ...], *, method: str) -> np.ndarray:
    """A position table [*old, D] at [*new, D], each axis on its own."""
    if table.shape[:-1] == tuple(lengths):
        return table
    return RESIZES[method](table, tuple(lengths)).astype(np.float32)


def marginals(table: np.ndarray) -> list[np.ndarray]:
    """Tables of the single axes whose outer sum is nearest to a table [*lengths, D].

    The first has the mean, the others only what differs from it: zeros for an axis of one place.
    """
    axes = range(table.ndim - 1)
    means = [table.mean(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    whole = table.mean(axis=tuple(axes))
    return means[:1] + [mean - whole for mean in means[1:]]
