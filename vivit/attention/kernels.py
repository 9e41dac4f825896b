"""Kernels: how softmax(QKᵀ/√k)V is computed over sets of tokens.

Every kernel has the signature of `dense` and equals it in values and gradients. Scores, softmax
and sums are float32 whatever the inputs are; the result has the dtype of the values.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vivit.attention.chunks import CHUNK, attend_in_chunks
from vivit.attention.demand import Demand
from vivit.attention.dropout import WeightDropout, dropout_factors
from vivit.attention.fused import attend_fused, why_not_fused
from vivit.attention.ring import attend_by_all_to_all, attend_in_ring
from vivit.registry import OptionRegistry, Options

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

    attend: (q, k, v, *, bias, mask, soft_cap, dropout) -> what the queries get.
    why_not: demand -> why it can't be met here, or "" where it can.
    over_devices: whether it splits sets over the devices of a mesh, and runs only within one.
    softmax: whether it equals `dense`, so that another such kernel may stand in for it.
    options: keyword arguments that a config may give in its name, with their defaults.
    """

    name: str
    attend: Callable[..., Mixed]
    why_not: Callable[[Demand], str]
    over_devices: bool = False
    softmax: bool = True
    options: Options = field(default_factory=Options)

    def __call__(self, q: Queries, k: Keys, v: Values, **options: Any) -> Mixed:
        return self.attend(q, k, v, **self.options, **options)

    def check(self, demand: Demand, *, pattern: str) -> None:
        reason = self.why_not(demand)
        if reason:
            raise ValueError(
                f"kernel {self.name!r} can't compute pattern {pattern!r}: {reason}; "
                'use kernel="auto" or "chunked"'
            )


KERNELS: OptionRegistry[Kernel] = OptionRegistry("attention kernel")


def kernel(
    name: str,
    *,
    why_not: Callable[[Demand], str] = lambda demand: "",
    over_devices: bool = False,
    softmax: bool = True,
    **options: int,
):
    """Registers the decorated function as a kernel; any config may then name it."""

    def register(attend):
        KERNELS.add(name, Kernel(name, attend, why_not, over_devices, softmax, Options(options)))
        return attend

    return register


@kernel("dense")
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
    """The readable reference; holds all n·m scores of every head at once.

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
        weights = weights * dropout_factors(
            dropout, rows, jnp.arange(scores.shape[-1], dtype=jnp.uint32)
        )
    return jnp.einsum("...hnm,...mhc->...nhc", weights.astype(v.dtype), v)


@kernel("chunked", chunk=CHUNK)
def chunked(q: Queries, k: Keys, v: Values, **options: Any) -> Mixed:
    """Equal to `dense`, but holds only a block of scores of every head, forward and backward.

    Online softmax over blocks of keys (Rabe & Staats, 2112.05682, section 3); the backward pass
    keeps only the log-sum-exp of each row and recomputes the scores (FlashAttention, 2205.14135,
    appendix B.2). Options are those of `dense`, and `chunk`: the longest block, in a config
    "chunked(256)". Blocks are equal, and a set no longer than that is one.
    """
    return attend_in_chunks(q, k, v, **options)


@kernel("fused", why_not=why_not_fused)
def fused(q: Queries, k: Keys, v: Values, **options: Any) -> Mixed:
    """The platform's own kernel: cuDNN on NVIDIA GPUs, Pallas splash attention on TPUs."""
    return attend_fused(q, k, v, **options)


def _ring_why_not(demand: Demand) -> str:
    return "it has no dropout of attention weights" if demand.dropout else ""


@kernel("ring", why_not=_ring_why_not, over_devices=True, chunk=CHUNK)
def ring(q: Queries, k: Keys, v: Values, **options: Any) -> Mixed:
    """Exact over tokens that are split over devices: keys and values go around the ring.

    Liu et al. (2310.01889). Needs parallel.sequence > 1 and lengths that it divides. Each device
    holds its own tokens and one neighbour's, and blocks of scores as in `chunked`.
    """
    return attend_in_ring(q, k, v, **options)


@kernel("ulysses", why_not=_ring_why_not, over_devices=True, chunk=CHUNK)
def ulysses(q: Queries, k: Keys, v: Values, **options: Any) -> Mixed:
    """Exact over tokens that are split over devices: heads are split instead, while they attend.

    DeepSpeed Ulysses, Jacobs et al. (2309.14509). Needs parallel.sequence > 1 that divides the
    lengths and the heads of queries and of keys.
    """
    return attend_by_all_to_all(q, k, v, **options)


# Scores of a head up to which dense is the faster one on CPUs (docs/attention.md has the figures).
DENSE_UP_TO = 512 * 512


@kernel("auto")
def auto(q: Queries, k: Keys, v: Values, **options: Any) -> Mixed:
    """The platform's own where it can run, else dense for short sets and chunked for long ones.

    What it chose is logged once.
    """
    demand = Demand.of(q, options)
    n, m = q.shape[-3], k.shape[-3]
    if not why_not_fused(demand) and v.shape[-1] <= q.shape[-1]:
        name = "fused"
    else:
        name = "dense" if n * m <= DENSE_UP_TO else "chunked"
    _log_choice(name, n, m, str(q.dtype), tuple(demand.options()))
    return KERNELS[name](q, k, v, **options)


@cache
def _log_choice(name: str, n: int, m: int, dtype: str, options: tuple[str, ...]) -> None:
    extras = f" with {', '.join(options)}" if options else ""
    log.info('kernel "auto": %s for %d queries and %d keys, %s%s', name, n, m, dtype, extras)
