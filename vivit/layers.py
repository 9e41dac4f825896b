"""The Flax modules of a video transformer. They own parameters; attention's maths is elsewhere.

Dropout and drop path are active where `apply` is given a "dropout" rng, and nowhere else.
Names of submodules are checkpoint format.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Shaped

from vivit.attention import Pattern
from vivit.attention.ring import SEQUENCE
from vivit.axes import Clips, Grid
from vivit.registry import Registry

SampledClips = Shaped[Array | np.ndarray, "B F2 H W C"]
SAMPLERS: Registry[Callable[[Clips, int], SampledClips]] = Registry("embedding")


@SAMPLERS.register("tubelet")
def keep_all_frames(clips: Clips, frames: int) -> SampledClips:
    """A 3D convolution over all the frames; ViViT (2103.15691), section 3.2, tubelet embedding."""
    return clips


@SAMPLERS.register("uniform_frames")
def keep_central_frames(clips: Clips, frames: int) -> SampledClips:
    """One frame of each `frames`, the central one; ViViT, section 3.2, uniform frame sampling."""
    return clips[:, frames // 2 :: frames]


def flat_product(x: Array, kernel: Array) -> Array:
    """x [..., D] times a kernel [D, M], as one product of two matrices.

    With the leading axes kept, XLA's CPU backend takes 1.5 times as long for an MLP's forward and
    backward pass (docs/attention.md). Where tokens are split over devices they are kept: merged,
    the axes of clips and steps could not be split each on its own.
    """
    if SEQUENCE in jax.sharding.get_abstract_mesh().axis_names:
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """A linear map of the last axes of x, `inputs` of them, to `features`.

    Parameters and their initial values are those of Flax's DenseGeneral.
    """

    features: tuple[int, ...]
    dtype: jnp.dtype
    inputs: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.xavier_uniform()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "B T S ..."]) -> Float[Array, "B T S ..."]:
        places = x.shape[: x.ndim - self.inputs]
        shape = (*x.shape[x.ndim - self.inputs :], *self.features)
        flat = (math.prod(shape[: self.inputs]), math.prod(self.features))
        init = lambda key, _: self.kernel_init(key, flat).reshape(shape)
        kernel = self.param("kernel", init, shape).reshape(flat).astype(self.dtype)
        out = flat_product(x.reshape(*places, -1).astype(self.dtype), kernel)
        out = out.reshape(*places, *self.features)
        if not self.use_bias:
            return out
        return out + self.param("bias", self.bias_init, self.features).astype(self.dtype)


class Tubelet(nn.Module):
    """Tokens `[B, T, S, D]` of clips: one linear map of each (time, height, width) tubelet.

    A convolution whose stride is its size is a matrix product of patches, and much faster so on
    CPUs. The kernel has the convolution's shape [t, h, w, C, D]. uint8 clips become
    (x / 255 - mean) / std, which is [-1, 1] at the defaults.
    """

    size: tuple[int, int, int]
    width: int
    embedding: str
    dtype: jnp.dtype
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @nn.compact
    def __call__(self, clips: Clips) -> Grid:
        t, h, w = self.size
        sample = SAMPLERS[self.embedding]
        seen = jnp.asarray(sample(clips, t))
        t = t if sample is keep_all_frames else 1
        if seen.dtype == jnp.uint8:
            mean, std = np.array(self.pixel_mean), np.array(self.pixel_std)
            scale, shift = (255 * std).astype(self.dtype), (mean / std).astype(self.dtype)
            seen = seen.astype(self.dtype) / scale - shift
        patches = rearrange(seen, "B (T t) (Y h) (X w) C -> B T (Y X) (t h w C)", t=t, h=h, w=w)
        shape = (t, h, w, clips.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3)), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        kernel = kernel.reshape(-1, self.width).astype(self.dtype)
        return flat_product(patches.astype(self.dtype), kernel) + bias.astype(self.dtype)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Fixed sine and cosine table [length, width]; Vaswani et al. (1706.03762), section 3.5.

    The sines fill the first half of the channels and the cosines the second.
    """
    frequencies = 10_000.0 ** (-np.arange(width // 2) / (width // 2))
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def _learned(module: nn.Module, lengths: tuple[int, ...], width: int) -> Float[Array, "N D"]:
    n = int(np.prod(lengths))
    return module.param("table", nn.initializers.normal(0.02), (n, width))


def _learned_separable(module, lengths: tuple[int, ...], width: int) -> Float[Array, "N D"]:
    tables = [
        module.param(f"table_{axis}", nn.initializers.normal(0.02), (n, width))
        for axis, n in enumerate(lengths)
    ]
    return _sum_over_axes(tables)


def _learned_space_time(module, lengths: tuple[int, ...], width: int) -> Float[Array, "N D"]:
    """One table over a step's places and one over steps, as TimeSformer's (2102.05095)."""
    table = lambda name, n: module.param(name, nn.initializers.normal(0.02), (n, width))
    steps, places = lengths[: len(lengths) % 2], lengths[len(lengths) % 2 :]
    tables = [table("time", steps[0])] if steps else []
    return _sum_over_axes(tables + ([table("space", int(np.prod(places)))] if places else []))


def _sinusoidal(module, lengths: tuple[int, ...], width: int) -> Float[Array, "N D"]:
    return jnp.asarray(sinusoids(int(np.prod(lengths)), width))


def _sinusoidal_interleaved(module, lengths: tuple[int, ...], width: int) -> Float[Array, "N D"]:
    """The same table with sines in the even and cosines in the odd channels, as VideoMAE has it."""
    halves = sinusoids(int(np.prod(lengths)), width).reshape(-1, 2, width // 2)
    return jnp.asarray(rearrange(halves, "N two D -> N (D two)"))


def _sinusoidal_separable(module, lengths: tuple[int, ...], width: int) -> Float[Array, "N D"]:
    """Each axis has its own share of the channels; the first axes take what does not divide."""
    pairs = np.array_split(np.arange(width // 2), len(lengths))
    offsets = [2 * len(part) for part in pairs]
    starts = np.cumsum([0, *offsets[:-1]])
    tables = [
        np.pad(sinusoids(n, size), ((0, 0), (start, width - start - size)))
        for n, size, start in zip(lengths, offsets, starts, strict=True)
    ]
    return _sum_over_axes([jnp.asarray(table) for table in tables])


def _none(module, lengths: tuple[int, ...], width: int) -> Float[Array, "N D"]:
    return jnp.zeros((int(np.prod(lengths)), width))


def _sum_over_axes(tables: list) -> Float[Array, "N D"]:
    """Outer sum of per-axis tables, in row-major order of the axes."""
    total = tables[0]
    for table in tables[1:]:
        total = (total[:, None] + table[None]).reshape(-1, table.shape[-1])
    return total


POSITIONS: Registry[Callable[..., Float[Array, "N D"]]] = Registry("position embedding")
POSITIONS.add("learned", _learned)
POSITIONS.add("learned_separable", _learned_separable)
POSITIONS.add("learned_space_time", _learned_space_time)
POSITIONS.add("sinusoidal", _sinusoidal)
POSITIONS.add("sinusoidal_interleaved", _sinusoidal_interleaved)
POSITIONS.add("sinusoidal_separable", _sinusoidal_separable)
POSITIONS.add("none", _none)


@dataclass(frozen=True)
class Layout:
    """A stage's grid: its steps, rows and columns, and the tokens beside those of the clip.

    extra: the grid axis whose first places are class token and registers: "s" or "t", "ts" for a
        grid that they make one step [B, 1, extra + T·S], "" for none.
    tied: they are one for all steps of the clip; see `tie`.
    """

    steps: int
    space: tuple[int, int]
    extra: str = ""
    class_token: bool = False
    registers: int = 0
    tied: bool = False

    @property
    def prefix(self) -> int:
        return int(self.class_token) + self.registers

    def seen_by(self, pattern: Pattern) -> "Layout":
        """The grid that an attention of this pattern gets."""
        leaves_out = self.tied and pattern.tied_class_token
        return Layout(self.steps, self.space) if leaves_out else self

    def without_extra(
        self, x: Array, *, axes: tuple[int, int] = (1, 2), by_step: bool = True
    ) -> Array:
        """An array whose `axes` are this grid, on the clip's own.

        by_step: give a grid that the extra tokens made one step its steps back.
        """
        t_axis, s_axis = axes
        if not self.extra:
            return x
        axis = t_axis if self.extra == "t" else s_axis
        x = jax.lax.slice_in_dim(x, self.prefix, None, axis=axis)
        if self.extra == "ts" and by_step:
            x = jnp.squeeze(x, axis=t_axis)
            x = x.reshape(*x.shape[:t_axis], self.steps, -1, *x.shape[t_axis + 1 :])
        return x

    def positions(self) -> Float[np.ndarray, "T S 3"]:
        """(t, y, x) of every token, 0 for the extra ones."""
        places = np.meshgrid(*map(np.arange, (self.steps, *self.space)), indexing="ij")
        table = np.stack(places, axis=-1).reshape(self.steps, -1, 3).astype(np.float32)
        if self.extra == "ts":
            table = table.reshape(1, -1, 3)
        before = (self.prefix, 0)
        by_axis = {"": ((0, 0), (0, 0)), "t": (before, (0, 0))}
        return np.pad(table, (*by_axis.get(self.extra, ((0, 0), before)), (0, 0)))


class Position(nn.Module):
    """Position embeddings [N, D] of the axes with these lengths, or [1 + N, D] with a class token.

    A class token's row is learned under every learned kind and zero under the fixed ones.
    """

    kind: str
    lengths: tuple[int, ...]
    class_token: bool

    @nn.compact
    def __call__(self, width: int) -> Float[Array, "N D"]:
        table = POSITIONS[self.kind](self, self.lengths, width)
        if not self.class_token:
            return table
        learned = self.kind.startswith("learned")
        init = nn.initializers.normal(0.02)
        row = self.param("class_token", init, (1, width)) if learned else jnp.zeros((1, width))
        return jnp.concatenate([row, table])


def on_grid(table: Float[Array, "N D"], axes: str, grid: Grid) -> Float[Array, "1 #T #S D"]:
    """A position table as a grid that broadcasts over the axes that it does not span."""
    _, t, s, d = grid.shape
    shape = {"t": (1, -1, 1, d), "s": (1, 1, -1, d), "ts": (1, t, s, d)}
    return table.reshape(shape[axes])


class DropPath(nn.Module):
    """Drops a residual branch for whole clips and rescales the others, so the mean is kept.

    Stochastic depth (1603.09382) as timm's drop path; Scenic's is not rescaled.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Grid, fraction: float | Float[Array, ""] = 1.0) -> Grid:
        if self.rate == 0 or not self.has_rng("dropout"):
            return x
        keep = 1 - self.rate * fraction
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return x * (kept / keep).astype(x.dtype)


class Dropout(nn.Module):
    """Dropout that is active where there is a "dropout" rng."""

    rate: float

    @nn.compact
    def __call__(self, x: Grid) -> Grid:
        return nn.Dropout(self.rate, deterministic=not self.has_rng("dropout"))(x)


ACTIVATIONS: Registry[Callable[[Array], Array]] = Registry("activation")
ACTIVATIONS.add("gelu_tanh", partial(nn.gelu, approximate=True))
ACTIVATIONS.add("gelu", partial(nn.gelu, approximate=False))
ACTIVATIONS.add("quick_gelu", lambda x: x * nn.sigmoid(1.702 * x))
ACTIVATIONS.add("relu", nn.relu)
ACTIVATIONS.add("silu", nn.silu)


class Mlp(nn.Module):
    """Two dense layers with an activation between them; `features` wide if given, else as x."""

    hidden: int
    activation: str
    dropout: float
    dtype: jnp.dtype
    features: int | None = None

    @nn.compact
    def __call__(self, x: Grid) -> Float[Array, "B T S features"]:
        dense = partial(Dense, dtype=self.dtype, bias_init=nn.initializers.normal(1e-6))
        features = self.features or x.shape[-1]
        x = ACTIVATIONS[self.activation](dense((self.hidden,), name="up")(x))
        x = Dropout(self.dropout)(x)
        return dense((features,), name="down")(x)
