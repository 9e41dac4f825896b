"""Patterns: which tokens of a space-time grid attend to each other.

A pattern takes queries, keys and values `[B, T, S, h, k]` and a kernel, hands the kernel sets of
tokens that attend to each other, and puts the results back on the grid. It must be linear in the
values and may give them another number of channels than the keys: `vivit.analysis` reads the
attention weights off any pattern by passing it values of its own.

A config names a pattern, with options where it has any: "window", "window(4, 7, 7)" or
"window(rows=5)". Docstrings end with pictures of a small grid, its time steps side by side: Q is a
query that sees itself and every #, q one that sees every # but not itself. Tests compare every
pattern with its picture.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from vivit.attention.kernels import Keys, Mixed, Queries, Values
from vivit.axes import HeadGrid, KeyGrid, MixedGrid, ValueGrid
from vivit.registry import OptionRegistry, Options, keyword_defaults

# What the model can hand to a pattern, by a keyword-only argument of that name: `space`, the rows
# and columns of a time step; `layer`, the index of the layer in its stage; `values` of the forward
# pass, for weights that are made from them.
CONTEXT_ARGS = ("space", "layer", "values")
Attend = Callable[..., Float[Array, "..."]]  # a kernel
Space = tuple[int, int]  # rows and columns of a time step
# Of a pattern's parameters, by name: the shape, and the name of an initialiser.
Parameters = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Pattern:
    """A registered pattern and what a model must know of it.

    name: without options.
    axes: the grid axes along which it mixes tokens: "t", "s" or "ts".
    class_token: whether class tokens and registers may be among the tokens that meet.
    heads_multiple: the number of heads must be a multiple of this.
    kernel_options: what it hands a kernel besides tokens: "bias", "mask".
    scores: (t, y, x, **options) -> scores of one head and clip.
    check: (t, y, x, **options) raises ValueError where it cannot work on that grid.
    parameters: (heads, channels, **options) -> name -> (shape, name of an initialiser); `mix`
        gets them as keyword-only arguments.
    over_devices: whether its sets can be split over devices at all.
    needs_fixed_positions: whether it goes by the positions of tokens, so that it cannot follow a
        reduction that moves them. False for patterns that take a time step's tokens as a set.
    subset: which tokens may be missing: "any", "lines" (whole time steps, or the same places of all
        of them), or "" for a pattern that goes by the whole grid.
    """

    name: str
    mix: Callable[..., MixedGrid]
    axes: str
    class_token: bool = False
    heads_multiple: int = 1
    kernel_options: tuple[str, ...] = ()
    scores: Callable[..., int] | None = None
    check: Callable[..., None] = lambda t, y, x, **options: None
    parameters: Callable[..., Parameters] = lambda heads, channels, **options: {}
    over_devices: bool = True
    needs_fixed_positions: bool = True
    subset: str = ""
    options: Options = field(default_factory=Options)

    def __call__(
        self, q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, **context: Any
    ) -> MixedGrid:
        """Applies the pattern, passing only the keyword arguments that it declares."""
        arguments = {name: context[name] for name in self.context_args if name in context}
        return self.mix(q, k, v, attend, **arguments, **self.options)

    @property
    def context_args(self) -> list[str]:
        """The keyword-only arguments of `mix` that are not options."""
        return [name for name in keyword_defaults(self.mix) if name not in self.options]

    @property
    def follows_values(self) -> bool:
        """Whether its weights depend on the values of the forward pass."""
        return "values" in self.context_args

    @property
    def label(self) -> str:
        """The name as a config writes it, with its options."""
        options = ", ".join(map(str, self.options.values()))
        return f"{self.name}({options})" if options else self.name


PATTERNS: OptionRegistry[Pattern] = OptionRegistry("attention pattern")


def pattern(
    name: str, *, axes: str = "ts", kernel_options: tuple[str, ...] = (), **fields: Any
) -> Callable[[Callable[..., MixedGrid]], Callable[..., MixedGrid]]:
    """Returns a decorator that registers a function as a pattern; any config may then name it.

    fields: further fields of `Pattern`. The function's keyword-only arguments are its context
    (`CONTEXT_ARGS`), its parameters, and for the rest options with defaults.

    Raises ValueError for unknown axes, unknown options of kernels, or an argument without a default
    that is neither context nor a parameter.
    """
    if axes not in ("t", "s", "ts"):
        raise ValueError(f'{axes=} of pattern {name!r} must be "t", "s" or "ts"')
    if set(kernel_options) - {"bias", "mask"}:
        raise ValueError(f'{kernel_options=} of pattern {name!r} must be of "bias" and "mask"')

    def register(mix: Callable[..., MixedGrid]) -> Callable[..., MixedGrid]:
        options = {
            argument: default
            for argument, default in keyword_defaults(mix).items()
            if default is not inspect.Parameter.empty and argument not in CONTEXT_ARGS
        }
        entry = Pattern(
            name, mix, axes, kernel_options=kernel_options, options=Options(options), **fields
        )
        parameters = entry.parameters(entry.heads_multiple, 8, **options)
        unknown = set(entry.context_args) - {*CONTEXT_ARGS, *parameters}
        if unknown:
            raise ValueError(
                f"pattern {name!r} takes {', '.join(sorted(unknown))}; the model gives "
                f"{', '.join((*CONTEXT_ARGS, *parameters))}, and options need a default"
            )
        PATTERNS.add(name, entry)
        return mix

    return register


@pattern(
    "joint", class_token=True, needs_fixed_positions=False, subset="any",
    scores=lambda t, y, x: (t * y * x) ** 2,
)  # fmt: skip
def joint(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """Every token meets every token of the clip: (T·S)² scores. ViViT (2103.15691), model 1.

    Q of `joint` sees #:

        Q # | # #
        # # | # #
    """
    steps = q.shape[1]
    q, k, v = (rearrange(x, "B T S h k -> B (T S) h k") for x in (q, k, v))
    return rearrange(attend(q, k, v), "B (T S) h k -> B T S h k", T=steps)


@pattern(
    "space", axes="s", class_token=True, needs_fixed_positions=False, subset="lines",
    scores=lambda t, y, x: t * (y * x) ** 2,
)  # fmt: skip
def space(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """Tokens of one time step meet: T·S² scores. ViViT (2103.15691), models 2 and 3.

    Q of `space` sees #:

        Q # | . .
        # # | . .
    """
    return attend(q, k, v)


@pattern("time", axes="t", class_token=True, subset="lines", scores=lambda t, y, x: y * x * t**2)
def time(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """Tokens of one position in space meet: S·T² scores. ViViT (2103.15691), models 2 and 3.

    Q of `time` sees #:

        Q . | # .
        . . | . .
    """
    q, k, v = (rearrange(x, "B T S h k -> B S T h k") for x in (q, k, v))
    return rearrange(attend(q, k, v), "B S T h k -> B T S h k")


@pattern(
    "split_heads",
    heads_multiple=2,
    subset="lines",
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
    (q_time, q_space), (k_time, k_space), (v_time, v_space) = (
        jnp.split(x, 2, axis=3) for x in (q, k, v)
    )
    over_time = time(q_time, k_time, v_time, attend)
    return jnp.concatenate([over_time, space(q_space, k_space, v_space, attend)], axis=3)


@pattern("height", axes="s", scores=lambda t, y, x: t * x * y**2)
def height(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, space: Space) -> MixedGrid:
    """Tokens of one column of a time step meet: T·X·Y² scores.

    Axial attention (1912.12180), section 3.

    Q of `height` sees #:

        Q . | . .
        # . | . .
    """
    rows, columns = space
    q, k, v = (rearrange(x, "B T (Y X) h k -> B (T X) Y h k", Y=rows) for x in (q, k, v))
    return rearrange(attend(q, k, v), "B (T X) Y h k -> B T (Y X) h k", X=columns)


@pattern("width", axes="s", scores=lambda t, y, x: t * y * x**2)
def width(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, space: Space) -> MixedGrid:
    """Tokens of one row of a time step meet: T·Y·X² scores.

    Axial attention (1912.12180), section 3.

    Q of `width` sees #:

        Q # | . .
        . . | . .
    """
    rows, _ = space
    q, k, v = (rearrange(x, "B T (Y X) h k -> B (T Y) X h k", Y=rows) for x in (q, k, v))
    return rearrange(attend(q, k, v), "B (T Y) X h k -> B T (Y X) h k", Y=rows)


@pattern(
    "causal_time",
    axes="t",
    kernel_options=("mask",),
    subset="lines",
    scores=lambda t, y, x: y * x * t * (t + 1) // 2,
)
def causal_time(q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend) -> MixedGrid:
    """Tokens of one position in space see their time step and earlier ones: S·T·(T+1)/2 scores.

    For streaming: the result for a time step does not change when later ones arrive. The causal
    mask is that of Vaswani et al. (1706.03762), section 3.2.3.

    Q of `causal_time` sees #:

        # . | Q . | . .
        . . | . . | . .
    """
    steps = q.shape[1]
    mask = np.tril(np.ones((steps, steps), bool))

    def attend_to_the_past(q: Queries, k: Keys, v: Values) -> Mixed:
        return attend(q, k, v, mask=jnp.asarray(mask))

    return time(q, k, v, attend_to_the_past)


@pattern(
    "dilated_time",
    axes="t",
    kernel_options=("mask",),
    scores=lambda t, y, x, stride: y * x * sum(-(-(t - i % stride) // stride) for i in range(t)),
    check=lambda t, y, x, stride: _check_stride("dilated_time", stride, t),
)
def dilated_time(
    q: HeadGrid, k: KeyGrid, v: ValueGrid, attend: Attend, *, stride: int = 2
) -> MixedGrid:
    """Tokens of one position in space meet if a multiple of `stride` time steps apart.

    S·T²/stride scores. The strided pattern of Sparse Transformers (1904.10509), section 4.3, along
    time.

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
    """Tokens of one position in space see time steps 0, stride, ...: S·T²/stride scores.

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
        raise ValueError(f"{stride=} of {name!r} is larger than the grid's {steps} time steps")


Pools = Float[Array, "B T S U h c"]


def _trajectory_parameters(heads: int, channels: int) -> Parameters:
    """Returns the three projections of the second attention."""
    names = [f"trajectory_{name}" for name in ("query", "key", "value")]
    kernels = {f"{n}_kernel": ((heads * channels, heads, channels), "xavier") for n in names}
    return kernels | {f"{n}_bias": ((heads, channels), "zeros") for n in names}


@pattern(
    "trajectory",
    scores=lambda t, y, x: (t * y * x) ** 2 + t * y * x * t,
    parameters=_trajectory_parameters,
    needs_fixed_positions=False,
    subset="lines",
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
    """Each token pools every time step, then attends over its T pools: (T·S)² + T²·S scores.

    Motionformer (2106.05392), section 3.2, equations 2 to 4, exactly (not its Orthoformer
    approximation). Of the two published readings this is the released code's: the second
    attention's projections are full D x D maps with biases over all heads' channels, and its
    query is the pool of the token's time step; the paper's equations can also be read as maps
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

    def pool(v: ValueGrid) -> Pools:  # what each token pools of each time step U
        return rearrange(attend(queries, k, v), "B U (T S) h c -> B T S U h c", T=t)

    def project(
        pools: Pools, kernel: Float[Array, "D h k"], bias: Float[Array, "h k"]
    ) -> Float[Array, "B T S U h k"]:
        kernel = kernel.reshape(h, -1, *kernel.shape[1:]).astype(pools.dtype)
        return jnp.einsum("...gc,gchk->...hk", pools, kernel) + bias.astype(pools.dtype)

    pools = pool(v if values is None else values)
    step = jnp.arange(t)[None, :, None, None, None, None]
    query = jnp.take_along_axis(pools, step, axis=3)  # of each token's time step
    query = project(query, trajectory_query_kernel, trajectory_query_bias)
    key = project(pools, trajectory_key_kernel, trajectory_key_bias)
    if values is None:
        value = project(pools, trajectory_value_kernel, trajectory_value_bias)
    else:
        value = pool(v)
    return attend(query, key, value)[:, :, :, 0]
