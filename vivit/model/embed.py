"""From pixels to tokens, and position embeddings (Flax)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Shaped

from vivit.axes import Clips, NewGrid
from vivit.model.config import ModelConfig
from vivit.model.layers import flat_product
from vivit.model.places import Places, take
from vivit.registry import Registry

SampledClips = Shaped[Array | np.ndarray, "B F2 H W C"]


@dataclass(frozen=True)
class Embedding:
    """A registered tubelet embedding.

    sample: (clips, frames of a tubelet) -> the clips with the frames that are embedded.
    kernel_frames: frames of a tubelet -> frames of the embedding's kernel.
    """

    sample: Callable[[Clips, int], SampledClips]
    kernel_frames: Callable[[int], int] = lambda frames: frames


EMBEDDINGS: Registry[Embedding] = Registry("embedding")
# A 3D convolution over all frames; ViViT (2103.15691), section 3.2, tubelet embedding.
EMBEDDINGS.add("tubelet", Embedding(lambda clips, frames: clips))
# The central frame of each tubelet; ViViT, section 3.2, uniform frame sampling.
EMBEDDINGS.add(
    "uniform_frames",
    Embedding(lambda clips, frames: clips[:, frames // 2 :: frames], lambda frames: 1),
)


def as_floats(clips: Clips, config: ModelConfig) -> Array:
    """Returns clips as a model's first layer gets them: uint8 ones as (x / 255 - mean) / std."""
    frames = jnp.asarray(clips)
    if frames.dtype != jnp.uint8:
        return frames
    dtype = jnp.dtype(config.dtype)
    mean, std = np.array(config.pixel_mean), np.array(config.pixel_std)
    return frames.astype(dtype) / (255 * std).astype(dtype) - (mean / std).astype(dtype)


class Tubelet(nn.Module):
    """Tokens `[B, T, S, D]` of clips: one linear map of each (time, height, width) tubelet.

    A convolution whose stride is its size is a matrix product of patches, and much faster so on
    CPUs. The kernel has the convolution's shape [t, h, w, C, D]. uint8 clips become
    (x / 255 - mean) / std, which is [-1, 1] at the defaults.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, clips: Clips, places: Places | None = None) -> NewGrid:
        """places: of the tokens that are made; None for all."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        t, h, w = config.tubelet
        frames = as_floats(config.embedding.sample(clips, t), config)
        t = config.embedding.kernel_frames(t)
        patches = rearrange(frames, "B (T t) (Y h) (X w) C -> B T (Y X) (t h w C)", t=t, h=h, w=w)
        if places is not None:
            patches = take(patches, places)
        shape = (t, h, w, clips.shape[-1], config.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3)), shape)
        bias = self.param("bias", nn.initializers.zeros, (config.width,))
        kernel = kernel.reshape(-1, config.width).astype(dtype)
        return flat_product(patches.astype(dtype), kernel) + bias.astype(dtype)


Table = Float[Array, "N D"]


@dataclass(frozen=True)
class PositionEmbedding:
    """A registered kind of position embedding.

    table: (module, lengths of the axes, width) -> one row per position, in row-major order. The
        module is the Flax module that owns the parameters: `module.param(name, init, shape)`.
    learned: whether the table is made of parameters; a class token then has a learned row as well,
        and a row of zeros otherwise.
    even_width: whether the width must be even.
    """

    table: Callable[[nn.Module, tuple[int, ...], int], Table]
    learned: bool
    even_width: bool = False


POSITION_EMBEDDINGS: Registry[PositionEmbedding] = Registry("position embedding")


def position_embedding(name: str, *, learned: bool, even_width: bool = False):
    """Returns a decorator that registers a function as the table of a position embedding."""

    def register(table):
        POSITION_EMBEDDINGS.add(name, PositionEmbedding(table, learned, even_width))
        return table

    return register


def _parameter(module: Any, name: str, length: int, width: int) -> Table:
    return module.param(name, nn.initializers.normal(0.02), (length, width))


@position_embedding("learned", learned=True)
def learned(module: nn.Module, lengths: tuple[int, ...], width: int) -> Table:
    """One parameter per position; ViT (2010.11929), section 3.1."""
    return _parameter(module, "table", int(np.prod(lengths)), width)


@position_embedding("learned_separable", learned=True)
def learned_separable(module: nn.Module, lengths: tuple[int, ...], width: int) -> Table:
    """The sum of one table per axis."""
    return _sum_over_axes(
        [_parameter(module, f"table_{axis}", n, width) for axis, n in enumerate(lengths)]
    )


@position_embedding("learned_space_time", learned=True)
def learned_space_time(module: nn.Module, lengths: tuple[int, ...], width: int) -> Table:
    """One table over spatial tokens and one over time steps, as TimeSformer's (2102.05095)."""
    steps, space = lengths[: len(lengths) % 2], lengths[len(lengths) % 2 :]
    tables = [_parameter(module, "time", steps[0], width)] if steps else []
    if space:
        tables.append(_parameter(module, "space", int(np.prod(space)), width))
    return _sum_over_axes(tables)


def sinusoids(length: int, width: int) -> Float[np.ndarray, "N D"]:
    """Returns a fixed sine and cosine table; Vaswani et al. (1706.03762), section 3.5.

    The sines fill the first half of the channels and the cosines the second.
    """
    frequencies = 10_000.0 ** (-np.arange(width // 2) / (width // 2))
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


@position_embedding("sinusoidal", learned=False, even_width=True)
def sinusoidal(module: nn.Module, lengths: tuple[int, ...], width: int) -> Table:
    """Fixed sines and cosines of the position in row-major order."""
    return jnp.asarray(sinusoids(int(np.prod(lengths)), width))


@position_embedding("sinusoidal_interleaved", learned=False, even_width=True)
def sinusoidal_interleaved(module: nn.Module, lengths: tuple[int, ...], width: int) -> Table:
    """`sinusoidal` with sines in the even and cosines in the odd channels, as VideoMAE has it."""
    halves = sinusoids(int(np.prod(lengths)), width).reshape(-1, 2, width // 2)
    return jnp.asarray(rearrange(halves, "N two D -> N (D two)"))


@position_embedding("sinusoidal_separable", learned=False, even_width=True)
def sinusoidal_separable(module: nn.Module, lengths: tuple[int, ...], width: int) -> Table:
    """Each axis has its own part of the channels; the first axes take what does not divide."""
    pairs = np.array_split(np.arange(width // 2), len(lengths))
    sizes = [2 * len(part) for part in pairs]
    starts = np.cumsum([0, *sizes[:-1]])
    tables = [
        np.pad(sinusoids(n, size), ((0, 0), (start, width - start - size)))
        for n, size, start in zip(lengths, sizes, starts, strict=True)
    ]
    return _sum_over_axes([jnp.asarray(table) for table in tables])


@position_embedding("none", learned=False)
def none(module: nn.Module, lengths: tuple[int, ...], width: int) -> Table:
    """Zeros."""
    return jnp.zeros((int(np.prod(lengths)), width))


def _sum_over_axes(tables: list[Any]) -> Table:
    """Returns the outer sum of one table per axis, in row-major order of the axes."""
    total = tables[0]
    for table in tables[1:]:
        total = (total[:, None] + table[None]).reshape(-1, table.shape[-1])
    return total


class Position(nn.Module):
    """Position embeddings [N, D] of the axes that start in stage i, or [1 + N, D] with a class
    token."""

    config: ModelConfig
    i: int

    @nn.compact
    def __call__(self) -> Table:
        kind, stage = self.config.position, self.config.stages[self.i]
        table = kind.table(self, stage.lengths, self.config.width)
        if not stage.layout.class_token:
            return table
        row = jnp.zeros((1, self.config.width))
        if kind.learned:
            row = _parameter(self, "class_token", 1, self.config.width)
        return jnp.concatenate([row, table])


def on_grid(table: Table, axes: str, shape: tuple[int, int]) -> Float[Array, "1 #T #S D"]:
    """Returns a table of the axes "t", "s" or "ts" as a grid that broadcasts over the others.

    shape: T and S of the whole grid.
    """
    shapes = {"t": (1, -1, 1), "s": (1, 1, -1), "ts": (1, *shape)}
    return table.reshape(*shapes[axes], table.shape[-1])
