"""Attention weights of a model, whatever its patterns and kernel.

Only queries and keys are kept. A pattern with given queries and keys is a linear map of its
values, so weights are read off it by passing values that mark the keys; sums of weights come at
the cost of those sums, without the whole map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, repr=False)
class Attention:
    """One attention of one block, on its stage's grid.

    pattern: the registered pattern, with its options. layout: of the grid that the attention gets,
    without the extra tokens that the block leaves out. context: the pattern's keyword arguments.
    source: [B, T, S, P], which of the grid's P spatial tokens the S tokens come from, if a
    reduction has moved them; else None. places: of the tokens on the clip's grid [T, S], if they
    are not all of them, and that grid's shape; else None.
    """

    stage: int
    layer: int
    pattern: Pattern
    q: HeadGrid
    k: KeyGrid
    layout: Layout
    kernel: Kernel
    soft_cap: float = 0.0
    context: Mapping[str, Any] = field(default_factory=dict)
    source: Float[Array, "B T S P"] | None = None
    places: tuple[Places, tuple[int, int]] | None = None

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
        # Maps want any channels, any lengths and float32, which not every kernel offers.
        suits = self.kernel.general or not self.kernel.softmax
        attend = make_attend(self.kernel if suits else KERNELS["chunked"], self.soft_cap)
        return self.pattern(self.q, self.k, v, attend, **self.context)

    def weights(self, *, chunk: int = 64) -> Float[Array, "B h Tq Sq Tk Sk"]:
        """Returns all weights: every row (t_q, s_q) sums to 1 over (t_k, s_k), less what goes to
        class tokens and registers, which are left out. They are on the clip's grid: tokens that
        were not seen have rows and columns of zeros.

        Made `chunk` keys at a time, but the result itself has h·(T·S)² numbers per clip.
        """
        b, t, s, g = self.shape
        parts = []
        for start in range(0, t * s, chunk):
            keys = jnp.arange(start, min(start + chunk, t * s))
            marks = (jnp.arange(t * s)[:, None] == keys).astype(jnp.float32)
            marks = marks.reshape(1, t, s, 1, -1)
            parts.append(self.mix(jnp.broadcast_to(marks, (b, t, s, g, len(keys)))))
        maps = jnp.concatenate(parts, axis=-1)  # [B, T, S, h, T*S], with extra tokens
        maps = jnp.moveaxis(maps, 3, 1).reshape(b, -1, t, s, t, s)
        maps = self.layout.remove(maps, axes=(2, 3))
        maps = self.layout.remove(maps, axes=(4, 5))
        if self.places is None:
            return maps
        maps = put(jnp.moveaxis(maps, 1, -1), *self.places)  # [B, Tq, Sq, tk, sk, h]
        maps = put(jnp.moveaxis(maps, (3, 4), (1, 2)), *self.places)
        return jnp.moveaxis(maps, (1, 2, 5), (4, 5, 1))

    def over_time(self) -> Float[Array, "B h Tq Tk"]:
        """Returns weights between time steps, summed over keys and averaged over queries in space.

        Class tokens and registers are left out, so rows sum to less than 1 where there are any; the
        row of a time step of which no token was seen is 0.
        """
        b, t, s, g = self.shape
        ones = jnp.ones((b, t, s, g, 1))
        plain = self.layout.remove(ones)  # fixes the clip's own T and S
        steps, spatial = plain.shape[1:3]
        of_step = jnp.broadcast_to(jnp.eye(steps)[:, None], (b, steps, spatial, steps))
        if self.places is not None:
            places, (steps, space) = self.places
            of_step = jax.nn.one_hot(places // space, steps)
        marks = jnp.broadcast_to(of_step[:, :, :, None], (*of_step.shape[:3], g, steps))
        sent = self.layout.remove(self.mix(self.layout.insert(marks)))  # [B, t, s, h, Tk]
        if self.places is None:
            return jnp.moveaxis(sent.mean(axis=2), 2, 1)
        count = jnp.maximum(of_step.sum(axis=(1, 2)), 1)[:, None, :, None]
        return jnp.einsum("BtsT,BtshK->BhTK", of_step, sent) / count


@dataclass(frozen=True, repr=False)
class AttentionMaps:
    """What a model attended to in some clips.

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
    on_grid = None
    if places is not None:
        check_places(model.config, lines=places.shape[1] > 1)
        steps, rows, columns = model.config.grid
        on_grid = places, (steps, rows * columns)
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
                        kernel=model.config.kernel,
                        soft_cap=model.config.soft_cap,
                        context=_context(pattern, layout, layer, at_layer[name], of_layer[name]),
                        source=None if source is None else layout.matrix(source),
                        places=on_grid,
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


def _context(
    pattern: Pattern, layout: Layout, layer: int, captured: Any, params: Any
) -> dict[str, Any]:
    """The keyword arguments of a pattern in one attention."""
    context = {"space": layout.space, "layer": layer}
    context |= {key: params[key] for key in pattern.context_args if key in params}
    return context | ({"values": captured["values"]} if pattern.follows_values else {})


@partial(jax.jit, static_argnums=0)
def _apply_capturing(model: ViViT, params: Any, clips: Clips, places: Any) -> tuple[Any, Any]:
    logits, variables = model.apply({"params": params}, clips, places, mutable=[CAPTURED])
    return logits, variables.get(CAPTURED, {})


def _layer(tree: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    if "layers" in tree:  # scanned: every array has a leading axis of layers
        return jax.tree.map(lambda x: x[layer], tree["layers"])
    return tree[f"layer_{layer}"]
