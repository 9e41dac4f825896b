"""Attention rollout: how much each token of the clip reaches the readout."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.analysis.capture import Attention, AttentionMaps, add_extra, add_identity
from vivit.attention import PATTERNS
from vivit.attention.reduction import add_sizes
from vivit.encoder import tie
from vivit.plan import plan_stages
from vivit.pools import POOLS

Scalars = Float[Array, "B T S"]


def rollout(maps: AttentionMaps, *, residual: float = 0.5) -> Float[Array, "B T S"]:
    """Each token's share in the readout of its clip, on the space-time grid; shares sum to 1.

    Abnar & Zuidema (2005.00928), section 3.1, for any list of stages: an attention passes on
    residual·x + (1 - residual)·A·x, where A is its mean over the heads, and a pooling or a
    reduction of tokens passes on what it takes. That is a linear map from the tokens to the
    readout, and its gradient is the rollout: no map of T·S x T·S is ever made. What ends in class
    tokens or registers is left out. A max readout counts each token by the channels in which it
    is the largest; a readout that is an attention itself counts each by its weight.
    """
    if not 0 <= residual < 1:
        raise ValueError(f"{residual=} is not in [0, 1)")
    stages = plan_stages(maps.model)
    t, y, x = maps.model.grid
    ones = jnp.ones((maps.logits.shape[0], t, y * x))

    def readout(values: Scalars) -> Float[Array, ""]:
        for i, stage in enumerate(stages):
            values = _through_stage(maps, i, stage, values, residual=residual)
        return values.sum()

    shares = jax.jit(jax.grad(readout))(ones)
    return shares / shares.sum(axis=(1, 2), keepdims=True)


def _through_stage(
    maps: AttentionMaps, i: int, stage: dict, values: Scalars, *, residual: float
) -> Float[Array, "B T2 S2"]:
    layout = stage["layout"]
    values = add_extra(values, layout)
    sizes = jnp.ones(values.shape)
    for layer in range(-1, stage["depth"]):
        for attention in maps.attentions:
            if (attention.stage, attention.layer) == (i, layer):
                values = _pass_on(attention, values, stage, residual=residual)
        if (i, layer) in maps.sources:
            source = add_identity(maps.sources[i, layer], layout)
            values = jnp.einsum("BTRS,BTS->BTR", source, values)
            merged = layer >= 0  # only then does a mean count tokens by their places
            sizes = add_sizes(source, sizes) if merged else jnp.ones(values.shape)
    if stage["pool"] != "cls":
        take = partial(layout.without_extra, by_step=not stage["reduce"])
        values, sizes = take(values), take(sizes)
    return _pool(values, sizes, maps.pooled[i], maps.shares[i], stage)


def _pass_on(attention: Attention, values: Scalars, stage: dict, *, residual: float) -> Scalars:
    layout = stage["layout"]
    if layout.tied and PATTERNS[attention.pattern].tied_class_token:
        prefix = layout.prefix
        clip = _mixed(attention, values[:, :, prefix:], residual=residual)
        return jnp.concatenate([values[:, :, :prefix], clip], axis=2)
    values = _mixed(attention, values, residual=residual)
    return tie(values[..., None], layout.prefix)[..., 0] if layout.tied else values


def _mixed(attention: Attention, values: Scalars, *, residual: float) -> Scalars:
    v = jnp.broadcast_to(values[..., None, None], (*values.shape, attention.k.shape[3], 1))
    return residual * values + (1 - residual) * attention.mix_tokens(v).mean(axis=(3, 4))


def _pool(
    values: Scalars, sizes: Scalars, pooled: Array | None, shares: Array | None, stage: dict
) -> Float[Array, "B T2 S2"]:
    if not stage["pool"]:
        return values
    axes = stage["pool_axes"]
    dims = tuple("ts".index(axis) + 1 for axis in axes)
    if stage["pool"] == "max":
        hits = (pooled == pooled.max(axis=dims, keepdims=True)).astype(jnp.float32)
        share = (hits / hits.sum(axis=dims, keepdims=True)).mean(axis=-1)
        return (share * values).sum(axis=dims, keepdims=True)
    if shares is not None:
        return (shares * values).sum(axis=dims, keepdims=True)
    if stage["pool"].startswith("mean"):
        values = values * (sizes / sizes.mean(axis=2, keepdims=True))
        return values.mean(axis=dims, keepdims=True)
    reduce = POOLS[stage["pool"]].reduce
    assert reduce is not None, stage["pool"]
    return reduce(values[..., None], axes)[..., 0]
