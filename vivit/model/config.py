"""A model's config, resolved: every field has a value and every name is its registry's entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vivit.model.layout import Layout
from vivit.model.settings import ModelSettings

if TYPE_CHECKING:  # these modules define the entries, and take a config themselves
    from vivit.attention.kernels import Kernel
    from vivit.attention.patterns import Pattern
    from vivit.attention.reductions import Reduction
    from vivit.attention.rotary import Rotation
    from vivit.model.block import BlockKind
    from vivit.model.embed import Embedding, PositionEmbedding
    from vivit.model.readout import Readout
    from vivit.ramps import Strength


@dataclass(frozen=True)
class StageConfig:
    """One stage: equal blocks over one grid, with what they start with and end with.

    attentions: of each block, one residual branch each.
    norm: whether a layer norm follows the blocks.
    pool_axes: "s", "t" or "ts", over which `readout` pools; "" for no pooling.
    position_axes: the axes whose position embedding starts in this stage, of these `lengths`.
    first_layer: how many layers the stages before have, of `total_layers`.
    qkv_bias: which of the projections to q, k and v have a bias.
    """

    depth: int
    attentions: tuple[Pattern, ...]
    block: BlockKind
    norm: bool
    readout: Readout
    pool_axes: str
    reduction: Reduction
    layout: Layout
    position_axes: str
    lengths: tuple[int, ...]
    first_layer: int
    total_layers: int
    heads: int
    kv_heads: int
    mlp_dim: int
    qkv_bias: str
    rope: Rotation


@dataclass(frozen=True)
class ModelConfig:
    """A whole model; `vivit.model.resolve` makes one. Fields are those of ModelSettings.

    settings: what it was resolved from, with the sizes filled in.
    pre_logits: 0 for no such layer. soft_cap: 0 for no cap.
    """

    settings: ModelSettings
    clip: tuple[int, int, int]
    classes: int
    width: int
    tubelet: tuple[int, int, int]
    embedding: Embedding
    position: PositionEmbedding
    pre_logits: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    kernel: Kernel
    qk_norm: bool
    soft_cap: float
    activation: Callable[..., Any]
    pre_norm: bool
    norm_epsilon: float
    drop_path: Strength
    dropout: Strength
    attention_dropout: Strength
    dtype: str
    scan: bool
    remat: Callable[..., Any]
    stages: tuple[StageConfig, ...] = ()

    @property
    def grid(self) -> tuple[int, int, int]:
        """Time steps, rows and columns of the token grid; S is rows times columns."""
        (frames, height, width), (t, h, w) = self.clip, self.tubelet
        return frames // t, height // h, width // w
