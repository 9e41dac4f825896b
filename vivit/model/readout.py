"""Readouts: how a stage pools its tokens at its end, by a reduction or by attention of a query."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from vivit.axes import Grid, NewGrid
from vivit.model.config import ModelConfig, StageConfig
from vivit.model.layers import Dense, Mlp
from vivit.registry import Registry

Weights = Float[Array, "B T S"]


@dataclass(frozen=True)
class Readout:
    """A registered readout: `reduce`, or `module` if it has parameters.

    reduce: (grid, axes) -> the grid with these axes ("s", "t" or "ts") of length 1. Rollout counts
        a token by its gradient, in absolute value and averaged over channels.
    module: a Flax module, made as module(config, i) of stage i, that maps (grid, axes) to `Pooled`.
    norm_before: whether a layer norm of the tokens comes before it.
    class_token: whether the stage gets a class token, which is then the first token of `axes`.
    counts_sizes: whether a merged token counts as many times as the tokens that it stands for.
    """

    reduce: Callable[[Grid, str], NewGrid] | None = None
    module: Callable[[ModelConfig, int], nn.Module] | None = None
    norm_before: bool = True
    class_token: bool = False
    counts_sizes: bool = False

    def pool(self, x: Grid, axes: str, sizes: Weights | None = None) -> NewGrid:
        """Returns the pooled grid of a readout without parameters.

        sizes: how many spatial tokens each token stands for, where a reduction merged them.
        """
        assert self.reduce is not None
        if self.counts_sizes and sizes is not None:
            x = x * (sizes / sizes.mean(axis=2, keepdims=True))[..., None]
        out = self.reduce(x, axes)
        if out.ndim != x.ndim:
            raise ValueError(
                f"a readout must keep the axes that it pools, with length 1: {out.shape} came "
                f"for {x.shape}; use keepdims=True"
            )
        return out


class Pooled(NamedTuple):
    """The pooled grid of a readout with parameters, and the weight of every token in it, the mean
    over its heads."""

    out: NewGrid
    weights: Weights


READOUTS: Registry[Readout] = Registry("readout")
KEEP_GRID = Readout(lambda x, axes: x)  # of a stage that does not pool


def dims_of(axes: str) -> tuple[int, ...]:
    """Returns the array dimensions of the axes "s", "t" or "ts" of a grid [B, T, S, ...]."""
    return tuple("ts".index(axis) + 1 for axis in axes)


def _over(reduce: Callable[..., Any], x: Grid, axes: str) -> NewGrid:
    return reduce(x, axis=dims_of(axes), keepdims=True)


def take_first(x: Grid, axes: str) -> NewGrid:
    """Returns the first token of the axes: the class token, if there is one."""
    return x[:, : 1 if "t" in axes else None, : 1 if "s" in axes else None]


READOUTS.add("cls", Readout(take_first, class_token=True))
READOUTS.add("first", Readout(take_first))  # a token of the clip itself: Scenic's classifier "0"
READOUTS.add("mean", Readout(partial(_over, jnp.mean), counts_sizes=True))
READOUTS.add("max", Readout(partial(_over, jnp.max)))
READOUTS.add("sum", Readout(partial(_over, jnp.sum)))


class MeanThenNorm(nn.Module):
    """A layer norm of the mean, where other readouts take the mean of normed tokens.

    VideoMAE's (2203.12602) in its port to transformers, whose norm there has PyTorch's epsilon.
    """

    config: ModelConfig
    i: int

    @nn.compact
    def __call__(self, x: Grid, axes: str) -> Pooled:
        norm = nn.LayerNorm(1e-5, dtype=jnp.float32, name="norm")
        dims = dims_of(axes)
        count = float(np.prod([x.shape[dim] for dim in dims]))
        mean = norm(_over(jnp.mean, x.astype(jnp.float32), axes))
        return Pooled(mean, jnp.full(x.shape[:3], 1 / count))


def _attend_once(
    q: Float[Array, "h k"], k: Float[Array, "B T S h k"], v: Float[Array, "B T S h k"], axes: str
) -> tuple[Float[Array, "B T2 S2 h k"], Float[Array, "B T S"]]:
    """softmax(qKᵀ/√k)V of one query over the axes, and its weights, the mean over heads."""
    dims = dims_of(axes)
    scores = jnp.einsum("hk,BTShk->BTSh", q.astype(jnp.float32), k.astype(jnp.float32))
    weights = jax.nn.softmax(scores / np.sqrt(q.shape[-1]), axis=dims)
    out = (weights[..., None].astype(v.dtype) * v).sum(axis=dims, keepdims=True)
    return out, weights.mean(axis=-1)


class _QueryAttention(nn.Module):
    """Attention of one learned query: what the readouts with attention have in common."""

    config: ModelConfig
    i: int

    @property
    def stage(self) -> StageConfig:
        return self.config.stages[self.i]

    def _attend(
        self, x: Grid, axes: str, channels: int, scale: Callable[[Array], Array] = lambda q: q
    ) -> tuple[Array, Array, Weights]:
        def split(name, x):
            bias = name[0] in self.stage.qkv_bias
            features = (self.stage.heads, channels)
            return Dense(features, self.config.dtype, use_bias=bias, name=name)(x)

        query = self.param("query_token", nn.initializers.normal(0.02), (1, x.shape[-1]))
        q = split("query", query[:, None, None])[0, 0, 0]
        k, v = split("key", x), split("value", x)
        out, weights = _attend_once(scale(q), k, v, axes)
        return query[0], out, weights

    def _norm(self, name: str) -> nn.Module:
        return nn.LayerNorm(self.config.norm_epsilon, dtype=jnp.float32, name=name)

    def _add_mlp(self, y: NewGrid) -> NewGrid:
        config = self.config
        mlp = Mlp(self.stage.mlp_dim, config.activation, 0.0, config.dtype, name="mlp")
        return y + mlp(self._norm("norm_mlp")(y))


class Vjepa2Pool(_QueryAttention):
    """A block of cross-attention of a learned query, with residuals and without an output
    projection; V-JEPA 2 (2506.09985), the attentive probe."""

    @nn.compact
    def __call__(self, x: Grid, axes: str) -> Pooled:
        width = x.shape[-1]
        channels = width // self.stage.heads
        query, out, weights = self._attend(self._norm("norm")(x), axes, channels)
        y = query + rearrange(out, "B T S h k -> B T S (h k)")
        return Pooled(self._add_mlp(y), weights)


class VideoPrismPool(_QueryAttention):
    """Attention of a learned query with heads of mlp_dim / heads channels, each channel of the
    query with a learned scale, then a norm; VideoPrism (2402.13217) in its released code.

    The scale is softplus(s) / softplus(0), so that it starts at 1.
    """

    @nn.compact
    def __call__(self, x: Grid, axes: str) -> Pooled:
        channels = self.stage.mlp_dim // self.stage.heads
        scales = self.param("scale", nn.initializers.zeros, (channels,))
        # 1.442695041 is 1 / softplus(0) to the digits that the weights were trained with.
        scale = lambda q: q * 1.442695041 * jax.nn.softplus(scales)
        _, out, weights = self._attend(x, axes, channels, scale)
        out = Dense((x.shape[-1],), dtype=self.config.dtype, inputs=2, name="out")(out)
        return Pooled(self._norm("norm")(out), weights)


class MapHead(_QueryAttention):
    """Multi-head attention pooling, then an MLP block; Zhai et al. (2106.04560), section 3.2."""

    @nn.compact
    def __call__(self, x: Grid, axes: str) -> Pooled:
        _, out, weights = self._attend(x, axes, x.shape[-1] // self.stage.heads)
        y = Dense((x.shape[-1],), dtype=self.config.dtype, inputs=2, name="out")(out)
        return Pooled(self._add_mlp(y), weights)


READOUTS.add("mean_then_norm", Readout(module=MeanThenNorm, norm_before=False))
READOUTS.add("vjepa2_pool", Readout(module=Vjepa2Pool, norm_before=False))
READOUTS.add("videoprism_pool", Readout(module=VideoPrismPool))
READOUTS.add("map_head", Readout(module=MapHead))
