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

from vivit.attention import KERNELS, PATTERNS
from vivit.axes import Clips, HeadGrid, KeyGrid, Logits, MixedGrid, ValueGrid
from vivit.encoder import CAPTURED, make_attend
from vivit.layers import Layout
from vivit.model import ViViT
from vivit.plan import plan_stages


@dataclass(frozen=True)
class Attention:
    """One attention of one block, on its stage's grid.

    pattern: as the config names it, with options. layout: of the attention's own grid; without
    extra tokens where the pattern leaves them out. told: what the pattern is told beside tokens.
    source: [B, T, S, P], which of the grid's P places the S tokens come from, where the stage has
    reduced them; None where it hasn't.
    """

    stage: int
    layer: int
    pattern: str
    q: HeadGrid
    k: KeyGrid
    layout: Layout
    kernel: str
    soft_cap: float | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    source: Float[Array, "B T S P"] | None = None

    @property
    def name(self) -> str:
        return f"stage {self.stage}, layer {self.layer}, {self.pattern}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Clips, steps and places of the stage's grid, and heads of the values."""
        b, t, s, _, _ = self.q.shape
        places = s if self.source is None else self.source.shape[-1]
        return b, t, places, self.k.shape[3]

    def mix(self, v: ValueGrid) -> MixedGrid:
        """Attention weights times values [B, T, S, g, c], for any number of channels c.

        Both are on the stage's grid, also where tokens are reduced: a token's value is then the
        mean of its places by `source`, a place gets what its tokens get by their share in it, and
        a place that was dropped gets 0.
        """
        if self.source is None:
            return self.mix_tokens(v)
        out = self.mix_tokens(jnp.einsum("BTRS,BTSgc->BTRgc", self.source, v))
        total = self.source.sum(axis=2, keepdims=True)
        share = self.source / jnp.where(total == 0, 1, total)
        return jnp.einsum("BTRS,BTRhc->BTShc", share, out)

    def mix_tokens(self, v: ValueGrid) -> MixedGrid:
        """The same on the grid of the tokens that attend."""
        # Maps want any channels, any lengths and float32, which not every kernel offers.
        own = self.kernel == "dense" or not KERNELS[self.kernel].softmax
        attend = make_attend(self.kernel if own else "chunked", self.soft_cap)
        return PATTERNS[self.pattern](self.q, self.k, v, attend, **self.told)

    def weights(self, *, chunk: int = 64) -> Float[Array, "B h Tq Sq Tk Sk"]:
        """All weights; every row (t_q, s_q) sums to 1 over (t_k, s_k), less what goes to class
        tokens and registers, which are left out.

        Made `chunk` keys at a time, but the result itself has h·(T·S)² numbers a clip.
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
        maps = self.layout.without_extra(maps, axes=(2, 3))
        return self.layout.without_extra(maps, axes=(4, 5))

    def over_time(self) -> Float[Array, "B h Tq Tk"]:
        """Weight from step to step: summed over the keys' places, averaged over the queries'.

        Class tokens and registers are left out, so rows sum to less than 1 where there are any.
        """
        b, t, s, g = self.shape
        ones = jnp.ones((b, t, s, g, 1))
        plain = self.layout.without_extra(ones)  # fixes the clip's own T and S
        steps, places = plain.shape[1:3]
        marks = jnp.broadcast_to(jnp.eye(steps)[None, :, None, None], (b, steps, places, g, steps))
        sent = self.mix(add_extra(marks, self.layout))  # [B, T, S, h, Tk]
        sent = self.layout.without_extra(sent).mean(axis=2)
        return jnp.moveaxis(sent, 2, 1)


@dataclass(frozen=True)
class AttentionMaps:
    """What a model attended to in some clips.

    attentions: in the order of the forward pass. pooled: each stage's grid before its pooling, or
    None where it does not pool. shares: each stage's weights [B, T, S] of a readout that is itself
    an attention, the mean over its heads, or None. sources: (stage, layer) -> the matrix
    [B, T, R, S] by which its tokens were reduced after that layer's attentions; layer -1 is the
    stage's start.
    """

    model: ViViT
    logits: Logits
    attentions: tuple[Attention, ...]
    pooled: tuple[Array | None, ...]
    shares: tuple[Array | None, ...]
    sources: Mapping[tuple[int, int], Array]

    def of(self, *, pattern: str | None = None, stage: int | None = None) -> list[Attention]:
        """The attentions of a pattern, a stage or both. ValueError where there are none."""
        found = [
            a for a in self.attentions if pattern in (None, a.pattern) and stage in (None, a.stage)
        ]
        if not found:
            there = sorted({(a.stage, a.pattern) for a in self.attentions})
            raise ValueError(f"no attention with {pattern=} and {stage=}; there are {there}")
        return found

    def weights(self, **chosen: Any) -> Float[Array, "L B h Tq Sq Tk Sk"]:
        """`Attention.weights` of all layers that `of(**chosen)` gives, which share one grid."""
        return jnp.stack([a.weights() for a in self.of(**chosen)])

    def over_time(self, **chosen: Any) -> Float[Array, "L B h Tq Tk"]:
        """`Attention.over_time` of all layers that `of(**chosen)` gives."""
        return jnp.stack([a.over_time() for a in self.of(**chosen)])


def capture(model: ViViT, params: Any, clips: Clips) -> AttentionMaps:
    """Runs clips through a model and keeps its queries and keys."""
    if KERNELS[model.kernel].over_devices:  # equal to dense, but for a mesh, which maps don't need
        model = model.clone(kernel="chunked")
    logits, kept = _apply_capturing(model, params, clips)
    attentions, pooled, shares, sources, source = [], [], [], {}, None
    for i, stage in enumerate(plan_stages(model)):
        captured, own = kept.get(f"stage_{i}", {}), params.get(f"stage_{i}", {})
        pooled.append(captured.get("pooled"))
        shares.append(captured.get("shares"))
        sources[i, -1] = captured.get("reduce", {}).get("source")
        # Which places of the clip's grid the tokens come from, until the places are pooled.
        source = source if sources[i, -1] is None else sources[i, -1]
        for layer in range(stage["depth"]):
            at_layer = _layer(captured, layer)
            for pattern in stage["mixers"]:
                name = f"attention_{PATTERNS[pattern].name}"
                kwargs = _told(stage, layer, pattern, at_layer[name], _layer(own, layer)[name])
                attentions.append(
                    Attention(
                        stage=i,
                        layer=layer,
                        pattern=pattern,
                        kernel=model.kernel,
                        soft_cap=model.soft_cap,
                        source=None if source is None else on_layout(source, kwargs["layout"]),
                        **kwargs,
                    )
                )
            merged = sources[i, layer] = at_layer.get("source")
            if merged is not None:
                source = merged if source is None else jnp.einsum(
                    "BTRS,BTSP->BTRP", merged, source
                )  # fmt: skip
        if stage["pool"] and "s" in stage["pool_axes"]:
            source = None
    sources = {key: value for key, value in sources.items() if value is not None}
    return AttentionMaps(model, logits, tuple(attentions), tuple(pooled), tuple(shares), sources)


def _told(stage: dict, layer: int, name: str, captured: Any, params: Any) -> dict[str, Any]:
    """What an Attention holds of one attention's activations and parameters."""
    pattern = PATTERNS[name]
    layout = stage["layout"].seen_by(pattern)
    told = {"space": layout.space, "layer": layer}
    told |= {key: params[key] for key in pattern.needs if key in params}
    if "values" in captured:
        told["values"] = captured["values"]
    return {"q": captured["queries"], "k": captured["keys"], "layout": layout, "told": told}


@partial(jax.jit, static_argnums=0)
def _apply_capturing(model: ViViT, params: Any, clips: Clips) -> tuple[Any, Any]:
    logits, variables = model.apply({"params": params}, clips, mutable=[CAPTURED])
    return logits, variables.get(CAPTURED, {})


def _layer(tree: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    if "layers" in tree:  # scanned: every array has a leading axis of layers
        return jax.tree.map(lambda x: x[layer], tree["layers"])
    return tree[f"layer_{layer}"]


def add_extra(x: Float[Array, "B T S ..."], layout: Layout) -> Float[Array, "B T2 S2 ..."]:
    """The clip's grid as a stage of this layout has it, with zeros for its extra tokens."""
    if layout.extra == "ts":
        x = x.reshape(x.shape[0], 1, x.shape[1] * x.shape[2], *x.shape[3:])
    if not layout.extra:
        return x
    padding = [(0, 0)] * x.ndim
    padding[1 if layout.extra == "t" else 2] = (layout.prefix, 0)
    return jnp.pad(x, padding)


def on_layout(source: Float[Array, "B T R S"], layout: Layout) -> Float[Array, "B T2 R2 S2"]:
    """A reduction's matrix on a grid of that layout."""
    b, t, r, s = source.shape
    if layout.extra == "ts" and t > 1:  # one step: each step's tokens come from its own places
        by_step = jnp.einsum("BTRS,TU->BTRUS", source, jnp.eye(t))
        source = by_step.reshape(b, 1, t * r, t * s)
    return add_identity(source, layout)


def add_identity(source: Float[Array, "B T R S"], layout: Layout) -> Float[Array, "B T R2 S2"]:
    """A reduction's matrix on a grid with extra tokens, which stay what they are."""
    prefix = layout.prefix
    wider = jnp.pad(source, ((0, 0), (0, 0), (prefix, 0), (prefix, 0)))
    return wider.at[:, :, jnp.arange(prefix), jnp.arange(prefix)].set(1)
