"""Self-attention of a token grid, with its switches (Flax)."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.attention import Kernel, Pattern
from vivit.attention.dropout import weight_dropout
from vivit.attention.reductions import add_log_sizes
from vivit.axes import Grid, KeyGrid
from vivit.model.config import ModelConfig
from vivit.model.layers import Dense
from vivit.model.layout import Layout
from vivit.model.places import Places
from vivit.ramps import is_off

# The collection of activations that vivit.analysis reads: queries and keys of every attention, the
# norms of the tokens that a block gets, what a stage pools, and where reduced tokens came from.
# Without it nothing is kept.
CAPTURED = "attention"
# What only some analyses read: the tokens that every block gets, and the values of every attention.
TOKENS = "tokens"
# Arrays that `apply` adds to activations, for gradients by them: "gradient" to what an attention
# mixed, before the heads meet, and "tokens_gradient" to the tokens that a block gets.
PERTURBED = "perturbed"

INITIALISERS = {
    "normal": nn.initializers.truncated_normal(0.02),
    "xavier": nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2)),
    "zeros": nn.initializers.zeros,
}


class Attended(NamedTuple):
    """What attention adds to the tokens, and its keys averaged over heads."""

    out: Grid
    keys: Float[Array, "B T S k"]


def _latest(_: Any, new: Any) -> Any:
    return new


def sow(module: nn.Module, collection: str = CAPTURED, /, **values: Any) -> None:
    """Keeps activations, if `apply` collects this collection."""
    if not module.is_initializing():
        for name, value in values.items():
            module.sow(collection, name, value, reduce_fn=_latest, init_fn=tuple)


def perturb(module: nn.Module, name: str, x: Array) -> Array:
    """Returns an activation plus what `apply` gets for it in PERTURBED, if anything."""
    return x if module.is_initializing() else module.perturb(name, x, PERTURBED)


def make_attend(kernel: Kernel, soft_cap: float) -> Callable[..., Any]:
    """Returns a kernel with the options that do not come from a pattern."""
    return partial(kernel, soft_cap=soft_cap) if soft_cap else kernel


class SelfAttention(nn.Module):
    """Multi-head self-attention of a grid in stage i, over the sets of `pattern`, by a kernel.

    layout: of the grid that this attention gets. projection: whether a second dense layer, which
    starts at zero, follows the output's, as TimeSformer's temporal_fc.
    """

    config: ModelConfig
    i: int
    pattern: Pattern
    layout: Layout
    projection: bool = False

    @nn.compact
    def __call__(
        self,
        x: Grid,
        layer: Any,
        sizes: Float[Array, "B T S"] | None = None,
        places: Places | None = None,
    ) -> Attended:
        """sizes: how many spatial tokens each token stands for; None for one each. places: of the
        tokens on the clip's grid, if they are not all of them."""
        config, pattern, stage = self.config, self.pattern, self.config.stages[self.i]
        channels = config.width // stage.heads
        dense = partial(Dense, dtype=config.dtype)

        def split(name: str, heads: int) -> Float[Array, "B T S h k"]:
            bias = name[0] in stage.qkv_bias
            return dense((heads, channels), use_bias=bias, name=name)(x)

        q = split("query", stage.heads)
        k, v = (split(name, stage.kv_heads) for name in ("key", "value"))
        if config.qk_norm:
            q, k = self._norm("query_norm", q), self._norm("key_norm", k)
        q, k = (stage.rope.rotate(heads, self.layout.coordinates(places)) for heads in (q, k))
        keys = k.mean(axis=3)
        if sizes is not None:
            q, k = add_log_sizes(q, k, sizes)
        context = {"space": self.layout.space, "layer": layer}
        parameters = pattern.parameters(stage.heads, channels, **pattern.options)
        for name, (shape, init) in parameters.items():
            context[name] = self.param(name, INITIALISERS[init], shape)
        sow(self, queries=q, keys=k, **({"values": v} if pattern.follows_values else {}))
        sow(self, TOKENS, values=v)
        # Parameters do not depend on what attention gives, and a ring needs its mesh.
        out = q[..., :channels] if self.is_initializing() else self._mix(q, k, v, context)
        out = perturb(self, "gradient", out)
        out = dense((config.width,), inputs=2, name="out")(out)
        if self.projection:
            zeros = nn.initializers.zeros  # the block starts as its other branches
            out = dense((config.width,), kernel_init=zeros, name="projection")(out)
        return Attended(out, keys)

    def _mix(self, q, k, v, context: dict[str, Any]) -> Float[Array, "B T S h c"]:
        attend = make_attend(self.config.kernel, self.config.soft_cap)
        rate = self.config.attention_dropout
        if is_off(rate) or not self.has_rng("dropout"):
            return self.pattern(q, k, v, attend, **context)
        key, calls = self.make_rng("dropout"), itertools.count()

        def attend_dropping(*tokens, **options):
            """A pattern's several calls drop independently of each other."""
            drawn = weight_dropout(rate, jax.random.fold_in(key, next(calls)))
            return attend(*tokens, **options, dropout=drawn)

        return self.pattern(q, k, v, attend_dropping, **context)

    def _norm(self, name: str, x: KeyGrid) -> KeyGrid:
        """Layer norm over a head's channels, without bias; ViT-22B (2302.05442), section 2."""
        norm = nn.LayerNorm(self.config.norm_epsilon, use_bias=False, dtype=jnp.float32, name=name)
        return norm(x).astype(x.dtype)
