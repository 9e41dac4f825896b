"""Attention weights of a model, whatever its patterns and kernel.

Only queries and keys are kept. A pattern with given queries and keys is a linear map of its
values, so weights are read off it by passing values that mark the keys; sums of weights come at
the cost of those sums, without the whole map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.attention import KERNELS, PATTERNS
from vivit.axes import Clips, HeadGrid, Logits, ValueGrid
from vivit.layers import CAPTURED
from vivit.model import ViViT, plan_stages


@dataclass(frozen=True)
class Attention:
    """One attention of one block, on its stage's grid.

    class_token: where the grid has one, as in `vivit.layers.Stage`; "ts" means that the grid is
    one step [B, 1, 1 + T·S].
    """

    stage: int
    layer: int
    pattern: str
    q: HeadGrid
    k: HeadGrid
    class_token: str
    steps: int
    kernel: str

    @property
    def name(self) -> str:
        return f"stage {self.stage}, layer {self.layer}, {self.pattern}"

    def mix(self, v: ValueGrid) -> ValueGrid:
        """Attention weights times values [B, T, S, h, c], for any number of channels c."""
        return PATTERNS[self.pattern].mix(self.q, self.k, v, KERNELS[self.kernel])

    def weights(self, *, chunk: int = 64) -> Float[Array, "B h Tq Sq Tk Sk"]:
        """All weights; every row (t_q, s_q) sums to 1 over (t_k, s_k). Class tokens are left out.

        Made `chunk` keys at a time, but the result itself has h·(T·S)² numbers a clip.
        """
        b, t, s, h, _ = self.q.shape
        parts = []
        for start in range(0, t * s, chunk):
            keys = jnp.arange(start, min(start + chunk, t * s))
            marks = (jnp.arange(t * s)[:, None] == keys).astype(jnp.float32)
            marks = marks.reshape(1, t, s, 1, -1)
            parts.append(self.mix(jnp.broadcast_to(marks, (b, t, s, h, len(keys)))))
        maps = jnp.concatenate(parts, axis=-1)  # [B, T, S, h, T*S], with class tokens
        maps = jnp.moveaxis(maps, 3, 1).reshape(b, h, t, s, t, s)
        maps = self.without_class_token(maps, (2, 3))
        return self.without_class_token(maps, (4, 5))

    def over_time(self) -> Float[Array, "B h Tq Tk"]:
        """Weight from step to step: summed over the keys' places, averaged over the queries'.

        Class tokens are left out, so rows sum to less than 1 where there is one.
        """
        b, t, s, h, _ = self.q.shape
        ones = jnp.ones((b, t, s, h, 1))
        plain = self.without_class_token(ones, (1, 2))  # fixes the clip's own T and S
        steps, places = plain.shape[1:3]
        marks = jnp.broadcast_to(jnp.eye(steps)[None, :, None, None], (b, steps, places, h, steps))
        sent = self.mix(self.with_class_token(marks))  # [B, T, S, h, Tk]
        sent = self.without_class_token(sent, (1, 2)).mean(axis=2)
        return jnp.moveaxis(sent, 2, 1)

    def with_class_token(self, x: Float[Array, "B T S ..."]) -> Float[Array, "B T2 S2 ..."]:
        """A space-time grid as this attention's grid, with zeros at its class tokens."""
        return add_class_token(x, self.class_token)

    def without_class_token(self, x: Array, axes: tuple[int, int]) -> Array:
        """An array whose `axes` are this attention's grid, on the clip's T x S grid."""
        t_axis, s_axis = axes
        if self.class_token == "t":
            return jnp.delete(x, 0, axis=t_axis, assume_unique_indices=True)
        if self.class_token:
            x = jnp.delete(x, 0, axis=s_axis, assume_unique_indices=True)
        if self.class_token == "ts":
            x = jnp.squeeze(x, axis=t_axis)
            shape = (*x.shape[:t_axis], self.steps, -1, *x.shape[t_axis + 1 :])
            return x.reshape(shape)
        return x


@dataclass(frozen=True)
class AttentionMaps:
    """What a model attended to in some clips.

    attentions: in the order of the forward pass. pooled: each stage's grid before its pooling, or
    None where it does not pool.
    """

    model: ViViT
    logits: Logits
    attentions: tuple[Attention, ...]
    pooled: tuple[Array | None, ...]

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
    logits, kept = _apply_capturing(model, params, clips)
    attentions, pooled = [], []
    for i, stage in enumerate(plan_stages(model)):
        captured = kept.get(f"stage_{i}", {})
        pooled.append(captured.get("pooled"))
        for layer in range(stage["depth"]):
            for pattern in stage["mixers"]:
                found = _layer(captured, layer)[f"attention_{pattern}"]
                attentions.append(
                    Attention(
                        stage=i,
                        layer=layer,
                        pattern=pattern,
                        q=found["queries"],
                        k=found["keys"],
                        class_token=stage["class_token"],
                        steps=model.grid[0],
                        kernel=model.kernel,
                    )
                )
    return AttentionMaps(model, logits, tuple(attentions), tuple(pooled))


@partial(jax.jit, static_argnums=0)
def _apply_capturing(model: ViViT, params: Any, clips: Clips) -> tuple[Any, Any]:
    logits, variables = model.apply({"params": params}, clips, mutable=[CAPTURED])
    return logits, variables.get(CAPTURED, {})


def _layer(captured: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    if "layers" in captured:  # scanned: every array has a leading axis of layers
        return jax.tree.map(lambda x: x[layer], captured["layers"])
    return captured[f"layer_{layer}"]


def add_class_token(x: Array, class_token: str) -> Array:
    """A grid [B, T, S, ...] as a stage with such a class token has it, with zeros for the token."""
    if class_token == "ts":
        x = x.reshape(x.shape[0], 1, x.shape[1] * x.shape[2], *x.shape[3:])
    if not class_token:
        return x
    padding = [(0, 0)] * x.ndim
    padding[1 if class_token == "t" else 2] = (1, 0)
    return jnp.pad(x, padding)
