"""Readouts: what a stage makes of its tokens at its end. A reduction, or attention by one query."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from vivit.axes import Grid, NewGrid
from vivit.layers import Dense, Mlp
from vivit.registry import Registry


class PoolFields(NamedTuple):
    """What a pool with parameters is told of its model; the fields of `vivit.ViViT`."""

    heads: int
    qkv_bias: str
    mlp_dim: int
    activation: str
    norm_epsilon: float
    dtype: jnp.dtype


class Pool(NamedTuple):
    """A registered readout.

    reduce: (grid, axes) -> the grid with these axes ("s", "t" or "ts") of length 1, or None for a
        readout with parameters. module: the Flax module of such a one, made from PoolFields.
    normed: whether a layer norm of the tokens stands before it.
    """

    reduce: Callable[[Grid, str], NewGrid] | None = None
    module: type[nn.Module] | None = None
    normed: bool = True


POOLS: Registry[Pool] = Registry("readout")


def _over(reduce: Callable, x: Grid, axes: str) -> NewGrid:
    return reduce(x, axis=tuple("ts".index(axis) + 1 for axis in axes), keepdims=True)


def take_first(x: Grid, axes: str) -> NewGrid:
    """The first token of its axes: the class token, where there is one."""
    return x[:, : 1 if "t" in axes else None, : 1 if "s" in axes else None]


POOLS.add("cls", Pool(take_first))
POOLS.add("first", Pool(take_first))  # a token of the clip itself: Scenic's classifier "0"
POOLS.add("mean", Pool(partial(_over, jnp.mean)))
POOLS.add("max", Pool(partial(_over, jnp.max)))
POOLS.add("sum", Pool(partial(_over, jnp.sum)))


class Pooled(NamedTuple):
    """What a pool with parameters gives: the pooled grid and the weight of every token in it,
    the mean over its heads, or None."""

    out: NewGrid
    shares: Float[Array, "B T S"] | None = None


class MeanThenNorm(nn.Module):
    """A layer norm of the mean, where other readouts take the mean of normed tokens.

    VideoMAE's (2203.12602) in its port to transformers, whose norm there has PyTorch's epsilon.
    """

    fields: PoolFields

    @nn.compact
    def __call__(self, x: Grid, axes: str) -> Pooled:
        norm = nn.LayerNorm(1e-5, dtype=jnp.float32, name="norm")
        return Pooled(norm(_over(jnp.mean, x.astype(jnp.float32), axes)))


def _attend_once(
    q: Float[Array, "h k"], k: Float[Array, "B T S h k"], v: Float[Array, "B T S h k"], axes: str
) -> tuple[Float[Array, "B T2 S2 h k"], Float[Array, "B T S"]]:
    """softmax(qKᵀ/√k)V of one query over the axes, and its weights, the mean over heads."""
    dims = tuple("ts".index(axis) + 1 for axis in axes)
    scores = jnp.einsum("hk,BTShk->BTSh", q.astype(jnp.float32), k.astype(jnp.float32))
    weights = jax.nn.softmax(scores / np.sqrt(q.shape[-1]), axis=dims)
    out = (weights[..., None].astype(v.dtype) * v).sum(axis=dims, keepdims=True)
    return out, weights.mean(axis=-1)


class _AttentionOfAQuery(nn.Module):
    """What the attention pools share: projections to heads of `channels`, and a learned query."""

    fields: PoolFields

    def _attend(self, x: Grid, axes: str, channels: int, scale=lambda q: q):
        def split(name, x):
            bias = name[0] in self.fields.qkv_bias
            features = (self.fields.heads, channels)
            return Dense(features, self.fields.dtype, use_bias=bias, name=name)(x)

        query = self.param("query_token", nn.initializers.normal(0.02), (1, x.shape[-1]))
        q = split("query", query[:, None, None])[0, 0, 0]
        k, v = split("key", x), split("value", x)
        out, shares = _attend_once(scale(q), k, v, axes)
        return query[0], out, shares

    def _norm(self, name: str) -> nn.Module:
        return nn.LayerNorm(self.fields.norm_epsilon, dtype=jnp.float32, name=name)

    def _mlp(self, hidden: int) -> nn.Module:
        return Mlp(hidden, self.fields.activation, 0.0, self.fields.dtype, name="mlp")


class AttentivePool(_AttentionOfAQuery):
    """A block of cross-attention of a learned query, with residuals and without an output
    projection; V-JEPA 2 (2506.09985), the attentive probe."""

    @nn.compact
    def __call__(self, x: Grid, axes: str) -> Pooled:
        width = x.shape[-1]
        channels = width // self.fields.heads
        query, out, shares = self._attend(self._norm("norm")(x), axes, channels)
        y = query + rearrange(out, "B T S h k -> B T S (h k)")
        return Pooled(y + self._mlp(self.fields.mlp_dim)(self._norm("norm_mlp")(y)), shares)


class AttentionPool(_AttentionOfAQuery):
    """Attention of a learned query with heads of mlp_dim / heads channels, each channel of the
    query with a learned scale, then a norm; VideoPrism (2402.13217) in its released code.

    The scale is softplus(s) / softplus(0), so that it starts at 1.
    """

    @nn.compact
    def __call__(self, x: Grid, axes: str) -> Pooled:
        channels = self.fields.mlp_dim // self.fields.heads
        scales = self.param("scale", nn.initializers.zeros, (channels,))
        # 1.442695041 is 1 / softplus(0) to the digits that the weights were trained with.
        scale = lambda q: q * 1.442695041 * jax.nn.softplus(scales)
        _, out, shares = self._attend(x, axes, channels, scale)
        out = Dense((x.shape[-1],), dtype=self.fields.dtype, inputs=2, name="out")(out)
        return Pooled(self._norm("norm")(out), shares)


class MapPool(_AttentionOfAQuery):
    """Multi-head attention pooling, then an MLP block; Zhai et al. (2106.04560), section 3.2."""

    @nn.compact
    def __call__(self, x: Grid, axes: str) -> Pooled:
        _, out, shares = self._attend(x, axes, x.shape[-1] // self.fields.heads)
        y = Dense((x.shape[-1],), dtype=self.fields.dtype, inputs=2, name="out")(out)
        return Pooled(y + self._mlp(self.fields.mlp_dim)(self._norm("norm_mlp")(y)), shares)


POOLS.add("mean_then_norm", Pool(module=MeanThenNorm, normed=False))
POOLS.add("attentive", Pool(module=AttentivePool, normed=False))
POOLS.add("attention", Pool(module=AttentionPool))
POOLS.add("map", Pool(module=MapPool))
