"""Masks: which tokens of a clip's grid an encoder sees in pre-training, drawn clip by clip.

A mask is drawn as the numbers of the tokens that are seen, in row-major order of the grid
(t, y, x). How many there are is fixed by the grid and the options, so that a step compiles once and
all clips of a batch have equally many.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from vivit.model.places import Places
from vivit.registry import OptionRegistry, Options, options_of

GridShape = tuple[int, int, int]  # time steps, rows and columns
ClipPlaces = Int[Array, "T2 S2"]  # of one clip


@dataclass(frozen=True)
class Mask:
    """A registered mask.

    draw: (key, grid, **options) -> the tokens of one clip that are seen [T', S'].
    lines: whether they are the same places [S'] in each of the time steps [T']: patterns that mix
        along one axis need that. Without it T' is 1.
    """

    name: str
    draw: Callable[..., ClipPlaces]
    lines: bool
    options: Options = field(default_factory=Options)

    def __call__(self, keys: Key[Array, " B"], grid: GridShape) -> Places:
        """Returns the tokens of each clip that are seen."""
        return jax.vmap(partial(self.draw, grid=grid, **self.options))(keys)

    def shape(self, grid: GridShape) -> tuple[int, int]:
        """Returns how many time steps, and tokens of each, are seen.

        Raises ValueError if it cannot work on the grid, and if all tokens or none are seen.
        """
        drawn = partial(self.draw, grid=grid, **self.options)
        steps, places = jax.eval_shape(drawn, jax.random.key(0)).shape
        if not 0 < steps * places < np.prod(grid):
            which = "every token" if steps * places else "no token"
            raise ValueError(
                f"mask {self.label}: {which} of a grid of {' x '.join(map(str, grid))} is seen; "
                "change the mask, or take smaller tubelets"
            )
        return steps, places

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


def hidden_from(places: Places, count: int) -> Int[Array, "B M"]:
    """Returns the tokens, of `count`, that are not among those seen, in order."""
    flat = places.reshape(places.shape[0], -1)
    seen = jnp.zeros((flat.shape[0], count), bool)
    seen = jax.vmap(lambda row, at: row.at[at].set(True))(seen, flat)
    return jnp.argsort(seen, axis=1, stable=True)[:, : count - flat.shape[1]]
