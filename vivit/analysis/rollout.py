"""Attention rollout: how much each token of the clip reaches the readout."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.analysis.capture import Attention, AttentionMaps, add_class_token
from vivit.layers import POOLS
from vivit.model import plan_stages

Scalars = Float[Array, "B T S"]


def rollout(maps: AttentionMaps, *, residual: float = 0.5) -> Float[Array, "B T S"]:
    """Each token's share in the readout of its clip, on the space-time grid; shares sum to 1.

    Abnar & Zuidema (2005.00928), section 3.1, for any list of stages: an attention passes on
    residual·x + (1 - residual)·A·x, where A is its mean over the heads, and a pooling passes on
    what it takes. That is a linear map from the tokens to the readout, and its gradient is the
    rollout: no map of T·S x T·S is ever made. What ends in class tokens is left out. A max
    readout counts each token by the channels in which it is the largest.
    """
    if not 0 <= residual < 1:
        raise ValueError(f"{residual=} is not in [0, 1)")
    stages = plan_stages(maps.model)
    t, y, x = maps.model.grid
    ones = jnp.ones((maps.logits.shape[0], t, y * x))

    def readout(values: Scalars) -> Float[Array, ""]:
        for i, stage in enumerate(stages):
            values = add_class_token(values, stage["class_token"])
            for attention in maps.attentions:
                if attention.stage == i:
                    values = _pass_on(attention, values, residual=residual)
            values = _pool(values, maps.pooled[i], stage)
        return values.sum()

    shares = jax.jit(jax.grad(readout))(ones)
    return shares / shares.sum(axis=(1, 2), keepdims=True)


def _pass_on(attention: Attention, values: Scalars, *, residual: float) -> Scalars:
    heads = attention.q.shape[3]
    v = jnp.broadcast_to(values[..., None, None], (*values.shape, heads, 1))
    return residual * values + (1 - residual) * attention.mix(v).mean(axis=(3, 4))


def _pool(values: Scalars, pooled: Array | None, stage: dict) -> Float[Array, "B T2 S2"]:
    if not stage["pool"]:
        return values
    axes = stage["pool_axes"]
    if stage["pool"] == "max":
        dims = tuple("ts".index(axis) + 1 for axis in axes)
        hits = (pooled == pooled.max(axis=dims, keepdims=True)).astype(jnp.float32)
        share = (hits / hits.sum(axis=dims, keepdims=True)).mean(axis=-1)
        return (share * values).sum(axis=dims, keepdims=True)
    pool = partial(POOLS[stage["pool"]], axes=axes)
    return pool(values[..., None])[..., 0]
