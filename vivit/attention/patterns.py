"""Patterns: which tokens of a space-time grid meet.

A pattern takes queries, keys and values `[B, T, S, h, k]` and a kernel, hands the kernel sets of
tokens that attend to each other, and puts what comes back on the grid. It must be linear in the
values and may give them another number of channels than the keys: `vivit.analysis` reads the
attention weights off any pattern by passing it values of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange

from vivit.attention.kernels import Kernel
from vivit.axes import HeadGrid, ValueGrid
from vivit.registry import Registry


@dataclass(frozen=True)
class Pattern:
    """A registered pattern and what a model must know of it.

    axes: the grid axes along which it mixes tokens: "t", "s" or "ts".
    class_token: whether a class token may stand among the tokens that meet.
    heads_multiple: the number of heads must be a multiple of this.
    """

    name: str
    mix: Callable[[HeadGrid, HeadGrid, ValueGrid, Kernel], ValueGrid]
    axes: str
    class_token: bool
    heads_multiple: int


PATTERNS: Registry[Pattern] = Registry("attention pattern")


def pattern(name: str, *, axes: str = "ts", class_token: bool = False, heads_multiple: int = 1):
    """Registers the decorated function as a pattern; any config may then name it."""
    if axes not in ("t", "s", "ts"):
        raise ValueError(f'{axes=} of pattern {name!r} must be "t", "s" or "ts"')

    def register(mix):
        PATTERNS.add(name, Pattern(name, mix, axes, class_token, heads_multiple))
        return mix

    return register


@pattern("joint", axes="ts", class_token=True)
def joint(q: HeadGrid, k: HeadGrid, v: ValueGrid, attend: Kernel) -> ValueGrid:
    """Every token meets every token of the clip: (T·S)² scores. ViViT (2103.15691), model 1."""
    steps = q.shape[1]
    q, k, v = (rearrange(x, "B T S h k -> B (T S) h k") for x in (q, k, v))
    return rearrange(attend(q, k, v), "B (T S) h k -> B T S h k", T=steps)


@pattern("space", axes="s", class_token=True)
def space(q: HeadGrid, k: HeadGrid, v: ValueGrid, attend: Kernel) -> ValueGrid:
    """Tokens of one step meet: T·S² scores. ViViT (2103.15691), models 2 and 3."""
    return attend(q, k, v)


@pattern("time", axes="t", class_token=True)
def time(q: HeadGrid, k: HeadGrid, v: ValueGrid, attend: Kernel) -> ValueGrid:
    """Tokens of one place meet: S·T² scores. ViViT (2103.15691), models 2 and 3."""
    q, k, v = (rearrange(x, "B T S h k -> B S T h k") for x in (q, k, v))
    return rearrange(attend(q, k, v), "B S T h k -> B T S h k")


@pattern("split_heads", axes="ts", heads_multiple=2)
def split_heads(q: HeadGrid, k: HeadGrid, v: ValueGrid, attend: Kernel) -> ValueGrid:
    """The first half of the heads attends over time, the second over space.

    (T·S² + S·T²) / 2 scores. ViViT (2103.15691), model 4; the order of the halves is Scenic's.
    """
    half = q.shape[3] // 2
    over_time = time(*(x[..., :half, :] for x in (q, k, v)), attend)
    over_space = space(*(x[..., half:, :] for x in (q, k, v)), attend)
    return jnp.concatenate([over_time, over_space], axis=3)
