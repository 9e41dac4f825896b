"""Some of the tokens of a clip's grid: which ones an encoder sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vivit.attention.reductions import NO_REDUCTION

if TYPE_CHECKING:
    from vivit.model.config import ModelConfig

# Numbers of tokens in row-major order of the clip's own grid (t, y, x), on a grid of time steps and
# places of their own: the places of a step are of one time step of the clip, unless there is a
# single step, whose places are anywhere.
Places = Int[Array, "B t_seen s_seen"]


def take(x: Shaped[Array, "#B T S ..."], places: Places) -> Shaped[Array, "B t_seen s_seen ..."]:
    """Returns the tokens of a clip's grid that are at these places."""
    flat = x.reshape(x.shape[0], -1, *x.shape[3:])
    flat = jnp.broadcast_to(flat, (places.shape[0], *flat.shape[1:]))
    at = places.reshape(places.shape[0], -1, *(1,) * (flat.ndim - 2))
    return jnp.take_along_axis(flat, at, axis=1).reshape(*places.shape, *x.shape[3:])


def put(
    x: Float[Array, "B t_seen s_seen ..."], places: Places, shape: tuple[int, int]
) -> Float[Array, "B T S ..."]:
    """Returns tokens put back on a clip's grid of this shape (T, S), zeros elsewhere."""
    rest = x.shape[3:]
    flat = jnp.zeros((x.shape[0], shape[0] * shape[1], *rest), x.dtype)
    rows = jnp.arange(x.shape[0])[:, None]
    flat = flat.at[rows, places.reshape(x.shape[0], -1)].set(x.reshape(x.shape[0], -1, *rest))
    return flat.reshape(x.shape[0], *shape, *rest)


def check_places(config: ModelConfig, *, lines: bool) -> None:
    """Raises ValueError if a model cannot encode some of the tokens of a clip alone.

    lines: whether these are the same places in each of some time steps.
    """
    for i, stage in enumerate(config.stages[:-1]):
        if stage.pool_axes:
            raise ValueError(
                f"stage {i} pools {stage.pool_axes!r} before the last stage, so that the tokens do "
                "not stay on the clip's grid; use a family of one stage, such as 'joint'"
            )
    for i, stage in enumerate(config.stages):
        if stage.reduction != NO_REDUCTION:
            raise ValueError(f"stage {i} reduces tokens, so that none of them can be left out")
        for pattern in stage.attentions:
            if not pattern.subset:
                raise ValueError(
                    f"stage {i} mixes by {pattern.name!r}, which needs the whole grid; use 'joint'"
                )
            if pattern.subset == "lines" and not lines:
                raise ValueError(
                    f"stage {i} mixes by {pattern.name!r}, for which the tokens that are seen must "
                    "be the same places of whole time steps; use 'joint', or a mask 'tube' or "
                    "'frame'"
                )
