"""Attention rollout: how much each token of the clip reaches the readout."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.analysis.attention import Attention
from vivit.analysis.capture import AttentionMaps
from vivit.attention.reductions import NO_REDUCTION
from vivit.model.block import tie
from vivit.model.config import StageConfig
from vivit.model.places import put
from vivit.model.readout import dims_of

Scalars = Float[Array, "B T S"]
Mix = Callable[[Attention, Scalars], Scalars]


def rollout(maps: AttentionMaps, *, residual: float = 0.5) -> Float[Array, "B T S"]:
    """Returns each token's part in the readout of its clip, on the space-time grid; they sum to 1,
    and tokens that were not seen have none.

    Abnar & Zuidema (2005.00928), section 3.1, for any list of stages: an attention passes on
    residual·x + (1 - residual)·A·x, where A is its mean over the heads, and a readout or a
    reduction of tokens passes on what it takes. That is a linear map from the tokens to the
    readout, and its gradient is the rollout: no map of T·S x T·S is ever made. What ends in class
    tokens or registers is left out. A readout counts each token as `Readout` says: one with
    parameters by its weights, any other by its gradient.
    """
    if not 0 <= residual < 1:
        raise ValueError(f"{residual=} is not in [0, 1)")
    if any(a.value_norms is not None for a in maps.attentions):
        raise ValueError("rollout takes weights as they are; capture without value_norms")
    return _rollout(maps, residual)


@jax.jit  # once for each model and shape, whatever the clips
def _rollout(maps: AttentionMaps, residual: Float[Array, ""]) -> Float[Array, "B T S"]:
    def mix(attention: Attention, values: Scalars) -> Scalars:
        return residual * values + (1 - residual) * mean_of_heads(attention, values)

    parts = parts_of_readout(maps, mix)
    return parts / parts.sum(axis=(1, 2), keepdims=True)


def mean_of_heads(attention: Attention, values: Scalars) -> Scalars:
    """Returns the weights' mean over heads times values of the tokens that attend."""
    v = jnp.broadcast_to(values[..., None, None], (*values.shape, attention.k.shape[3], 1))
    return attention.mix_tokens(v).mean(axis=(3, 4))


def parts_of_readout(maps: AttentionMaps, mix: Mix) -> Float[Array, "B T S"]:
    """Returns each token's part in the readout of its clip, where an attention passes on
    mix(attention, values), which is linear in the values of the tokens that attend."""
    config = maps.model.config
    t, y, x = config.grid
    places = maps.places
    seen = (t, y * x) if places is None else places.shape[1:]
    ones = jnp.ones((maps.logits.shape[0], *seen))

    def readout(values: Scalars) -> Float[Array, ""]:
        for i, stage in enumerate(config.stages):
            values = _through_stage(maps, i, stage, values, mix)
        return values.sum()

    parts = jax.grad(readout)(ones)
    return parts if places is None else put(parts, places, (t, y * x))


def _through_stage(
    maps: AttentionMaps, i: int, stage: StageConfig, values: Scalars, mix: Mix
) -> Float[Array, "B T2 S2"]:
    layout = stage.layout.at(maps.places)
    values = layout.insert(values)
    for layer in range(-1, stage.depth):
        for attention in maps.attentions:
            if (attention.stage, attention.layer) == (i, layer):
                values = _pass_on(attention, values, stage, mix)
        if (source := maps.sources.get((i, layer))) is not None:
            values = jnp.einsum("BTRS,BTS->BTR", layout.matrix(source), values)
    if not stage.readout.class_token:
        values = layout.remove(values, by_step=stage.reduction == NO_REDUCTION)
    if not stage.pool_axes:
        return values
    weights = maps.weights_of_readout[i]
    if weights is None:
        weights = _gradient_weights(stage, maps.pooled[i], maps.sizes[i])
    return (weights * values).sum(axis=dims_of(stage.pool_axes), keepdims=True)


def _gradient_weights(stage: StageConfig, pooled: Any, sizes: Any) -> Scalars:
    """How a readout without parameters counts each token of the grid [B, T, S, D] that it gets."""
    pool = lambda x: stage.readout.pool(x, stage.pool_axes, sizes)
    out, pull_back = jax.vjp(pool, jnp.asarray(pooled, jnp.float32))
    return jnp.abs(pull_back(jnp.ones_like(out))[0]).mean(axis=-1)


def _pass_on(attention: Attention, values: Scalars, stage: StageConfig, mix: Mix) -> Scalars:
    extra = stage.layout.extra
    if extra and stage.block.leaves_out(attention.pattern):
        clip = mix(attention, values[:, :, extra:])
        return jnp.concatenate([values[:, :, :extra], clip], axis=2)
    values = mix(attention, values)
    return tie(values[..., None], extra)[..., 0] if extra and stage.block.tied else values
