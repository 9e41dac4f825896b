"""The Flax modules of a video transformer. They own parameters; attention's maths is elsewhere.

Dropout and drop path are active where `apply` is given a "dropout" rng, and nowhere else.
Names of submodules are checkpoint format.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Shaped

from vivit.attention import KERNELS, PATTERNS
from vivit.axes import Clips, Grid, NewGrid
from vivit.registry import Registry

NORM_EPSILON = 1e-6  # as Scenic and the ViT code; flax's own default is the same, by chance

# The collection of activations that vivit.analysis asks for: queries and keys of every attention,
# and what a stage pools. Nothing is kept where it is not asked for.
CAPTURED = "attention"

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


class Tubelet(nn.Module):
    """Tokens `[B, T, S, D]` of clips: one linear map of each (time, height, width) tubelet.

    A convolution whose stride is its size is a matrix product of patches, and much faster so on
    CPUs. The kernel has the convolution's shape [t, h, w, C, D].
    """

    size: tuple[int, int, int]
    width: int
    embedding: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, clips: Clips) -> Grid:
        t, h, w = self.size
        sample = SAMPLERS[self.embedding]
        seen = jnp.asarray(sample(clips, t))
        t = t if sample is keep_all_frames else 1
        if seen.dtype == jnp.uint8:
            seen = seen.astype(self.dtype) / 127.5 - 1
        patches = rearrange(seen, "B (T t) (Y h) (X w) C -> B T (Y X) (t h w C)", t=t, h=h, w=w)
        shape = (t, h, w, clips.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3)), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        kernel = kernel.reshape(-1, self.width).astype(self.dtype)
        return patches.astype(self.dtype) @ kernel + bias.astype(self.dtype)


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


def _sinusoidal(module, lengths: tuple[int, ...], width: int) -> Float[Array, "N D"]:
    return jnp.asarray(sinusoids(int(np.prod(lengths)), width))


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
POSITIONS.add("sinusoidal", _sinusoidal)
POSITIONS.add("sinusoidal_separable", _sinusoidal_separable)
POSITIONS.add("none", _none)


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


def _latest(_, new):
    return new


class SelfAttention(nn.Module):
    """Multi-head self-attention of a grid, over the sets of `pattern`, by `kernel`."""

    heads: int
    pattern: str
    kernel: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Grid) -> Grid:
        width = x.shape[-1]
        project = partial(
            nn.DenseGeneral,
            features=(self.heads, width // self.heads),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
        )
        q, k, v = (project(name=name)(x) for name in ("query", "key", "value"))  # [B, T, S, h, k]
        for name, value in () if self.is_initializing() else (("queries", q), ("keys", k)):
            self.sow(CAPTURED, name, value, reduce_fn=_latest, init_fn=tuple)
        out = PATTERNS[self.pattern].mix(q, k, v, KERNELS[self.kernel])
        return nn.DenseGeneral(
            width,
            axis=(-2, -1),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            name="out",
        )(out)


class Mlp(nn.Module):
    """Two dense layers with a tanh-approximated gelu between them."""

    hidden: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Grid) -> Grid:
        dense = partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        width = x.shape[-1]
        x = nn.gelu(dense(self.hidden, name="up")(x), approximate=True)
        x = Dropout(self.dropout)(x)
        return dense(width, name="down")(x)


class Block(nn.Module):
    """A pre-LN transformer block: one residual branch a mixer, then one for the MLP.

    Scans need a carry and an output, so it returns (x, None). `fraction` is the layer's depth in
    the encoder, from 0 to 1; it scales the drop path.
    """

    mixers: tuple[str, ...]
    heads: int
    mlp_dim: int
    kernel: str
    drop_path: float
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Grid, fraction: float | Float[Array, ""]) -> tuple[Grid, None]:
        branches = [
            (
                name,
                SelfAttention(self.heads, name, self.kernel, self.dtype, name=f"attention_{name}"),
            )
            for name in self.mixers
        ]
        branches.append(("mlp", Mlp(self.mlp_dim, self.dropout, self.dtype, name="mlp")))
        for name, branch in branches:
            norm = nn.LayerNorm(NORM_EPSILON, dtype=jnp.float32, name=f"norm_{name}")
            y = Dropout(self.dropout)(branch(norm(x)))
            x = x + DropPath(self.drop_path, name=f"drop_path_{name}")(y, fraction)
        return x, None


REMAT: Registry[Callable[..., type[nn.Module]]] = Registry("remat")
REMAT.add("none", lambda module, **_: module)
REMAT.add("full", nn.remat)
REMAT.add(
    "dots",
    partial(nn.remat, policy=jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims),
)


class Stage(nn.Module):
    """Some equal blocks over one grid, with what they start with and end with.

    lengths: of the axes whose position embedding starts here; () for none. They are the trailing
        or the leading axes of the grid, and broadcast over the others.
    class_token: "" for none, or the grid axis that it is put on, at index 0: "s" or "t", or "ts"
        for one token a clip, which makes the grid one step [B, 1, 1 + T·S, D].
    pool: "" or a name of POOLS, over `pool_axes` ("s", "t" or "ts"); a norm stands before it.
    """

    depth: int
    mixers: tuple[str, ...]
    pool: str
    pool_axes: str
    class_token: str
    lengths: tuple[int, ...]
    position_axes: str
    position: str
    first_layer: int
    total_layers: int
    heads: int
    mlp_dim: int
    kernel: str
    drop_path: float
    dropout: float
    scan: bool
    remat: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Grid) -> NewGrid:
        x = self._add_class_token_and_position(x)
        x = self._blocks(x)
        if self.pool:
            if self.depth:
                x = nn.LayerNorm(NORM_EPSILON, dtype=jnp.float32, name="norm")(x)
            if not self.is_initializing():
                self.sow(CAPTURED, "pooled", x, reduce_fn=_latest, init_fn=tuple)
            x = POOLS[self.pool](x, self.pool_axes)
        return x

    def _add_class_token_and_position(self, x: Grid) -> NewGrid:
        b, t, s, d = x.shape
        if self.class_token:
            token = self.param("class_token", nn.initializers.zeros, (1, 1, 1, d)).astype(x.dtype)
            if self.class_token == "ts":
                x = x.reshape(b, 1, t * s, d)
            b, t, s, _ = x.shape
            by_step = self.class_token == "t"
            shape = (b, 1, s, d) if by_step else (b, t, 1, d)
            x = jnp.concatenate([jnp.broadcast_to(token, shape), x], axis=1 if by_step else 2)
        if self.lengths:
            table = Position(self.position, self.lengths, bool(self.class_token), name="position")(
                d
            )
            x = x + on_grid(table, self.position_axes, x).astype(x.dtype)
            x = Dropout(self.dropout)(x)
        return x

    def _blocks(self, x: Grid) -> Grid:
        fields = ("mixers", "heads", "mlp_dim", "kernel", "drop_path", "dropout", "dtype")
        arguments = {name: getattr(self, name) for name in fields}
        fractions = np.arange(self.first_layer, self.first_layer + self.depth, dtype=np.float32)
        fractions = fractions / max(self.total_layers - 1, 1)
        if self.scan and self.depth:
            block = REMAT[self.remat](Block, prevent_cse=False)
            layers = nn.scan(
                block,
                variable_axes={"params": 0, CAPTURED: 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
            return layers(**arguments, name="layers")(x, jnp.asarray(fractions))[0]
        block = REMAT[self.remat](Block)
        for layer, fraction in enumerate(fractions):
            x, _ = block(**arguments, name=f"layer_{layer}")(x, float(fraction))
        return x


def on_grid(table: Float[Array, "N D"], axes: str, grid: Grid) -> Float[Array, "1 #T #S D"]:
    """A position table as a grid that broadcasts over the axes that it does not span."""
    _, t, s, d = grid.shape
    shape = {"t": (1, -1, 1, d), "s": (1, 1, -1, d), "ts": (1, t, s, d)}
    return table.reshape(shape[axes])


POOLS: Registry[Callable[[Grid, str], NewGrid]] = Registry("readout")


def _reduce(reduce: Callable, x: Grid, axes: str) -> NewGrid:
    return reduce(x, axis=tuple("ts".index(axis) + 1 for axis in axes), keepdims=True)


@POOLS.register("cls")
def take_class_token(x: Grid, axes: str) -> NewGrid:
    """The class token, which stands first on its axes."""
    return x[:, : 1 if "t" in axes else None, : 1 if "s" in axes else None]


POOLS.add("mean", partial(_reduce, jnp.mean))
POOLS.add("max", partial(_reduce, jnp.max))
