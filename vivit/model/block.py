"""Transformer blocks, and token reductions in and before them (Flax).

Dropout and drop path are active where `apply` is given a "dropout" rng, and nowhere else.
Names of submodules are checkpoint format.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.attention import Pattern
from vivit.attention.reductions import add_sizes, apply_source
from vivit.axes import Grid, NewGrid
from vivit.model.attention import TOKENS, Attended, SelfAttention, perturb, sow
from vivit.model.config import ModelConfig
from vivit.model.layers import Dropout, DropPath, Mlp
from vivit.model.layout import Layout
from vivit.model.places import Places
from vivit.registry import Registry


class Carry(NamedTuple):
    """What one block hands to the next: tokens; how many spatial tokens each stands for (None
    where no reduction counts them); their places (None for the whole grid)."""

    x: Grid
    sizes: Float[Array, "B T S"] | None = None
    places: Places | None = None


class Block(nn.Module):
    """A pre-LN transformer block of stage i: one residual branch per attention, then the MLP.

    keeps: whether it also returns its tokens, for scans whose layers' tokens are needed.
    """

    config: ModelConfig
    i: int
    keeps: bool = False

    @nn.compact
    def __call__(self, carry: Carry, at: tuple[Any, Any]) -> tuple[Carry, Grid | None]:
        """Returns (carry, None), as scans need it; (carry, its tokens) where those are kept.

        at: the layer's depth in the encoder from 0 to 1, which scales the drop path, and its index
        in the stage.
        """
        config, stage = self.config, self.config.stages[self.i]
        x, sizes, places = carry
        depth_fraction, layer = at
        x = perturb(self, "tokens_gradient", x)
        sow(self, TOKENS, tokens=x)
        sow(self, norms=jnp.linalg.norm(x.astype(jnp.float32), axis=-1))

        def norm(x, name):
            return nn.LayerNorm(config.norm_epsilon, dtype=jnp.float32, name=f"norm_{name}")(x)

        def add(x, y, name):
            y = Dropout(config.dropout)(y)
            return x + DropPath(config.drop_path, name=f"drop_path_{name}")(y, depth_fraction)

        keys = None
        for pattern in stage.attentions:
            name = stage.block.attention_name(pattern)
            out, keys = self.attend(pattern, norm(x, name), layer, sizes, places)
            x = add(x, out, name)
        if stage.reduction.each_layer:
            x, sizes = self._reduce(x, keys, sizes)
        mlp = Mlp(stage.mlp_dim, config.activation, config.dropout, config.dtype, name="mlp")
        x = add(x, mlp(norm(x, "mlp")), "mlp")
        return Carry(x, sizes, places), x if self.keeps else None

    def attend(self, pattern: Pattern, x: Grid, layer: Any, sizes: Any, places: Any) -> Attended:
        """Returns what an attention adds to the normed tokens of the stage's grid."""
        return self.attention(pattern)(x, layer, sizes, places)

    def attention(self, pattern: Pattern) -> SelfAttention:
        """Returns the module of an attention of this block."""
        stage = self.config.stages[self.i]
        return SelfAttention(
            self.config,
            self.i,
            pattern,
            stage.block.layout_of(pattern, stage.layout),
            projection=stage.block.leaves_out(pattern),
            name=f"attention_{stage.block.attention_name(pattern)}",
        )

    def _reduce(self, x: Grid, keys: Any, sizes: Any) -> tuple[NewGrid, Array]:
        stage = self.config.stages[self.i]
        extra = stage.layout.extra
        inputs = {"x": x[:, :, extra:], "keys": keys[:, :, extra:], "sizes": sizes[:, :, extra:]}
        source = stage.reduction(**inputs, **_key(self, stage.reduction.inputs))
        sow(self, source=source)
        x = jnp.concatenate([x[:, :, :extra], apply_source(source, inputs["x"])], axis=2)
        merged = add_sizes(source, inputs["sizes"])
        return x, jnp.concatenate([sizes[:, :, :extra], merged], axis=2)


def tie(y: Grid, extra: int) -> Grid:
    """Returns a grid whose first `extra` spatial tokens are their means over time steps:
    TimeSformer's class token of the clip (2102.05095), section 3."""
    shared = y[:, :, :extra].mean(axis=1, keepdims=True)
    shared = jnp.broadcast_to(shared, (*y.shape[:2], extra, y.shape[3]))
    return jnp.concatenate([shared, y[:, :, extra:]], axis=2)


class DividedBlock(Block):
    """TimeSformer's block (2102.05095), section 3, as its released code has it.

    The extra tokens are one for the whole clip, held by every time step: attention over time leaves
    them out and has a second dense layer (temporal_fc), and what they get from attention over space
    is averaged over time steps.
    """

    def attend(self, pattern: Pattern, x: Grid, layer: Any, sizes: Any, places: Any) -> Attended:
        stage = self.config.stages[self.i]
        extra = stage.layout.extra
        if not extra:
            return self.attention(pattern)(x, layer, sizes, places)
        if stage.block.leaves_out(pattern):
            out, keys = self.attention(pattern)(x[:, :, extra:], layer, None, places)
            return Attended(jnp.pad(out, ((0, 0), (0, 0), (extra, 0), (0, 0))), keys)
        out, keys = self.attention(pattern)(x, layer, None, places)
        return Attended(tie(out, extra), keys)


@dataclass(frozen=True)
class BlockKind:
    """A registered kind of block.

    module: the Flax module. leaves_out: whether an attention of this pattern gets the grid without
    its extra tokens, and a second dense layer. tied: whether the extra tokens are one for all time
    steps. attention_name: the part of parameter names that an attention of a pattern has.
    """

    module: type[Block]
    leaves_out: Callable[[Pattern], bool] = lambda pattern: False
    tied: bool = False
    attention_name: Callable[[Pattern], str] = lambda pattern: pattern.name

    def layout_of(self, pattern: Pattern, layout: Layout) -> Layout:
        """Returns the layout of the grid that an attention of this pattern gets."""
        return layout.bare if self.leaves_out(pattern) else layout


BLOCKS: Registry[BlockKind] = Registry("kind of block")
BLOCKS.add("standard", BlockKind(Block))
BLOCKS.add(
    "divided",
    BlockKind(
        DividedBlock,
        leaves_out=lambda pattern: pattern.axes == "t",
        tied=True,
        attention_name=lambda p: f"divided_{p.name}" if p.axes == "t" else p.name,
    ),
)


class Reduce(nn.Module):
    """Fewer tokens per time step, from the start of stage i on; extra tokens stay."""

    config: ModelConfig
    i: int

    @nn.compact
    def __call__(self, x: Grid) -> NewGrid:
        config, stage = self.config, self.config.stages[self.i]
        extra, x = x[:, :, : stage.layout.extra], x[:, :, stage.layout.extra :]
        inputs: dict[str, Any] = {"x": x, **_key(self, stage.reduction.inputs)}
        if features := stage.reduction.scores_per_token:
            norm = nn.LayerNorm(config.norm_epsilon, dtype=jnp.float32, name="norm")
            mlp = Mlp(64, config.activation, 0.0, config.dtype, features, name="scores")
            inputs["scores"] = mlp(norm(x))
        source = stage.reduction(**inputs)
        expected = stage.reduction.tokens_left(x.shape[2], -1, **stage.reduction.options)
        if source.shape[2:] != (expected, x.shape[2]):
            raise ValueError(
                f"reduction {stage.reduction.name!r} gives a matrix {source.shape[2:]} for "
                f"{x.shape[2]} spatial tokens, and its tokens_left says {expected}"
            )
        sow(self, source=source)
        return jnp.concatenate([extra, apply_source(source, x)], axis=2)


def _key(module: nn.Module, inputs: tuple[str, ...]) -> dict[str, Any]:
    """Returns a reduction's random key if it takes one: None in evaluation."""
    if "key" not in inputs:
        return {}
    return {"key": module.make_rng("dropout") if module.has_rng("dropout") else None}
