"""Masks: which tokens of a clip's grid an encoder sees in pre-training, and which are predicted,
drawn clip by clip.

A mask is drawn as the numbers of the tokens that are seen, in row-major order of the grid
(t, y, x). How many there are is fixed by the grid and the options, so that a step compiles once and
all clips of a batch have equally many.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from vivit.model.places import Places
from vivit.registry import OptionRegistry, Options, options_of

GridShape = tuple[int, int, int]  # time steps, rows and columns
ClipPlaces = Int[Array, "T2 S2"]  # of one clip
Wanted = Int[Array, "B M"]  # tokens that are predicted


class Masked(NamedTuple):
    """What is drawn of each clip: the tokens that an encoder sees, and those to be predicted."""

    seen: Places
    wanted: Wanted


class Counts(NamedTuple):
    """How many tokens are seen, of each of so many time steps, and how many are predicted."""

    steps: int
    places: int
    wanted: int

    def example(self) -> Masked:
        """Returns a mask of one clip."""
        seen = jnp.arange(self.steps * self.places).reshape(1, self.steps, self.places)
        return Masked(seen, jnp.arange(self.wanted)[None])


@dataclass(frozen=True)
class Mask:
    """A registered mask.

    draw: (key, grid, **options) -> the tokens of one clip that are seen [T', S'], or these and the
        tokens [M] that are predicted; without them all that are not seen.
    lines: whether those seen are the same places [S'] in each of the time steps [T']: patterns that
        mix along one axis need that. Without it T' is 1.
    """

    name: str
    draw: Callable[..., ClipPlaces | tuple[ClipPlaces, Int[Array, " M"]]]
    lines: bool
    options: Options = field(default_factory=Options)

    def __call__(self, keys: Key[Array, " B"], grid: GridShape) -> Masked:
        """Returns what is drawn of each clip, by its key alone."""
        drawn = jax.vmap(partial(self.draw, grid=grid, **self.options))(keys)
        if isinstance(drawn, tuple):
            seen, wanted = drawn  # pyright: ignore
            return Masked(seen, wanted)
        return Masked(drawn, hidden_from(drawn, int(np.prod(grid))))

    def counts(self, grid: GridShape) -> Counts:
        """Returns how many tokens are seen and predicted.

        Raises ValueError if it cannot work on the grid, and if all tokens or none are seen, or none
        is predicted.
        """
        of_grid = lambda keys: tuple(self(keys, grid))
        seen, wanted = jax.eval_shape(of_grid, jax.random.split(jax.random.key(0), 1))
        steps, places = seen.shape[1:]
        found, count = Counts(steps, places, wanted.shape[1]), int(np.prod(grid))
        problems = {
            "no token is seen": steps * places == 0,
            "every token is seen": steps * places >= count,
            "no token is predicted": found.wanted == 0,
        }
        for problem, is_so in problems.items():
            if is_so:
                raise ValueError(
                    f"mask {self.label}: {problem} of a grid of {' x '.join(map(str, grid))}; "
                    "change the mask, or take smaller tubelets"
                )
        return found

    @property
    def label(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.options.items())})"


MASKS: OptionRegistry[Mask] = OptionRegistry("mask")


def mask(name: str, *, lines: bool):
    """Returns a decorator that registers a function as a mask; see `Mask`.

    The function takes a key, and `grid` by keyword; its other keyword-only arguments are options,
    each with a default.
    """

    def register(draw):
        MASKS.add(name, Mask(name, draw, lines, options_of(draw, given=("grid",))))
        return draw

    return register


def _seen(count: int, ratio: float) -> int:
    """Returns how many of `count` are seen if this part of them is hidden, rounded down."""
    if not 0 < ratio < 1:
        raise ValueError(f"the part that a mask hides, {ratio=}, is not between 0 and 1")
    return count - int(ratio * count)


def _choose(key: Array, count: int, seen: int) -> Int[Array, " seen"]:
    return jnp.sort(jax.random.permutation(key, count)[:seen])


@mask("tube", lines=True)
def tube(key: Array, *, grid: GridShape, ratio: float = 0.9) -> ClipPlaces:
    """Hides the same places in all time steps: VideoMAE (2203.12602), section 3.3."""
    steps, space = grid[0], grid[1] * grid[2]
    places = _choose(key, space, _seen(space, ratio))
    return jnp.arange(steps)[:, None] * space + places


@mask("frame", lines=True)
def frame(key: Array, *, grid: GridShape, ratio: float = 0.875) -> ClipPlaces:
    """Hides whole time steps: VideoMAE (2203.12602), section 4.2."""
    steps, space = grid[0], grid[1] * grid[2]
    return _choose(key, steps, _seen(steps, ratio))[:, None] * space + jnp.arange(space)


@mask("random", lines=False)
def random(key: Array, *, grid: GridShape, ratio: float = 0.9) -> ClipPlaces:
    """Hides tokens anywhere: MAE over space and time (2205.09113), section 3."""
    count = int(np.prod(grid))
    return _choose(key, count, _seen(count, ratio))[None]


@mask("running_cell", lines=False)
def running_cell(key: Array, *, grid: GridShape, ratio: float = 0.5) -> ClipPlaces:
    """Hides a part of each cell of 2 x 2 places. The hidden part rotates by one place from each
    time step to the next, from a random start: VideoMAE V2 (2303.16727), section 3.2."""
    steps, rows, columns = grid
    if rows % 2 or columns % 2:
        raise ValueError(
            f"mask running_cell has cells of 2 x 2 tokens, and a time step has {rows} x {columns}"
        )
    seen = _seen(4, ratio)
    t, y, x = np.meshgrid(*map(np.arange, grid), indexing="ij")
    in_cell = (2 * (y % 2) + x % 2 - t).reshape(-1)
    start = jax.random.randint(key, (), 0, 4)
    hidden = (in_cell - start) % 4 >= seen
    order = jnp.argsort(hidden, stable=True)
    return order[: steps * rows * columns * seen // 4][None]


class Blocks(NamedTuple):
    """Rectangles of places: how many, the part of a time step that each covers, and the range of
    its height over its width."""

    count: int
    scale: float
    least: float
    most: float

    def cover(self, aspect: Any, corners: Any, grid: GridShape) -> Any:
        """Returns which places of a time step are covered [..., S], for NumPy as for JAX.

        aspect: [...], height over width. corners: [..., count, 2], from 0 to 1 over all places
        where a block fits.
        """
        _, rows, columns = grid
        area = int(rows * columns * self.scale)  # whole places, as in the released code
        sides = [(area * aspect) ** 0.5, (area / aspect) ** 0.5]
        h, w = (
            (side + 0.5).astype(int).clip(1, most)[..., None]
            for side, most in zip(sides, (rows, columns), strict=True)
        )
        y0, x0 = (
            (corners[..., axis] * (most - side + 1)).astype(int)[..., None]
            for axis, (most, side) in enumerate(((rows, h), (columns, w)))
        )
        y, x = np.divmod(np.arange(rows * columns), columns)
        inside = (y >= y0) & (y < y0 + h[..., None]) & (x >= x0) & (x < x0 + w[..., None])
        return inside.any(axis=-2)

    def draw(self, keys: Any, grid: GridShape) -> Bool[Array, " S"]:
        """Returns which places of a time step are covered, by two keys."""
        aspect = jax.random.uniform(keys[0], (), minval=self.least, maxval=self.most)
        return self.cover(aspect, jax.random.uniform(keys[1], (self.count, 2)), grid)


@lru_cache
def _places_of(blocks: Blocks, grid: GridShape, quantile: float) -> tuple[int, int]:
    """Returns how many places are seen, and how many predicted: all but a part `quantile` of draws
    leave, and hide, so many. From 4,096 draws, always the same ones.

    Raises ValueError for blocks that cannot be.
    """
    if not 0 < blocks.scale < 1:
        raise ValueError(
            f"the part of a time step that a block covers, scale={blocks.scale}, is not in (0, 1)"
        )
    if not 0 < blocks.least <= blocks.most < np.inf:
        raise ValueError(
            f"aspect ratios of blocks from {blocks.least} to {blocks.most} are no range"
        )
    if not 0 <= quantile <= 1:
        raise ValueError(f"{quantile=} is not in [0, 1]")
    rng = np.random.default_rng(0)
    aspect = rng.uniform(blocks.least, blocks.most, 4096)
    covered = blocks.cover(aspect, rng.random((4096, blocks.count, 2)), grid).sum(axis=1)
    space = grid[1] * grid[2]
    seen, wanted = (int(np.quantile(x, quantile)) for x in (space - covered, covered))
    return seen, wanted


@mask("blocks", lines=True)
def blocks(
    key: Array,
    *,
    grid: GridShape,
    count: int = 8,
    scale: float = 0.15,
    least: float = 0.75,
    most: float = 1.5,
    quantile: float = 0.1,
) -> tuple[ClipPlaces, Int[Array, " M"]]:
    """Predicts places in rectangles, in all time steps, and shows others outside of them:
    multi-block masking of V-JEPA (2404.08471, section 3.2).

    The released code cuts to the smallest numbers of a batch, the last time steps first. Here the
    numbers are fixed: all but a part `quantile` of draws have so many, and places are left out at
    random, each in all time steps. Where a draw has fewer, places of the other side join.
    """
    drawn, steps, space = Blocks(count, scale, least, most), grid[0], grid[1] * grid[2]
    seen, wanted = _places_of(drawn, grid, quantile)
    order_key, *keys = jax.random.split(key, 3)
    hidden = drawn.draw(keys, grid)
    order = jnp.argsort(_from_hidden_to_seen(hidden, jax.random.uniform(order_key, (space,))))
    all_steps = lambda places: jnp.arange(steps)[:, None] * space + jnp.sort(places)
    return all_steps(order[space - seen :]), all_steps(order[:wanted]).reshape(-1)


@mask("blocks_in_order", lines=False)
def blocks_in_order(
    key: Array,
    *,
    grid: GridShape,
    count: int = 8,
    scale: float = 0.15,
    least: float = 0.75,
    most: float = 1.5,
    quantile: float = 0.04,
) -> tuple[ClipPlaces, Int[Array, " M"]]:
    """`blocks` that leave out the last tokens in row-major order, as V-JEPA 2's released code: most
    of what is left out is in the last time steps. Its default is the smallest of about 24 clips."""
    drawn, steps = Blocks(count, scale, least, most), grid[0]
    seen, wanted = (steps * n for n in _places_of(drawn, grid, quantile))
    hidden = jnp.tile(drawn.draw(jax.random.split(key), grid), steps)
    found, others = cut_in_order(hidden, seen, wanted)
    return found[None], others


def cut_in_order(
    hidden: Bool[Array, " N"], seen: int, wanted: int
) -> tuple[Int[Array, " seen"], Int[Array, " wanted"]]:
    """Returns the first `seen` tokens that are not hidden and the first `wanted` ones that are, in
    row-major order. Where there are too few of one kind, some of the other join."""
    order = jnp.argsort(_from_hidden_to_seen(hidden, jnp.arange(len(hidden)) / len(hidden)))
    return jnp.sort(order[len(hidden) - seen :]), jnp.sort(order[:wanted])


def _from_hidden_to_seen(hidden: Array, rank: Array) -> Array:
    """Returns what to sort by, so that what is predicted is taken from the start and what is seen
    from the end: the two never overlap. rank: in [0, 1), of what is taken first of either."""
    return jnp.where(hidden, rank, 2 - rank)


def hidden_from(places: Places, count: int) -> Int[Array, "B M"]:
    """Returns the tokens, of `count`, that are not among those seen, in order."""
    flat = places.reshape(places.shape[0], -1)
    seen = jnp.zeros((flat.shape[0], count), bool)
    seen = jax.vmap(lambda row, at: row.at[at].set(True))(seen, flat)
    return jnp.argsort(seen, axis=1, stable=True)[:, : count - flat.shape[1]]
