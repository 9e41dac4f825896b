"""Dropout of attention weights that does not depend on how a kernel cuts the scores up."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, UInt32


class WeightDropout(NamedTuple):
    """rate: the share of weights dropped. words: the two words of a random key."""

    rate: float
    words: UInt32[Array, "2"]


def weight_dropout(rate: float, key: Array) -> WeightDropout:
    return WeightDropout(rate, jax.random.key_data(key).reshape(-1)[:2].astype(jnp.uint32))


def dropout_factors(
    dropout: WeightDropout, rows: UInt32[Array, "*batch n 1"], columns: UInt32[Array, " m"]
) -> Float[Array, "*batch n m"]:
    """0 with probability `rate`, else 1 / (1 - rate), a function of (row, column) alone.

    Rows are numbered over all sets and heads: (set · h + head) · n + query.
    """
    shape = (*rows.shape[:-1], columns.size)
    counts = [jnp.broadcast_to(x, shape).ravel() for x in (rows, columns)]
    bits = threefry_2x32(dropout.words, jnp.concatenate(counts))[: counts[0].size].reshape(shape)
    # 24 bits fill a float32 exactly.
    kept = (bits >> 8).astype(jnp.float32) >= dropout.rate * 2**24
    return kept / (1 - dropout.rate)
