"""The encoder's Flax modules: attention with its switches, blocks, stages.

Dropout and drop path are active where `apply` is given a "dropout" rng, and nowhere else.
Names of submodules are checkpoint format.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vivit.attention import KERNELS, PATTERNS
from vivit.attention.chunks import KEPT
from vivit.attention.dropout import weight_dropout
from vivit.attention.reduction import (
    REDUCTIONS,
    add_log_sizes,
    add_sizes,
    apply_source,
    random_dropping,
    token_learner,
    token_merging,
)
from vivit.attention.rotary import ROTATIONS
from vivit.axes import Grid, KeyGrid, NewGrid
from vivit.layers import Dense, Dropout, DropPath, Layout, Mlp, Position, on_grid
from vivit.pools import POOLS, PoolFields
from vivit.registry import Registry

# The collection of activations that vivit.analysis asks for: queries and keys of every attention,
# what a stage pools, and where reduced tokens came from. Nothing is kept where nobody asks.
CAPTURED = "attention"

INITIALISERS = {
    "normal": nn.initializers.truncated_normal(0.02),
    "xavier": nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2)),
    "zeros": nn.initializers.zeros,
}


class AttentionFields(NamedTuple):
    """What all attentions of a stage share; the fields of `vivit.ViViT` with these names."""

    heads: int
    kv_heads: int
    kernel: str
    qkv_bias: str
    qk_norm: bool
    rope: str
    soft_cap: float | None
    attention_dropout: float
    norm_epsilon: float
    dtype: Any


class Attended(NamedTuple):
    """What attention adds to the tokens, and its keys averaged over heads."""

    out: Grid
    keys: Float[Array, "B T S k"]


def _latest(_, new):
    return new


def _sow(module: nn.Module, **values: Any) -> None:
    if module.is_initializing():
        return
    for name, value in values.items():
        module.sow(CAPTURED, name, value, reduce_fn=_latest, init_fn=tuple)


def make_attend(kernel: str, soft_cap: float | None, **options: Any) -> Callable[..., Any]:
    """A kernel with the options that don't come from a pattern."""
    if soft_cap is not None:
        options["soft_cap"] = soft_cap
    return partial(KERNELS[kernel], **options) if options else KERNELS[kernel]


class SelfAttention(nn.Module):
    """Multi-head self-attention of a grid, over the sets of `pattern`, by a kernel.

    sizes: how many places each token stands for; None for one each.
    """

    pattern: str
    fields: AttentionFields
    layout: Layout

    @nn.compact
    def __call__(self, x: Grid, layer: Any, sizes: Float[Array, "B T S"] | None = None) -> Attended:
        fields, pattern = self.fields, PATTERNS[self.pattern]
        width = x.shape[-1]
        channels = width // fields.heads
        dense = partial(Dense, dtype=fields.dtype)

        def split(name, heads):
            bias = name[0] in fields.qkv_bias
            return dense((heads, channels), use_bias=bias, name=name)(x)  # [B, T, S, h, k]

        q = split("query", fields.heads)
        k, v = (split(name, fields.kv_heads) for name in ("key", "value"))
        if fields.qk_norm:
            q, k = self._norm("query_norm", q), self._norm("key_norm", k)
        turn = ROTATIONS[fields.rope]
        q, k = (turn(heads, self.layout.positions()) for heads in (q, k))
        keys = k.mean(axis=3)
        if sizes is not None:
            q, k = add_log_sizes(q, k, sizes)
        told = {"space": self.layout.space, "layer": layer}
        for name, (shape, init) in pattern.parameters(
            fields.heads, channels, **pattern.options
        ).items():
            told[name] = self.param(name, INITIALISERS[init], shape)
        captured = {"queries": q, "keys": k, **({"values": v} if "values" in pattern.needs else {})}
        _sow(self, **captured)
        # Parameters don't depend on what attention gives, and a ring needs its mesh.
        out = q[..., :channels] if self.is_initializing() else self._mix(pattern, q, k, v, told)
        out = dense((width,), inputs=2, name="out")(out)
        for _ in range(pattern.projections - 1):
            # From zero, as TimeSformer's temporal_fc: the block starts as its other branches.
            out = dense((width,), kernel_init=nn.initializers.zeros, name="projection")(out)
        return Attended(out, keys)

    def _mix(self, pattern, q, k, v, told):
        attend = make_attend(self.fields.kernel, self.fields.soft_cap)
        rate = self.fields.attention_dropout
        if not rate or not self.has_rng("dropout"):
            return pattern(q, k, v, attend, **told)
        key, calls = self.make_rng("dropout"), itertools.count()

        def attend_dropping(*tokens, **options):
            """A pattern's several calls drop independently of each other."""
            drawn = weight_dropout(rate, jax.random.fold_in(key, next(calls)))
            return attend(*tokens, **options, dropout=drawn)

        return pattern(q, k, v, attend_dropping, **told)

    def _norm(self, name: str, x: KeyGrid) -> KeyGrid:
        """Layer norm over a head's channels, without bias; ViT-22B (2302.05442), section 2."""
        norm = nn.LayerNorm(self.fields.norm_epsilon, use_bias=False, dtype=jnp.float32, name=name)
        return norm(x).astype(x.dtype)


def tie(y: Grid, prefix: int) -> Grid:
    """One extra token for all steps: the mean of what it got in each; TimeSformer, section 3."""
    shared = y[:, :, :prefix].mean(axis=1, keepdims=True)
    shared = jnp.broadcast_to(shared, (*y.shape[:2], prefix, y.shape[3]))
    return jnp.concatenate([shared, y[:, :, prefix:]], axis=2)


class Carry(NamedTuple):
    """What goes from block to block: tokens, and how many places each stands for (or None)."""

    x: Grid
    sizes: Float[Array, "B T S"] | None = None


class Block(nn.Module):
    """A pre-LN transformer block: one residual branch a mixer, then one for the MLP.

    Scans need a carry and an output, so it returns (carry, None). The second argument is the
    layer's depth in the encoder, from 0 to 1, which scales the drop path, and its number in the
    stage. merge: tokens merged a step between attention and MLP; 0 for none.
    """

    mixers: tuple[str, ...]
    fields: AttentionFields
    layout: Layout
    mlp_dim: int
    activation: str
    drop_path: float
    dropout: float
    merge: int

    @nn.compact
    def __call__(self, carry: Carry, at: tuple[Any, Any]) -> tuple[Carry, None]:
        x, sizes = carry
        fraction, layer = at

        def norm(x, name):
            epsilon = self.fields.norm_epsilon
            return nn.LayerNorm(epsilon, dtype=jnp.float32, name=f"norm_{name}")(x)

        def add(x, y, name):
            y = Dropout(self.dropout)(y)
            return x + DropPath(self.drop_path, name=f"drop_path_{name}")(y, fraction)

        for mixer in self.mixers:
            name = PATTERNS[mixer].name
            layout = self.layout.seen_by(PATTERNS[mixer])
            attention = SelfAttention(mixer, self.fields, layout, name=f"attention_{name}")
            attended = self._attend(attention, mixer, norm(x, name), layer, sizes)
            x = add(x, attended.out, name)
        if self.merge:
            x, sizes = self._merge(x, attended.keys, sizes)
        mlp = Mlp(self.mlp_dim, self.activation, self.dropout, self.fields.dtype, name="mlp")
        return Carry(add(x, mlp(norm(x, "mlp")), "mlp"), sizes), None

    def _attend(self, attention, mixer, x, layer, sizes) -> Attended:
        prefix = self.layout.prefix
        if not self.layout.tied:
            return attention(x, layer, sizes)
        if PATTERNS[mixer].tied_class_token:
            out, keys = attention(x[:, :, prefix:], layer)
            return Attended(jnp.pad(out, ((0, 0), (0, 0), (prefix, 0), (0, 0))), keys)
        out, keys = attention(x, layer)
        return Attended(tie(out, prefix), keys)

    def _merge(self, x, keys, sizes):
        prefix = self.layout.prefix
        source = token_merging(keys[:, :, prefix:], sizes[:, :, prefix:], remove=self.merge)
        _sow(self, source=source)
        merged = apply_source(source, x[:, :, prefix:])
        x = jnp.concatenate([x[:, :, :prefix], merged], axis=2)
        merged = add_sizes(source, sizes[:, :, prefix:])
        return x, jnp.concatenate([sizes[:, :, :prefix], merged], axis=2)


class Reduce(nn.Module):
    """Fewer tokens a step, from a stage's start on; extra tokens stay."""

    reduction: str
    prefix: int
    activation: str
    norm_epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Grid) -> NewGrid:
        extra, x = x[:, :, : self.prefix], x[:, :, self.prefix :]
        found = REDUCTIONS[self.reduction]
        tokens = found.options["tokens"]
        if found.source is token_learner:
            norm = nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32, name="norm")
            mlp = Mlp(64, self.activation, 0.0, self.dtype, tokens, name="scores")
            source = token_learner(mlp(norm(x)))
        else:
            # Without an rng every clip keeps the same places, so that evaluation is a function.
            training = self.has_rng("dropout")
            key = self.make_rng("dropout") if training else jax.random.key(0)
            shape = x.shape[:3] if training else (1, *x.shape[1:3])
            source = random_dropping(key, shape, tokens=tokens)
            source = jnp.broadcast_to(source, (x.shape[0], *source.shape[1:]))
        _sow(self, source=source)
        return jnp.concatenate([extra, apply_source(source, x)], axis=2)


REMAT: Registry[Callable[..., type[nn.Module]]] = Registry("remat")
REMAT.add("none", lambda module, **_: module)
REMAT.add("full", nn.remat)
# Keeps what chunked attention's backward pass needs of its forward pass, which then isn't repeated;
# with another kernel it is as "full".
REMAT.add(
    "attention",
    partial(nn.remat, policy=jax.checkpoint_policies.save_only_these_names(KEPT)),
)
REMAT.add(
    "dots",
    partial(nn.remat, policy=jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims),
)


class Stage(nn.Module):
    """Some equal blocks over one grid, with what they start with and end with.

    lengths: of the axes whose position embedding starts here, `position_axes`; () for none. They
        are the trailing or the leading axes of the grid, and broadcast over the others.
    reduce: "" or a name of REDUCTIONS.
    norm: whether a layer norm follows the blocks.
    pool: "" or a name of POOLS, over `pool_axes` ("s", "t" or "ts").
    """

    depth: int
    mixers: tuple[str, ...]
    norm: bool
    pool: str
    pool_axes: str
    reduce: str
    layout: Layout
    lengths: tuple[int, ...]
    position_axes: str
    position: str
    first_layer: int
    total_layers: int
    fields: AttentionFields
    mlp_dim: int
    activation: str
    drop_path: float
    dropout: float
    scan: bool
    remat: str

    @nn.compact
    def __call__(self, x: Grid) -> NewGrid:
        x = self._add_positions_and_extra(x)
        merge = 0
        if self.reduce and REDUCTIONS[self.reduce].each_layer:
            merge = REDUCTIONS[self.reduce].options["remove"]
        elif self.reduce:
            epsilon, dtype = self.fields.norm_epsilon, self.fields.dtype
            reduce = (self.reduce, self.layout.prefix, self.activation, epsilon, dtype)
            x = Reduce(*reduce, name="reduce")(x)
        x, sizes = self._blocks(Carry(x, jnp.ones(x.shape[:3]) if merge else None), merge)
        if self.norm:
            x = nn.LayerNorm(self.fields.norm_epsilon, dtype=jnp.float32, name="norm")(x)
        if self.pool != "cls":
            x = self.layout.without_extra(x, by_step=not self.reduce)
        if self.pool:
            _sow(self, pooled=x)
            if self.pool == "mean" and sizes is not None:
                # The mean over places, so each token counts by how many it stands for.
                weights = sizes[:, :, self.layout.prefix :, None]
                x = x * (weights / weights.mean(axis=2, keepdims=True))
            x = self._pool(x)
        return x

    def _pool(self, x: Grid) -> NewGrid:
        pool = POOLS[self.pool]
        if pool.reduce is not None:
            return pool.reduce(x, self.pool_axes)
        assert pool.module is not None, self.pool
        own = self.fields
        fields = PoolFields(
            own.heads, own.qkv_bias, self.mlp_dim, self.activation, own.norm_epsilon, own.dtype
        )
        pooled = pool.module(fields, name="pool")(x, self.pool_axes)
        if pooled.shares is not None:
            _sow(self, shares=pooled.shares)
        return pooled.out

    def _add_positions_and_extra(self, x: Grid) -> NewGrid:
        layout = self.layout
        first = None
        if self.lengths:
            rows = Position(self.position, self.lengths, layout.class_token, name="position")(
                x.shape[-1]
            )
            first, rows = (rows[:1], rows[1:]) if layout.class_token else (None, rows)
            x = x + on_grid(rows, self.position_axes, x).astype(x.dtype)
        if layout.extra:
            x = self._add_extra(x, first)
        return Dropout(self.dropout)(x) if self.lengths else x

    def _add_extra(self, x: Grid, first: Float[Array, "1 D"] | None) -> NewGrid:
        """The grid with class token and registers (2309.16588) before it; `first` is the class
        token's position."""
        layout, d = self.layout, x.shape[-1]
        extra = []
        if layout.class_token:
            token = self.param("class_token", nn.initializers.zeros, (1, 1, 1, d))
            extra.append(token[0, 0] if first is None else token[0, 0] + first)
        if layout.registers:
            init = nn.initializers.normal(0.02)
            extra.append(self.param("registers", init, (layout.registers, d)))
        tokens = jnp.concatenate(extra).astype(x.dtype)
        if layout.extra == "ts":
            x = x.reshape(x.shape[0], 1, -1, d)
        b, t, s, _ = x.shape
        if layout.extra == "t":
            tokens = jnp.broadcast_to(tokens[None, :, None], (b, layout.prefix, s, d))
            return jnp.concatenate([tokens, x], axis=1)
        tokens = jnp.broadcast_to(tokens, (b, t, layout.prefix, d))
        return jnp.concatenate([tokens, x], axis=2)

    def _blocks(self, carry: Carry, merge: int) -> Carry:
        names = ("mixers", "fields", "layout", "mlp_dim", "activation", "drop_path", "dropout")
        arguments = {name: getattr(self, name) for name in names} | {"merge": merge}
        layers = np.arange(self.depth)
        fractions = (self.first_layer + layers) / max(self.total_layers - 1, 1)
        if self.scan and self.depth:
            block = REMAT[self.remat](Block, prevent_cse=False)
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, CAPTURED: 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
            at = (jnp.asarray(fractions, jnp.float32), jnp.asarray(layers, jnp.int32))
            return scanned(**arguments, name="layers")(carry, at)[0]
        # A layer's number is static, so that patterns may ask whether it is even.
        block = REMAT[self.remat](Block, static_argnums=(2,))
        for layer, fraction in zip(layers.tolist(), fractions.tolist(), strict=True):
            carry, _ = block(**arguments, name=f"layer_{layer}")(carry, (fraction, layer))
        return carry
