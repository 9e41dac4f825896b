"""Patterns: which tokens of a space-time grid meet.

A pattern takes queries, keys and values `[B, T, S, h, k]` and a kernel, hands the kernel sets of
tokens that attend to each other, and puts what comes back on the grid. It must be linear in the
values and may give them another number of channels than the keys: `vivit.analysis` reads the
attention weights off any pattern by passing it values of its own.

A config names a pattern, with options where it has any: "window", "window(4, 7, 7)" or
"window(rows=5)". Docstrings end with pictures of a small grid, its steps side by side: Q is a query
that sees itself and every #, q one that sees every # but not itself. Tests hold every pattern to
its picture.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from vivit.attention.kernels import Kernel
from vivit.axes import HeadGrid, KeyGrid, MixedGrid, ValueGrid
from vivit.registry import OptionRegistry, Options

# What a pattern may ask to be told, by a keyword-only argument of that name.
TOLD = ("space", "layer", "values")
Attend = Kernel | Callable[..., Any]


@dataclass(frozen=True)
class Pattern:
    """A registered pattern and what a model must know of it.

    name: without options. axes: the grid axes along which it mixes tokens: "t", "s" or "ts".
    class_token: whether class tokens and registers may stand among the tokens that meet.
    heads_multiple: the number of heads must be a multiple of this.
    asks: what it hands a kernel beside tokens: "bias", "mask".
    scores: (t, y, x, **options) -> scores of one head and clip.
    check: (t, y, x, **options) raises ValueError where it can't work on that grid.
    parameters: (heads, channels, **options) -> name -> (shape, name of an initialiser); `mix`
        gets them as keyword-only arguments.
    projections: dense layers after the attention. tied_class_token: it leaves out a class token
        that the clip's steps share, which the other patterns of its block mix.
    over_devices: whether its sets can be split over devices at all.
    follows_places: whether a token meets its own place in other steps as such; those that mix
        along "t" alone always do.
    """

    name: str
    mix: Callable[..., MixedGrid]
    axes: str
    class_token: bool = False
    heads_multiple: int = 1
    asks: tuple[str, ...] = ()
    scores: Callable[..., int] | None = None
    check: Callable[..., None] = lambda t, y, x, **options: None
    parameters: Callable[..., Mapping[str, tuple]] = lambda heads, channels, **options: {}
    projections: int = 1
    tied_class_token: bool = False
    over_devices: bool = True
    follows_places: bool = False
    options: Options = field(default_factory=Options)

    def __call__(
        self, q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, **told: Any
    ) -> MixedGrid:
        """Mixes; of what it is told (`TOLD` and its parameters) it takes what it asks for."""
        wanted = {name: told[name] for name in self.needs if name in told}
        return self.mix(q, k, v, attend, **wanted, **self.options)

    @property
    def needs(self) -> list[str]:
        """Keyword-only arguments of `mix` that are no options."""
        return [name for name in _keywords(self.mix) if name not in self.options]


def _keywords(function: Callable) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


PATTERNS: OptionRegistry[Pattern] = OptionRegistry("attention pattern")


def pattern(name: str, *, axes: str = "ts", **known: Any):
    """Registers the decorated function as a pattern; any config may then name it.

    `known` are further fields of `Pattern`. The function's keyword-only arguments are what it
    wants to be told (`TOLD`: the rows and columns of a step, the layer's number, and the values
    that weights are made from), its parameters, and for the rest options with defaults.
    """
    if axes not in ("t", "s", "ts"):
        raise ValueError(f'{axes=} of pattern {name!r} must be "t", "s" or "ts"')

    def register(mix):
        options = {
            name: default
            for name, default in _keywords(mix).items()
            if default is not inspect.Parameter.empty and name not in TOLD
        }
        PATTERNS.add(name, Pattern(name, mix, axes, options=Options(options), **known))
        return mix

    return register


@pattern("joint", class_token=True, scores=lambda t, y, x: (t * y * x) ** 2)
def joint(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """Every token meets every token of the clip: (T·S)² scores. ViViT (2103.15691), model 1.

    Q of `joint` sees #:

        Q # | # #
        # # | # #
    """
    steps = q.shape[1]
    q, k, v = (rearrange(x, "B T S h k -> B (T S) h k") for x in (q, k, v))
    return rearrange(attend(q, k, v), "B (T S) h k -> B T S h k", T=steps)


@pattern("space", axes="s", class_token=True, scores=lambda t, y, x: t * (y * x) ** 2)
def space(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """Tokens of one step meet: T·S² scores. ViViT (2103.15691), models 2 and 3.

    Q of `space` sees #:

        Q # | . .
        # # | . .
    """
    return attend(q, k, v)


@pattern("time", axes="t", class_token=True, scores=lambda t, y, x: y * x * t**2)
def time(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """Tokens of one place meet: S·T² scores. ViViT (2103.15691), models 2 and 3.

    Q of `time` sees #:

        Q . | # .
        . . | . .
    """
    q, k, v = (rearrange(x, "B T S h k -> B S T h k") for x in (q, k, v))
    return rearrange(attend(q, k, v), "B S T h k -> B T S h k")


@pattern(
    "divided_time",
    axes="t",
    scores=lambda t, y, x: y * x * t**2,
    projections=2,
    tied_class_token=True,
)
def divided_time(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """`time` as TimeSformer has it: S·T² scores. TimeSformer (2102.05095), section 3.

    A second dense layer follows the output's (its released code's temporal_fc, which starts at
    zero), and the clip's class token takes no part.

    Q of `divided_time` sees #:

        Q . | # .
        . . | . .
    """
    return time(q, k, v, attend)


@pattern(
    "split_heads",
    heads_multiple=2,
    follows_places=True,
    scores=lambda t, y, x: (t * (y * x) ** 2 + y * x * t**2) // 2,
)
def split_heads(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """The first half of the heads attends over time, the second over space.

    (T·S² + S·T²)/2 scores. ViViT (2103.15691), model 4; the order of the halves is Scenic's.

    Q of `split_heads` in head 0 sees #:

        Q . | # .
        . . | . .

    Q of `split_heads` in head 1 sees #:

        Q # | . .
        # # | . .
    """
    first, second = zip(*(jnp.split(x, 2, axis=3) for x in (q, k, v)), strict=True)
    return jnp.concatenate([time(*first, attend), space(*second, attend)], axis=3)


@pattern("height", axes="s", scores=lambda t, y, x: t * x * y**2)
def height(
    q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, space: tuple[int, int]
) -> MixedGrid:
    """Tokens of one column of a step meet: T·X·Y² scores. Axial attention (1912.12180), section 3.

    Q of `height` sees #:

        Q . | . .
        # . | . .
    """
    rows, columns = space
    q, k, v = (rearrange(x, "B T (Y X) h k -> B (T X) Y h k", Y=rows) for x in (q, k, v))
    return rearrange(attend(q, k, v), "B (T X) Y h k -> B T (Y X) h k", X=columns)


@pattern("width", axes="s", scores=lambda t, y, x: t * y * x**2)
def width(
    q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, space: tuple[int, int]
) -> MixedGrid:
    """Tokens of one row of a step meet: T·Y·X² scores. Axial attention (1912.12180), section 3.

    Q of `width` sees #:

        Q # | . .
        . . | . .
    """
    rows, _ = space
    q, k, v = (rearrange(x, "B T (Y X) h k -> B (T Y) X h k", Y=rows) for x in (q, k, v))
    return rearrange(attend(q, k, v), "B (T Y) X h k -> B T (Y X) h k", Y=rows)


@pattern(
    "causal_time", axes="t", asks=("mask",), scores=lambda t, y, x: y * x * t * (t + 1) // 2
)  # fmt: skip
def causal_time(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """Tokens of one place see their own step and earlier ones: S·T·(T+1)/2 scores.

    For streaming: a step's result does not change when later steps arrive. The causal mask is
    that of Vaswani et al. (1706.03762), section 3.2.3.

    Q of `causal_time` sees #:

        # . | Q . | . .
        . . | . . | . .
    """
    steps = q.shape[1]
    mask = np.tril(np.ones((steps, steps), bool))

    def attend_to_the_past(q, k, v):
        return attend(q, k, v, mask=jnp.asarray(mask))

    return time(q, k, v, attend_to_the_past)


@pattern(
    "dilated_time",
    axes="t",
    asks=("mask",),
    scores=lambda t, y, x, stride: y * x * sum(-(-(t - i % stride) // stride) for i in range(t)),
    check=lambda t, y, x, stride: _check_stride("dilated_time", stride, t),
)
def dilated_time(
    q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, stride: int = 2
) -> MixedGrid:
    """Tokens of one place meet if their steps are a multiple of `stride` apart: S·T²/stride scores.

    The strided pattern of Sparse Transformers (1904.10509), section 4.3, along time.

    Q of `dilated_time(2)` sees #:

        # . | . . | Q . | . .
        . . | . . | . . | . .
    """
    steps = q.shape[1]
    mask = None
    if steps % stride:
        more = [(0, 0), (0, -steps % stride), (0, 0), (0, 0), (0, 0)]
        q, k, v = (jnp.pad(x, more) for x in (q, k, v))
        real = rearrange(np.arange(q.shape[1]) < steps, "(T a) -> a T", a=stride)
        mask = jnp.asarray(np.repeat(real, q.shape[2], axis=0)[:, None, None, :])
    q, k, v = (rearrange(x, "B (T a) S h k -> B (a S) T h k", a=stride) for x in (q, k, v))
    out = attend(q, k, v) if mask is None else attend(q, k, v, mask=mask)
    return rearrange(out, "B (a S) T h k -> B (T a) S h k", a=stride)[:, :steps]


@pattern(
    "strided_time",
    axes="t",
    scores=lambda t, y, x, stride: y * x * t * -(-t // stride),
    check=lambda t, y, x, stride: _check_stride("strided_time", stride, t),
)
def strided_time(
    q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, stride: int = 2
) -> MixedGrid:
    """Tokens of one place see steps 0, stride, 2·stride, ...: S·T²/stride scores.

    Keys and values are subsampled and queries are not, as in PVT's spatial reduction
    (2102.12122, section 3.3) with a plain stride for its reduction.

    q of `strided_time(2)` sees #:

        # . | q . | # . | . .
        . . | . . | . . | . .
    """
    q, k, v = (rearrange(x, "B T S h k -> B S T h k") for x in (q, k, v))
    out = attend(q, k[:, :, ::stride], v[:, :, ::stride])
    return rearrange(out, "B S T h k -> B T S h k")


def _check_stride(name: str, stride: int, steps: int) -> None:
    if stride > steps:
        raise ValueError(f"{stride=} of {name!r} is larger than the grid's {steps} steps")


def _trajectory_parameters(heads: int, channels: int) -> dict[str, tuple]:
    names = [f"trajectory_{name}" for name in ("query", "key", "value")]
    kernels = {f"{n}_kernel": ((heads * channels, heads, channels), "xavier") for n in names}
    return kernels | {f"{n}_bias": ((heads, channels), "zeros") for n in names}


@pattern(
    "trajectory",
    scores=lambda t, y, x: (t * y * x) ** 2 + t * y * x * t,
    parameters=_trajectory_parameters,
    over_devices=False,
)
def trajectory(
    q: HeadGrid,
    k: KeyGrid,
    v: ValueGrid,
    attend: Attend,
    *,
    trajectory_query_kernel: Float[Array, "D h k"],
    trajectory_key_kernel: Float[Array, "D h k"],
    trajectory_value_kernel: Float[Array, "D h k"],
    trajectory_query_bias: Float[Array, "h k"],
    trajectory_key_bias: Float[Array, "h k"],
    trajectory_value_bias: Float[Array, "h k"],
    values: KeyGrid | None = None,
) -> MixedGrid:
    """Each token pools every step for itself, then attends over its T pools: (T·S)² + T²·S scores.

    Motionformer (2106.05392), section 3.2, equations 2 to 4, exactly (not its Orthoformer
    approximation). Of the two published readings this is the released code's: the second
    attention's projections are full D x D maps with biases over all heads' channels, and its
    query is the pool of the token's own step; the paper's equations can also be read as maps
    k x k within each head.

    values: of the forward pass, where `v` is something else (analysis); the second attention's
    weights come from them, and its value projection is then left out, as it mixes heads.

    Q of `trajectory` sees #:

        Q # | # #
        # # | # #
    """
    b, t, _, h, _ = q.shape
    queries = rearrange(q, "B T S h k -> B 1 (T S) h k")
    queries = jnp.broadcast_to(queries, (b, t, *queries.shape[2:]))

    def pool(v):  # [B, T, S, U, h, c]: what each token pools of each step U
        return rearrange(attend(queries, k, v), "B U (T S) h c -> B T S U h c", T=t)

    def project(pools, kernel, bias):
        kernel = kernel.reshape(h, -1, *kernel.shape[1:]).astype(pools.dtype)
        return jnp.einsum("...gc,gchk->...hk", pools, kernel) + bias.astype(pools.dtype)

    pools = pool(v if values is None else values)
    own = jnp.arange(t)[None, :, None, None, None, None]
    query = jnp.take_along_axis(pools, own, axis=3)  # of each token's own step
    query = project(query, trajectory_query_kernel, trajectory_query_bias)
    key = project(pools, trajectory_key_kernel, trajectory_key_bias)
    if values is None:
        value = project(pools, trajectory_value_kernel, trajectory_value_bias)
    else:
        value = pool(v)
    return attend(query, key, value)[:, :, :, 0]
