"""Kernels: how softmax(QKᵀ/√k)V is computed over sets of tokens.

Every kernel has the signature of `dense` and equals it in values and gradients. Scores, softmax
and sums are float32 whatever the inputs are; the result has the dtype of the values.
"""

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vivit.attention.devices import platform
from vivit.attention.dropout import WeightDropout, dropout_factors
from vivit.attention.requirements import CALL_OPTIONS, KernelRequirements
from vivit.registry import OptionRegistry, Options, check_arguments, keyword_defaults

Queries: TypeAlias = Float[Array, "*sets n h k"]
Keys: TypeAlias = Float[Array, "*sets m g k"]  # h is a multiple of g, the heads of keys and values
Values: TypeAlias = Float[Array, "*sets m g c"]
Mixed: TypeAlias = Float[Array, "*sets n h c"]
Bias: TypeAlias = Float[Array, "..."]  # broadcasts to [*sets, h, n, m]
Mask: TypeAlias = Bool[Array, "..."]  # broadcasts to [*sets, h, n, m]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernel:
    """A registered kernel.

    attend: (q, k, v, **call options, **options) -> the result for each query. Its keyword-only
        arguments in CALL_OPTIONS are those that a call may have, the others its options.
    unsupported: requirements -> why they cannot be met on this platform, or "" where they can.
    over_devices: whether it splits sets over the devices of a mesh, and runs only within one.
    softmax: whether it equals `dense`, so that another such kernel may replace it.
    general: whether it takes any lengths, channels and dtype on every platform.
    auto_order: its place among the kernels that "auto" tries; None if "auto" never takes it.
    auto_scores: the fewest and the most scores of a head for which "auto" takes it, by platform.
    options: keyword arguments that a config may give in its name, with their defaults.
    """

    name: str
    attend: Callable[..., Mixed]
    unsupported: Callable[[KernelRequirements], str] = lambda requirements: ""
    over_devices: bool = False
    softmax: bool = True
    general: bool = False
    auto_order: int | None = None
    auto_scores: Callable[[str], tuple[float, float]] = lambda platform: (0, math.inf)
    options: Options = field(default_factory=Options)

    def __call__(self, q: Queries, k: Keys, v: Values, **call_options: Any) -> Mixed:
        """Returns the result for each query.

        A call option that is None counts as not given. Raises ValueError for one that the kernel
        does not take.
        """
        given = {name: value for name, value in call_options.items() if value is not None}
        check_arguments(f"kernel {self.name!r}", self.call_options, given)
        return self.attend(q, k, v, **self.options, **given)

    @property
    def call_options(self) -> dict[str, Any]:
        """The keyword-only arguments of `attend` that are not options, with their defaults."""
        arguments = keyword_defaults(self.attend)
        return {name: value for name, value in arguments.items() if name not in self.options}

    def unsupported_reason(self, requirements: KernelRequirements) -> str:
        """Returns why requirements cannot be met on this platform, or "" where they can."""
        lacking = [name for name in requirements.options if name not in self.call_options]
        return f"it has no {', '.join(lacking)}" if lacking else self.unsupported(requirements)

    def check(self, requirements: KernelRequirements, *, pattern: str) -> None:
        """Raises ValueError where the kernel cannot meet the requirements of a pattern."""
        reason = self.unsupported_reason(requirements)
        if reason:
            raise ValueError(
                f"kernel {self.name!r} can't compute pattern {pattern!r}: {reason}; "
                'use kernel="auto" or "chunked"'
            )


KERNELS: OptionRegistry[Kernel] = OptionRegistry("attention kernel")


def kernel(name: str, **fields: Any) -> Callable[[Callable[..., Mixed]], Callable[..., Mixed]]:
    """Returns a decorator that registers a function as a kernel; any config may then name it.

    fields: further fields of `Kernel`. The function's keyword-only arguments are of CALL_OPTIONS,
    and for the rest options with defaults. Raises ValueError for another one without a default.
    """

    def register(attend: Callable[..., Mixed]) -> Callable[..., Mixed]:
        arguments = keyword_defaults(attend)
        options = {key: value for key, value in arguments.items() if key not in CALL_OPTIONS}
        unknown = [key for key, value in options.items() if value is inspect.Parameter.empty]
        if unknown:
            raise ValueError(
                f"kernel {name!r} takes {', '.join(unknown)}; a call has "
                f"{', '.join(CALL_OPTIONS)}, and options need a default"
            )
        KERNELS.add(name, Kernel(name, attend, options=Options(options), **fields))
        return attend

    return register


# Scores of a head up to which "auto" takes dense: never a timing, which would make a resumed run
# another run. docs/attention.md has the figures for CPUs; other platforms are not measured yet.
DENSE_UP_TO = {"cpu": 32 * 32}
ELSEWHERE = 512 * 512


@kernel(
    "dense",
    general=True,
    auto_order=1,
    auto_scores=lambda platform: (0, DENSE_UP_TO.get(platform, ELSEWHERE)),
)
def dense(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    bias: Bias | None = None,
    mask: Mask | None = None,
    soft_cap: float | None = None,
    dropout: WeightDropout | None = None,
) -> Mixed:
    """Returns softmax(QKᵀ/√k)V; the readable reference, which holds all n·m scores of every head.

    soft_cap: scores become cap·tanh(score / cap) before the bias; Gemma 2 (2408.00118), section
        2, after Bello et al. (1611.09940).
    bias: added to the scores. mask: True where a query may see a key; a query that sees none gets
        zeros. Both broadcast to [*sets, h, n, m].
    dropout: of the weights; the survivors are rescaled, and other kernels drop the same ones.
    Keys and values may have fewer heads than queries, each serving h / g of them in a row:
    grouped queries, Ainslie et al. (2305.13245).
    """
    group = q.shape[-2] // k.shape[-2]
    k, v = (jnp.repeat(x, group, axis=-2) if group > 1 else x for x in (k, v))
    scores = jnp.einsum("...nhk,...mhk->...hnm", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        scores = jnp.where(mask, scores, -jnp.inf)
        top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - jnp.where(jnp.isneginf(top), 0, top))
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights / jnp.where(total == 0, 1, total)
    if dropout is not None:
        rows = jnp.arange(scores[..., 0].size, dtype=jnp.uint32).reshape(*scores.shape[:-1], 1)
        columns = jnp.arange(scores.shape[-1], dtype=jnp.uint32)
        weights = weights * dropout_factors(dropout, rows, columns)
    return jnp.einsum("...hnm,...mhc->...nhc", weights.astype(v.dtype), v)


@kernel("auto")
def auto(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    bias: Bias | None = None,
    mask: Mask | None = None,
    soft_cap: float | None = None,
    dropout: WeightDropout | None = None,
) -> Mixed:
    """Returns what the first kernel by `auto_order` gives that can meet the call's requirements.

    That is the platform's own kernel where it can run, on TPUs for sets of a block or more, else
    dense for short sets and chunked for long ones. The choice is logged once.
    """
    options = {"bias": bias, "mask": mask, "soft_cap": soft_cap, "dropout": dropout}
    requirements = KernelRequirements.of_call(q, v, **options)
    n, m = q.shape[-3], k.shape[-3]
    chosen = first_suitable(requirements, n * m)
    _log_choice(chosen.name, n, m, requirements.dtype, requirements.options)
    return chosen(q, k, v, **options)


def first_suitable(requirements: KernelRequirements, scores: int) -> Kernel:
    """Returns the first kernel by `auto_order` for these requirements and `scores` of a head."""
    suitable = []
    for entry in (KERNELS[name] for name in KERNELS):
        fewest, most = entry.auto_scores(platform())
        if entry.auto_order is None or not fewest <= scores <= most:
            continue
        if not entry.unsupported_reason(requirements):
            suitable.append((entry.auto_order, entry.name))
    return KERNELS[min(suitable)[1]]


@cache
def _log_choice(name: str, n: int, m: int, dtype: str, options: tuple[str, ...]) -> None:
    extras = f" with {', '.join(options)}" if options else ""
    log.info('kernel "auto": %s for %d queries and %d keys, %s%s', name, n, m, dtype, extras)
