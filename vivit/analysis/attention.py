"""One attention of a captured forward pass, and sums of its weights.

Only queries and keys are kept. A pattern with given queries and keys is a linear map of its values,
so weights are read off it by passing values that mark the keys; sums of weights come at the cost of
those sums, without the whole map. Everything is put back on the clip's own grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from vivit.attention import KERNELS, Kernel, Pattern
from vivit.axes import HeadGrid, KeyGrid, MixedGrid, ValueGrid
from vivit.model.attention import make_attend
from vivit.model.layout import Layout
from vivit.model.places import Places, put, take

CHUNK = 64  # marks that are passed at a time: as many channels as a head's values mostly have


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "q",
        "k",
        "context",
        "source",
        "places",
        "token_norms",
        "values",
        "gradient",
        "value_norms",
    ],
    meta_fields=["stage", "layer", "pattern", "layout", "grid", "kernel", "soft_cap"],
)
@dataclass(frozen=True, repr=False)
class Attention:
    """One attention of one block, on its stage's grid. A JAX pytree of its arrays.

    pattern: the registered pattern, with its options. layout: of the grid that the attention gets,
    without the extra tokens that the block leaves out. grid: the clip's, T and S. context: arrays
    that the pattern gets by keyword. source: [B, T, S, P], which of the grid's P spatial tokens the
    S tokens come from, if a reduction has moved them; else None. places: of the tokens on the
    clip's grid, if they are not all of them; else None. token_norms: of the tokens that attend, as
    the block gets them.

    What only some methods need, else None, on the grid of the tokens that attend: values: of the
    forward pass. gradient: of a score, by what the attention mixed. value_norms: [B, T, S, h], by
    which weights are multiplied.
    """

    q: HeadGrid
    k: KeyGrid
    stage: int
    layer: int
    pattern: Pattern
    layout: Layout
    grid: tuple[int, int]
    kernel: Kernel
    soft_cap: float = 0.0
    context: Mapping[str, Any] = field(default_factory=dict)
    source: Float[Array, "B T S P"] | None = None
    places: Places | None = None
    token_norms: Float[Array, "B T S"] | None = None
    values: ValueGrid | None = None
    gradient: MixedGrid | None = None
    value_norms: Float[Array, "B T S h"] | None = None

    def __repr__(self) -> str:
        return f"<{self.name}: queries {self.q.shape}>"

    @property
    def name(self) -> str:
        return f"stage {self.stage}, layer {self.layer}, {self.pattern.label}"

    @property
    def of_layers(self) -> str:
        """What the attentions of all layers of a stage by one pattern are called together."""
        return f"stage {self.stage}, {self.pattern.label}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Clips, time steps and spatial tokens of the stage's grid, and heads of the values."""
        b, t, s, _, _ = self.q.shape
        spatial = s if self.source is None else self.source.shape[-1]
        return b, t, spatial, self.k.shape[3]

    def mix(self, v: ValueGrid) -> MixedGrid:
        """Returns attention weights times values [B, T, S, g, c], for any number of channels c.

        Both are on the stage's grid, also where tokens are reduced: a token's value is then the
        mean of its spatial tokens by `source`, a spatial token gets the mean of its tokens' results
        by their part in it, and a dropped one gets 0.
        """
        if self.source is None:
            return self.mix_tokens(v)
        return self.spread(self.mix_tokens(jnp.einsum("BTRS,BTSgc->BTRgc", self.source, v)))

    def spread(self, x: Float[Array, "B T R ..."]) -> Float[Array, "B T S ..."]:
        """Returns an array of the tokens that attend as one of the stage's grid, where tokens are
        reduced: a spatial token has the mean of its tokens, by their part in it."""
        if self.source is None:
            return x
        total = self.source.sum(axis=2, keepdims=True)
        parts = self.source / jnp.where(total == 0, 1, total)
        return jnp.einsum("BTRS,BTR...->BTS...", parts, x)

    def mix_tokens(self, v: ValueGrid) -> MixedGrid:
        """Returns attention weights times values on the grid of the tokens that attend."""
        k = self.k
        if self.value_norms is not None:
            k, v = (jnp.repeat(x, self.q.shape[3] // x.shape[3], axis=3) for x in (k, v))
            v = v * self.value_norms[..., None]
        # Maps want any channels, any lengths and float32, which not every kernel offers, and no
        # more memory than their own.
        kernel = KERNELS["chunked"] if self.kernel.softmax else self.kernel
        attend = make_attend(kernel, self.soft_cap)
        context = {"space": self.layout.space, "layer": self.layer, **self.context}
        return self.pattern(self.q, k, v, attend, **context)

    @property
    def clip_grid(self) -> tuple[int, int]:
        """Time steps and spatial tokens of its stage, whichever of them were seen."""
        if self.places is not None:
            return self.grid
        tokens = jax.ShapeDtypeStruct(self.shape[:3], jnp.float32)
        _, t, s = jax.eval_shape(self.layout.remove, tokens).shape
        return t, s

    @property
    def of_any_layer(self) -> "Attention":
        """The same attention with the numbers of a first layer, unless its pattern goes by them, so
        that one compiled function is that of all layers that are alike."""
        layer = self.layer if "layer" in self.pattern.context_args else 0
        return replace(self, stage=0, layer=layer)

    def on_stage(
        self, x: Shaped[Array, "#B T S ..."], extra: Shaped[Array, "extra ..."] | None = None
    ) -> Shaped[Array, "#B T2 S2 ..."]:
        """Returns an array of the clip's grid on the attention's: of the tokens that were seen,
        after the values of the extra tokens; None for zeros."""
        return self.layout.insert(x if self.places is None else take(x, self.places), extra)

    def on_clip(self, x: Float[Array, "B T2 S2 ..."]) -> Float[Array, "B T S ..."]:
        """Returns an array of the attention's grid on the clip's, 0 where no token was seen."""
        x = self.layout.remove(x)
        return x if self.places is None else put(x, self.places, self.grid)

    def seen(self) -> Float[Array, "B T S"]:
        """Returns 1 for every token of the clip's grid that was seen and not dropped, else 0."""
        ones = jnp.ones(self.shape[:3])
        return self.on_clip(ones if self.source is None else ones * (self.source.sum(axis=2) > 0))

    def fold(
        self,
        step: Callable[[Any, Array, Array], tuple[Any, Any]],
        start: Any,
        groups: Int[np.ndarray, "T S"],
        *,
        chunk: int = CHUNK,
    ) -> tuple[Any, Any]:
        """Scans step(carry, sums, numbers) over chunks of groups of keys, as `jax.lax.scan`.

        sums: [B, T, S, h, chunk], each query's weights summed over the keys of each group.
        numbers: [chunk], of these groups. groups: the number of each key's group on the clip's
        grid, from 0. Each extra token is one more group after them; numbers that follow those of
        the extra tokens have no keys.
        """
        b, t, s, g = self.shape
        count, extra = int(groups.max()) + 1, self.layout.extra
        of_key = self.on_stage(jnp.asarray(groups)[None], count + jnp.arange(extra))
        chunk = min(chunk, count + extra)

        def of_chunk(carry: Any, first: Array) -> tuple[Any, Any]:
            marks = jax.nn.one_hot(of_key - first, chunk)[:, :, :, None]
            sent = self.mix(jnp.broadcast_to(marks, (b, t, s, g, chunk)))
            return step(carry, self.on_clip(sent), first + jnp.arange(chunk))

        return jax.lax.scan(of_chunk, start, jnp.arange(0, count + extra, chunk))

    def sums(
        self, groups: Int[np.ndarray, "T S"], *, chunk: int = CHUNK
    ) -> Float[Array, "B h T S groups"]:
        """Returns each query's weights, summed over the keys of each group and of each extra token:
        `fold` with all sums kept."""
        keep = lambda carry, sums, numbers: (carry, sums)
        _, parts = self.fold(keep, None, groups, chunk=chunk)
        whole = jnp.moveaxis(parts, (0, 4), (4, 1))  # [B, h, T, S, parts, chunk]
        whole = whole.reshape(*whole.shape[:4], -1)
        return whole[..., : int(groups.max()) + 1 + self.layout.extra]

    def weights(self, *, chunk: int = CHUNK) -> Float[Array, "B h Tq Sq Tk Sk"]:
        """Returns all weights: every row (t_q, s_q) sums to 1 over (t_k, s_k), less what goes to
        class tokens and registers, which are left out. They are on the clip's grid: tokens that
        were not seen have rows and columns of zeros.

        Made `chunk` keys at a time, but the result itself has h·(T·S)² numbers per clip.
        """
        return _weights(self.of_any_layer, chunk)

    def over_time(self) -> Float[Array, "B h Tq Tk"]:
        """Returns weights between time steps, summed over keys and averaged over queries in space,
        without those that a reduction has dropped.

        Class tokens and registers are left out, so rows sum to less than 1 where there are any; the
        row of a time step of which no token was seen is 0.
        """
        return _over_time(self.of_any_layer)

    def rows(self, queries: Sequence[tuple[int, int]]) -> Float[Array, "B h queries Tk Sk"]:
        """Returns where chosen queries (time step, spatial token) of the stage's grid look.

        Raises ValueError for queries off the grid.
        """
        t, s = self.clip_grid
        off = [q for q in queries if not (0 <= q[0] < t and 0 <= q[1] < s)]
        if off:
            raise ValueError(
                f"no query {off[0]} in {self.name}: time steps are 0 to {t - 1}, spatial tokens 0 "
                f"to {s - 1}"
            )
        chosen = np.zeros((1, t, s, len(queries)), np.float32)
        for i, (step, token) in enumerate(queries):
            chosen[0, step, token, i] = 1
        return _rows(self.of_any_layer, jnp.asarray(chosen), None)

    def received(self) -> Float[Array, "B h Tk Sk"]:
        """Returns the weight that each key gets, averaged over the queries of `seen`."""
        return _rows(self.of_any_layer, self.seen()[..., None], None)[:, :, 0]

    def rows_of_extra(self) -> Float[Array, "B h extra Tk Sk"]:
        """Returns where class tokens and registers look; the mean over the time steps, or places,
        that each have them."""
        extra, (t, s) = self.layout.extra, self.clip_grid
        if not extra:
            return jnp.zeros((self.q.shape[0], self.q.shape[3], 0, t, s))
        return _rows(self.of_any_layer, jnp.zeros((1, t, s, extra)), jnp.eye(extra))


def mean_over(
    attention: Attention, x: Float[Array, "B h Tq Sq ..."], axes: str
) -> Float[Array, "B h ..."]:
    """Returns the mean over the queries of `Attention.seen` along the axes "t", "s" or "ts"; 0
    where there are none."""
    dims = tuple("ts".index(axis) + 2 for axis in axes)
    count = attention.seen()[:, None].sum(axis=dims)
    count = count.reshape(*count.shape, *(1,) * (x.ndim - len(dims) - count.ndim))
    return x.sum(axis=dims) / jnp.maximum(count, 1)


# Compiled once for attentions of one pattern and shape, whatever the layer and the clips.


@partial(jax.jit, static_argnums=1)
def _weights(attention: Attention, chunk: int) -> Float[Array, "B h Tq Sq Tk Sk"]:
    t, s = attention.clip_grid
    sums = attention.sums(np.arange(t * s).reshape(t, s), chunk=chunk)[..., : t * s]
    return sums.reshape(*sums.shape[:4], t, s)


@jax.jit
def _over_time(attention: Attention) -> Float[Array, "B h Tq Tk"]:
    t, s = attention.clip_grid
    groups = np.broadcast_to(np.arange(t)[:, None], (t, s))
    return mean_over(attention, attention.sums(groups)[..., :t], "s")


@jax.jit
def _rows(attention: Attention, chosen: Any, extra: Any) -> Float[Array, "B h queries Tk Sk"]:
    b, t, s, g = attention.shape
    heads = attention.q.shape[3]
    chosen = attention.on_stage(chosen, extra)[:, :, :, None]
    chosen = chosen / jnp.maximum(chosen.sum(axis=(1, 2), keepdims=True), 1)
    # The transpose of a linear map takes results to values: those of chosen queries, to their keys.
    nothing = jnp.zeros((b, t, s, g, chosen.shape[-1]))
    _, transpose = jax.vjp(attention.mix, nothing)

    def to_keys(of_heads: Float[Array, " h"]) -> Float[Array, "B T S g queries"]:
        results = chosen * of_heads[:, None]
        (values,) = transpose(jnp.broadcast_to(results, (b, t, s, *results.shape[3:])))
        return attention.on_clip(values)

    if g == heads:  # a head's values are those of no other head
        rows = to_keys(jnp.ones(heads))
        return jnp.moveaxis(rows, (3, 4), (1, 2))
    rows = jax.lax.map(lambda one: to_keys(one).sum(axis=3), jnp.eye(heads))
    return jnp.moveaxis(rows, (0, 4), (1, 2))
