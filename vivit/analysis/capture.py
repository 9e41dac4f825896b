"""Attention weights of a model, whatever its patterns and kernel.

Only queries and keys are kept. A pattern with given queries and keys is a linear map of its
values, so weights are read off it by passing values that mark the keys; sums of weights come at
the cost of those sums, without the whole map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.attention import KERNELS, Kernel, Pattern
from vivit.axes import Clips, HeadGrid, KeyGrid, Logits, MixedGrid, ValueGrid
from vivit.model import ViViT
from vivit.model.attention import CAPTURED, make_attend
from vivit.model.layout import Layout
from vivit.model.places import Places, check_places, put


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["q", "k", "context", "source", "places"],
    meta_fields=["stage", "layer", "pattern", "layout", "grid", "kernel", "soft_cap"],
)
@dataclass(frozen=True, repr=False)
class Attention:
    """One attention of one block, on its stage's grid. A JAX pytree of its arrays.

    pattern: the registered pattern, with its options. layout: of the grid that the attention gets,
    without the extra tokens that the block leaves out. grid: the clip's, T and S. context: arrays
    that the pattern gets by keyword. source: [B, T, S, P], which of the grid's P spatial tokens the
    S tokens come from, if a reduction has moved them; else None. places: of the tokens on the
    clip's grid, if they are not all of them; else None.
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

    def __repr__(self) -> str:
        return f"<{self.name}: queries {self.q.shape}>"

    @property
    def name(self) -> str:
        return f"stage {self.stage}, layer {self.layer}, {self.pattern.label}"

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
        out = self.mix_tokens(jnp.einsum("BTRS,BTSgc->BTRgc", self.source, v))
        total = self.source.sum(axis=2, keepdims=True)
        parts = self.source / jnp.where(total == 0, 1, total)
        return jnp.einsum("BTRS,BTRhc->BTShc", parts, out)

    def mix_tokens(self, v: ValueGrid) -> MixedGrid:
        """Returns attention weights times values on the grid of the tokens that attend."""
        # Maps want any channels, any lengths and float32, which not every kernel offers, and no
        # more memory than their own.
        kernel = KERNELS["chunked"] if self.kernel.softmax else self.kernel
        attend = make_attend(kernel, self.soft_cap)
        context = {"space": self.layout.space, "layer": self.layer, **self.context}
        return self.pattern(self.q, self.k, v, attend, **context)

    def weights(self, *, chunk: int = 64) -> Float[Array, "B h Tq Sq Tk Sk"]:
        """Returns all weights: every row (t_q, s_q) sums to 1 over (t_k, s_k), less what goes to
        class tokens and registers, which are left out. They are on the clip's grid: tokens that
        were not seen have rows and columns of zeros.

        Made `chunk` keys at a time, but the result itself has h·(T·S)² numbers per clip.
        """
        return _weights(self._of_any_layer, chunk)

    def over_time(self) -> Float[Array, "B h Tq Tk"]:
        """Returns weights between time steps, summed over keys and averaged over queries in space.

        Class tokens and registers are left out, so rows sum to less than 1 where there are any; the
        row of a time step of which no token was seen is 0.
        """
        return _over_time(self._of_any_layer)

    @property
    def _of_any_layer(self) -> "Attention":
        """The same attention with the numbers of a first layer, unless its pattern goes by them, so
        that one compiled function is that of all layers that are alike."""
        layer = self.layer if "layer" in self.pattern.context_args else 0
        return replace(self, stage=0, layer=layer)


# Compiled once for attentions of one pattern and shape, whatever the layer and the clips.


@partial(jax.jit, static_argnums=1)
def _weights(attention: Attention, chunk: int) -> Float[Array, "B h Tq Sq Tk Sk"]:
    b, t, s, g = attention.shape
    chunk = min(chunk, t * s)

    def to_keys(start: Array) -> MixedGrid:
        marks = (jnp.arange(t * s)[:, None] == start + jnp.arange(chunk)).astype(jnp.float32)
        marks = marks.reshape(1, t, s, 1, chunk)
        return attention.mix(jnp.broadcast_to(marks, (b, t, s, g, chunk)))

    maps = jax.lax.map(to_keys, jnp.arange(0, t * s, chunk))  # [parts, B, T, S, h, chunk]
    maps = jnp.moveaxis(maps, (0, 4), (4, 1))  # [B, h, T, S, parts, chunk], with extra tokens
    maps = maps.reshape(*maps.shape[:4], -1)[..., : t * s].reshape(*maps.shape[:4], t, s)
    maps = attention.layout.remove(maps, axes=(2, 3))
    maps = attention.layout.remove(maps, axes=(4, 5))
    places, grid = attention.places, attention.grid
    if places is None:
        return maps
    maps = put(jnp.moveaxis(maps, 1, -1), places, grid)  # [B, Tq, Sq, tk, sk, h]
    maps = put(jnp.moveaxis(maps, (3, 4), (1, 2)), places, grid)
    return jnp.moveaxis(maps, (1, 2, 5), (4, 5, 1))


@jax.jit
def _over_time(attention: Attention) -> Float[Array, "B h Tq Tk"]:
    b, t, s, g = attention.shape
    layout, places = attention.layout, attention.places
    plain = layout.remove(jnp.ones((b, t, s, g, 1)))  # fixes the clip's own T and S
    steps, spatial = plain.shape[1:3]
    of_step = jnp.broadcast_to(jnp.eye(steps)[:, None], (b, steps, spatial, steps))
    if places is not None:
        steps, space = attention.grid
        of_step = jax.nn.one_hot(places // space, steps)
    marks = jnp.broadcast_to(of_step[:, :, :, None], (*of_step.shape[:3], g, steps))
    sent = layout.remove(attention.mix(layout.insert(marks)))  # [B, t, s, h, Tk]
    if places is None:
        return jnp.moveaxis(sent.mean(axis=2), 2, 1)
    count = jnp.maximum(of_step.sum(axis=(1, 2)), 1)[:, None, :, None]
    return jnp.einsum("BtsT,BtshK->BhTK", of_step, sent) / count


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "logits", "attentions", "pooled", "weights_of_readout", "sizes", "sources", "places"
    ],
    meta_fields=["model"],
)  # fmt: skip
@dataclass(frozen=True, repr=False)
class AttentionMaps:
    """What a model attended to in some clips. A JAX pytree of its arrays.

    attentions: in the order of the forward pass. pooled: each stage's grid before its readout, or
    None where it does not pool. weights_of_readout: each stage's weights [B, T, S] of a readout
    with parameters, or None. sizes: how many spatial tokens each pooled token stands for, where a
    reduction counts them. sources: (stage, layer) -> the matrix [B, T, R, S] by which its tokens
    were reduced after that layer's attentions; layer -1 is the stage's start. places: of the tokens
    that were seen, or None for all.
    """

    model: ViViT
    logits: Logits
    attentions: tuple[Attention, ...]
    pooled: tuple[Array | None, ...]
    weights_of_readout: tuple[Array | None, ...]
    sizes: tuple[Array | None, ...]
    sources: Mapping[tuple[int, int], Array]
    places: Places | None = None

    def __repr__(self) -> str:
        names = ", ".join(attention.name for attention in self.attentions)
        return f"<attention maps of {self.logits.shape[0]} clips: {names}>"

    def of(self, *, pattern: str | None = None, stage: int | None = None) -> list[Attention]:
        """Returns the attentions of a pattern ("window", with or without options) or of a stage.

        Raises ValueError that lists all attentions if none fits.
        """
        found = [
            a
            for a in self.attentions
            if pattern in (None, a.pattern.name, a.pattern.label) and stage in (None, a.stage)
        ]
        if not found:
            known = sorted({(a.stage, a.pattern.label) for a in self.attentions})
            raise ValueError(f"no attention with {pattern=} and {stage=}; there are {known}")
        return found

    def weights(self, **chosen: Any) -> Float[Array, "L B h Tq Sq Tk Sk"]:
        """`Attention.weights` of all layers that `of(**chosen)` gives, which share one grid."""
        return jnp.stack([a.weights() for a in self.of(**chosen)])

    def over_time(self, **chosen: Any) -> Float[Array, "L B h Tq Tk"]:
        """`Attention.over_time` of all layers that `of(**chosen)` gives."""
        return jnp.stack([a.over_time() for a in self.of(**chosen)])


def capture(model: ViViT, params: Any, clips: Clips, places: Places | None = None) -> AttentionMaps:
    """Runs clips through a model and keeps its queries and keys.

    places: of the tokens that are seen, as in `ViViT.encode`; None for all. Maps and rollout are on
    the whole grid of the clip all the same. Raises ValueError for a model that cannot encode some
    of the tokens.
    """
    if places is not None:
        check_places(model.config, lines=places.shape[1] > 1)
    steps, rows, columns = model.config.grid
    if model.config.kernel.over_devices:  # equal to dense but for a mesh, which maps do not need
        model = model.with_settings(kernel="chunked")
    logits, kept = _apply_capturing(model, params, clips, places)
    attentions, sources = [], {}
    source = None  # which spatial tokens of the clip's grid the tokens come from, until a pooling
    stages = [(kept.get(f"stage_{i}", {}), s) for i, s in enumerate(model.config.stages)]
    for i, (captured, stage) in enumerate(stages):
        if (reduced := captured.get("reduce", {}).get("source")) is not None:
            source = sources[i, -1] = reduced
        for layer in range(stage.depth):
            at_layer = _layer(captured, layer)
            of_layer = _layer(params[f"stage_{i}"], layer)
            for pattern in stage.attentions:
                name = f"attention_{stage.block.attention_name(pattern)}"
                layout = stage.block.layout_of(pattern, stage.layout.at(places))
                attentions.append(
                    Attention(
                        stage=i,
                        layer=layer,
                        pattern=pattern,
                        q=at_layer[name]["queries"],
                        k=at_layer[name]["keys"],
                        layout=layout,
                        grid=(steps, rows * columns),
                        kernel=model.config.kernel,
                        soft_cap=model.config.soft_cap,
                        context=_context(pattern, at_layer[name], of_layer[name]),
                        source=None if source is None else layout.matrix(source),
                        places=places,
                    )
                )
            if (merged := at_layer.get("source")) is not None:
                sources[i, layer] = merged
                source = merged if source is None else jnp.einsum("BTRS,BTSP->BTRP", merged, source)
        if "s" in stage.pool_axes:
            source = None
    of_stages = lambda name: tuple(captured.get(name) for captured, _ in stages)
    return AttentionMaps(
        model,
        logits,
        tuple(attentions),
        pooled=of_stages("pooled"),
        weights_of_readout=of_stages("weights"),
        sizes=of_stages("sizes"),
        sources=sources,
        places=places,
    )


def _context(pattern: Pattern, captured: Any, params: Any) -> dict[str, Any]:
    """The arrays that a pattern gets by keyword in one attention."""
    context = {key: params[key] for key in pattern.context_args if key in params}
    return context | ({"values": captured["values"]} if pattern.follows_values else {})


@partial(jax.jit, static_argnums=0)
def _apply_capturing(model: ViViT, params: Any, clips: Clips, places: Any) -> tuple[Any, Any]:
    logits, variables = model.apply({"params": params}, clips, places, mutable=[CAPTURED])
    return logits, variables.get(CAPTURED, {})


def _layer(tree: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    if "layers" in tree:  # scanned: every array has a leading axis of layers
        return jax.tree.map(lambda x: x[layer], tree["layers"])
    return tree[f"layer_{layer}"]
