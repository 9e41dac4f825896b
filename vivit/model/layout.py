"""The token grid of a stage with its class token and registers, and the way in and out of it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vivit.model.places import Places, take


@dataclass(frozen=True)
class Layout:
    """A stage's grid: time steps, rows and columns, and the extra tokens before those of the clip.

    axis: the grid axis whose first places are the class token and the registers: "s" or "t"; "ts"
        for a grid that they make one time step [B, 1, extra + T·S]; "" for no extra tokens.
    """

    steps: int
    space: tuple[int, int]
    axis: str = ""
    class_token: bool = False
    registers: int = 0

    @property
    def extra(self) -> int:
        """The number of extra tokens: the class token, then the registers."""
        return int(self.class_token) + self.registers

    @property
    def bare(self) -> "Layout":
        """The same grid without extra tokens."""
        return replace(self, axis="", class_token=False, registers=0)

    def insert(
        self, x: Shaped[Array, "B T S ..."], tokens: Shaped[Array, "extra ..."] | None = None
    ) -> Shaped[Array, "B T2 S2 ..."]:
        """Returns the clip's grid with the extra tokens [extra, ...] before it; None for zeros."""
        if not self.axis:
            return x
        b, t, s, *rest = x.shape
        if self.axis == "ts":
            t, s = 1, t * s
            x = x.reshape(b, t, s, *rest)
        if tokens is None:
            tokens = jnp.zeros((self.extra, *rest), x.dtype)
        if self.axis == "t":
            tokens = jnp.broadcast_to(tokens[None, :, None], (b, self.extra, s, *rest))
            return jnp.concatenate([tokens, x], axis=1)
        tokens = jnp.broadcast_to(tokens, (b, t, self.extra, *rest))
        return jnp.concatenate([tokens, x], axis=2)

    def remove(self, x: Array, *, axes: tuple[int, int] = (1, 2), by_step: bool = True) -> Array:
        """Returns an array whose `axes` are this grid, on the clip's own grid.

        by_step: whether a grid that the extra tokens made one time step gets its time steps back.
        """
        t_axis, s_axis = axes
        if not self.axis:
            return x
        axis = t_axis if self.axis == "t" else s_axis
        x = jax.lax.slice_in_dim(x, self.extra, None, axis=axis)
        if self.axis == "ts" and by_step:
            x = jnp.squeeze(x, axis=t_axis)
            x = x.reshape(*x.shape[:t_axis], self.steps, -1, *x.shape[t_axis + 1 :])
        return x

    def matrix(self, source: Float[Array, "B T R S"]) -> Float[Array, "B T2 R2 S2"]:
        """Returns the matrix of a token reduction on this grid; the extra tokens keep what they
        are."""
        b, t, r, s = source.shape
        if self.axis == "ts" and t > 1:  # one time step: each step's tokens come from its own
            by_step = jnp.einsum("BTRS,TU->BTRUS", source, jnp.eye(t))
            source = by_step.reshape(b, 1, t * r, t * s)
        wider = jnp.pad(source, ((0, 0), (0, 0), (self.extra, 0), (self.extra, 0)))
        return wider.at[:, :, jnp.arange(self.extra), jnp.arange(self.extra)].set(1)

    def at(self, places: Places | None) -> "Layout":
        """Returns the layout of the grid that has only the tokens at these places; None for all."""
        return self if places is None else replace(self, steps=places.shape[1])

    def coordinates(
        self, places: Places | None = None
    ) -> Float[np.ndarray, "T S 3"] | Float[Array, "B T2 S2 3"]:
        """Returns (t, y, x) of every token, or of those at some places; 0 for the extra ones."""
        if places is not None:
            return self.insert(take(jnp.asarray(self.bare.coordinates())[None], places))
        axes = np.meshgrid(*map(np.arange, (self.steps, *self.space)), indexing="ij")
        table = np.stack(axes, axis=-1).reshape(self.steps, -1, 3).astype(np.float32)
        if self.axis == "ts":
            table = table.reshape(1, -1, 3)
        before = (self.extra, 0)
        by_axis = {"": ((0, 0), (0, 0)), "t": (before, (0, 0))}
        return np.pad(table, (*by_axis.get(self.axis, ((0, 0), before)), (0, 0)))
