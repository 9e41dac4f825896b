"""Patterns of bounded extent: windows, neighbourhoods, TimeSformer's local and global halves."""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vivit.attention.patterns import Attend, pattern
from vivit.axes import HeadGrid, KeyGrid, MixedGrid, ValueGrid

EXTENT_NAMES = ("steps", "rows", "columns")
Extent = tuple[int, ...]  # of time, rows and columns
Space = tuple[int, int]  # rows and columns of a time step
Volume = Float[Array, "B T Y X h k"]
Volumes = list[Float[Array, "B T Y X _ _"]]  # heads and channels of q, k and v may differ
Index = int | Int[Array, ""]  # of a layer; an array in a scan over layers


def _check_extent(name: str, grid: Extent, extent: Extent) -> None:
    """Raises ValueError where a window or neighbourhood is larger than the grid."""
    large = [
        f"{axis}={size} (the grid has {length})"
        for axis, size, length in zip(EXTENT_NAMES, extent, grid, strict=True)
        if size > length
    ]
    if large:
        least = ", ".join(str(min(a, b)) for a, b in zip(extent, grid, strict=True))
        raise ValueError(
            f'pattern {name!r} is larger than the grid: {", ".join(large)}; use "{name}({least})"'
        )


def _volumes(q: HeadGrid, k: KeyGrid, v: ValueGrid, space: Space) -> Volumes:
    """Returns queries, keys and values with rows and columns as axes."""
    return [rearrange(x, "B T (Y X) h k -> B T Y X h k", Y=space[0]) for x in (q, k, v)]


def _bias_table(
    heads: int, channels: int, *, steps: int, rows: int, columns: int
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the parameters of a relative position bias, for `Pattern.parameters`."""
    shape = (heads, 2 * steps - 1, 2 * rows - 1, 2 * columns - 1)
    return {"relative_bias": (shape, "normal")}


@pattern(
    "window",
    kernel_options=("bias", "mask"),
    scores=lambda t, y, x, steps, rows, columns: t * y * x * steps * rows * columns,
    check=lambda t, y, x, steps, rows, columns: _check_extent(
        "window", (t, y, x), (steps, rows, columns)
    ),
    parameters=_bias_table,
)
def window(
    q: HeadGrid,
    k: KeyGrid,
    v: ValueGrid,
    attend: Attend,
    *,
    space: Space,
    layer: Index,
    relative_bias: Float[Array, "h _ _ _"],
    steps: int = 8,
    rows: int = 7,
    columns: int = 7,
) -> MixedGrid:
    """Tokens of one window meet; every other layer's windows are shifted by half of their size.

    T·S·(steps·rows·columns) scores, where the windows divide the grid. Video Swin (2106.13230),
    section 3.2, with its relative position bias, in one table [h, 2·steps-1, 2·rows-1,
    2·columns-1]. An axis as long as its window isn't shifted. Shifted windows that reach around
    the grid's end are cut in two by a mask; where sizes don't divide, the padding is masked too
    (Video Swin's code lets it take part).

    Q of `window(1, 2, 2)` in layer 0 sees #:

        Q # . . | . . . .
        # # . . | . . . .
        . . . . | . . . .

    Q of `window(1, 2, 2)` in layer 1 sees #:

        . . . . | . . . .
        . # # . | . . . .
        . Q # . | . . . .
    """
    size: Extent = (steps, rows, columns)
    q, k, v = _volumes(q, k, v, space)
    grid = q.shape[1:4]
    halves = [s // 2 if s < length else 0 for s, length in zip(size, grid, strict=True)]
    shift: list[Any] = [half * (layer % 2) for half in halves]  # jnp.roll takes traced ones too
    more = [-length % s for s, length in zip(size, grid, strict=True)]

    def cut(x: Volume) -> Float[Array, "B windows n h k"]:
        x = jnp.pad(x, [(0, 0), *((0, extra) for extra in more), (0, 0), (0, 0)])
        x = jnp.roll(x, [-s for s in shift], axis=(1, 2, 3))
        form = "B (T t) (Y y) (X x) h k -> B (T Y X) (t y x) h k"
        return rearrange(x, form, t=steps, y=rows, x=columns)

    def join(x: Float[Array, "B windows n h c"]) -> MixedGrid:
        form = "B (T Y X) (t y x) h k -> B (T t) (Y y) (X x) h k"
        t, y, _ = ((n + extra) // s for n, extra, s in zip(grid, more, size, strict=True))
        x = rearrange(x, form, T=t, Y=y, t=steps, y=rows, x=columns)
        x = jnp.roll(x, shift, axis=(1, 2, 3))[:, : grid[0], : grid[1], : grid[2]]
        return rearrange(x, "B T Y X h k -> B T (Y X) h k")

    options = {"bias": _relative(relative_bias, size)}
    unshifted = isinstance(layer, int) and not any(shift)
    if any(more) or not unshifted:
        options["mask"] = _window_mask(grid, size, shift)
    return join(attend(cut(q), cut(k), cut(v), **options))


def _relative(table: Float[Array, "h _ _ _"], size: Extent) -> Float[Array, "h n n"]:
    """Returns the bias of every pair of tokens of a window, by their distance along each axis."""
    for axis, n in zip((1, 3, 5), size, strict=True):
        # Slices, not a gather: on CPUs a gather's gradient takes longer than the attention.
        table = jnp.flip(table, axis)
        rows = [jax.lax.slice_in_dim(table, n - 1 - i, 2 * n - 1 - i, axis=axis) for i in range(n)]
        table = jnp.stack(rows, axis=axis)  # [..., i, j, ...] at the distance i - j
    n = int(np.prod(size))
    return rearrange(table, "h T t Y y X x -> h (T Y X) (t y x)").reshape(-1, n, n)


def _window_mask(
    grid: Extent, size: Extent, shift: Sequence[Index]
) -> Bool[Array, "windows 1 n n"]:
    """Returns which tokens of each window meet: those on one side of the grid's end, no padding."""
    masks = []
    for length, s, by in zip(grid, size, shift, strict=True):
        padded = -(-length // s) * s
        origin = (jnp.arange(padded) + by) % padded
        # 0: unmoved; 1: wrapped around the end; -1: padding
        side = jnp.where(origin < length, (origin < by).astype(int), -1).reshape(-1, s)
        masks.append((side[:, :, None] == side[:, None, :]) & (side[:, None, :] >= 0))
    return jnp.asarray(reduce(_outer_and, masks))[:, None]


def _outer_and(
    a: Bool[Array | np.ndarray, "A i j"], b: Bool[Array | np.ndarray, "B k l"]
) -> Bool[Array | np.ndarray, "A*B i*k j*l"]:
    """Returns the outer logical AND of two masks."""
    both = a[:, None, :, None, :, None] & b[None, :, None, :, None, :]
    wide = both.shape
    return both.reshape(wide[0] * wide[1], wide[2] * wide[3], wide[4] * wide[5])


@pattern(
    "neighbourhood",
    kernel_options=("mask",),
    scores=lambda t, y, x, steps, rows, columns: t * y * x * steps * rows * columns,
    check=lambda t, y, x, steps, rows, columns: _check_extent(
        "neighbourhood", (t, y, x), (steps, rows, columns)
    ),
)
def neighbourhood(
    q: HeadGrid,
    k: KeyGrid,
    v: ValueGrid,
    attend: Attend,
    *,
    space: Space,
    steps: int = 3,
    rows: int = 7,
    columns: int = 7,
) -> MixedGrid:
    """Each token sees the steps x rows x columns around it: T·S·(steps·rows·columns) scores.

    Neighbourhood attention (2204.07143), section 3.1, in three dimensions: at the grid's edges the
    neighbourhood moves inwards and keeps its size; of an even size one more lies before than
    after. Computed tile by tile against all that a tile's queries see, under a mask: up to twice
    the scores an axis.

    Q of `neighbourhood(1, 3, 3)` sees #:

        # Q # . | . . . .
        # # # . | . . . .
        # # # . | . . . .
        . . . . | . . . .
    """
    q, k, v = _volumes(q, k, v, space)
    tiles = [Tiles(*lengths) for lengths in zip(q.shape[1:4], (steps, rows, columns), strict=True)]
    mask = reduce(_outer_and, [axis.mask for axis in tiles])
    q = jnp.pad(q, [(0, 0), *((0, axis.padding) for axis in tiles), (0, 0), (0, 0)])
    form = "B (T t) (Y y) (X x) h k -> B (T Y X) (t y x) h k"
    t, y, x = (axis.size for axis in tiles)
    queries = rearrange(q, form, t=t, y=y, x=x)
    k, v = (_gather(volume, tiles) for volume in (k, v))
    out = attend(queries, k, v, mask=jnp.asarray(mask[:, None]))
    form = "B (T Y X) (t y x) h k -> B (T t) (Y y) (X x) h k"
    out = rearrange(out, form, T=tiles[0].count, Y=tiles[1].count, t=t, y=y, x=x)
    out = out[:, : tiles[0].length, : tiles[1].length, : tiles[2].length]
    return rearrange(out, "B T Y X h k -> B T (Y X) h k")


class Tiles:
    """One axis cut into tiles of queries, each with the stretch of keys that its queries see.

    keys: which keys. mask: which queries see which keys.
    """

    keys: Int[np.ndarray, "count stretch"]
    mask: Bool[np.ndarray, "count size stretch"]

    def __init__(self, length: int, seen: int) -> None:
        self.length, self.size = length, min(seen, length)
        self.count = -(-length // self.size)
        self.padding = self.count * self.size - length
        stretch = min(length, self.size + seen - 1)
        queries = np.arange(self.count * self.size)
        starts = np.clip(queries - seen // 2, 0, length - seen)
        firsts = np.minimum(starts[:: self.size], length - stretch)
        self.keys = firsts[:, None] + np.arange(stretch)
        starts = starts.reshape(self.count, self.size, 1)
        keys = self.keys[:, None, :]
        self.mask = (keys >= starts) & (keys < starts + seen)


def _gather(x: Volume, tiles: list[Tiles]) -> Float[Array, "B tiles m h k"]:
    """Returns the keys, or their values, of every tile."""
    for axis, tile in zip((3, 2, 1), reversed(tiles), strict=True):
        firsts, stretch = tile.keys[:, 0].tolist(), tile.keys.shape[1]
        parts = [jax.lax.slice_in_dim(x, i, i + stretch, axis=axis) for i in firsts]
        x = jnp.stack(parts, axis=axis)
    return rearrange(x, "B T t Y y X x h k -> B (T Y X) (t y x) h k")


def _half(length: int) -> int:
    return max(length // 2, 1)


@pattern(
    "local",
    kernel_options=("mask",),
    scores=lambda t, y, x: t * y * x * t * _half(y) * _half(x),
)
def local(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, space: Space) -> MixedGrid:
    """Each token sees the Y/2 x X/2 around it in all time steps: (T·S)·T·S/4 scores.

    The local half of TimeSformer's sparse local-global attention (2102.05095, section 3), which
    takes F x H/2 x W/2 patches; at the edges as `neighbourhood`.

    Q of `local` sees #:

        # # . . | # # . .
        # Q . . | # # . .
        . . . . | . . . .
        . . . . | . . . .
    """
    rows, columns = (_half(length) for length in space)
    around = partial(neighbourhood, steps=q.shape[1], rows=rows, columns=columns)
    return around(q, k, v, attend, space=space)


@pattern(
    "strided_global",
    kernel_options=("mask",),
    scores=lambda t, y, x: int(
        np.prod([sum(-(-(n - i % 2) // 2) for i in range(n)) for n in (t, y, x)])
    ),
)
def strided_global(
    q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, space: Space
) -> MixedGrid:
    """Each token sees every second time step, row and column from it on: (T·S)²/8 scores.

    The global half of TimeSformer's sparse local-global attention (2102.05095, section 3), a
    stride of 2 along time and both axes of space. Read as the tokens at even distances, as in
    Sparse Transformers (1904.10509), not as one grid of keys that all queries share.

    Q of `strided_global` sees #:

        # . # . | . . . . | # . # .
        . . . . | . . . . | . . . .
        # . Q . | . . . . | # . # .
    """
    q, k, v = _volumes(q, k, v, space)
    grid = q.shape[1:4]
    more = [(0, 0), *((0, n % 2) for n in grid), (0, 0), (0, 0)]
    form = "B (T t) (Y y) (X x) h k -> B (t y x) (T Y X) h k"
    q, k, v = (rearrange(jnp.pad(x, more), form, t=2, y=2, x=2) for x in (q, k, v))
    options = {}
    if any(n % 2 for n in grid):
        real = np.pad(np.ones(grid, bool), more[1:4])
        real = rearrange(real, "(T t) (Y y) (X x) -> (t y x) 1 1 (T Y X)", t=2, y=2, x=2)
        options["mask"] = jnp.asarray(real)
    out = attend(q, k, v, **options)
    t, y, x = ((n + 1) // 2 for n in grid)
    form = "B (t y x) (T Y X) h k -> B (T t) (Y y) (X x) h k"
    out = rearrange(out, form, t=2, y=2, x=2, T=t, Y=y, X=x)[:, : grid[0], : grid[1], : grid[2]]
    return rearrange(out, "B T Y X h k -> B T (Y X) h k")
