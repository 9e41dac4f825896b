"""Dropout of attention weights that does not depend on how a kernel cuts the scores up."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Key, UInt32

from vivit.ramps import Strength

KeyData = UInt32[Array, "2"]  # the two words of a threefry key


class WeightDropout(NamedTuple):
    """rate: the probability that a weight is dropped. key_data: of a random key."""

    rate: Strength
    key_data: KeyData


def weight_dropout(rate: Strength, key: Key[Array, ""] | UInt32[Array, " words"]) -> WeightDropout:
    """Returns the dropout that a random key of any implementation gives."""
    return WeightDropout(rate, jax.random.key_data(key).reshape(-1)[:2].astype(jnp.uint32))


def dropout_factors(
    dropout: WeightDropout, rows: UInt32[Array, "*batch n 1"], columns: UInt32[Array, " m"]
) -> Float[Array, "*batch n m"]:
    """Returns 0 with probability `rate`, else 1 / (1 - rate), a function of (row, column) alone.

    Rows are numbered over all sets and heads: (set · h + head) · n + query.
    """
    shape = (*rows.shape[:-1], columns.size)
    counters = [jnp.broadcast_to(x, shape).ravel() for x in (rows, columns)]
    bits = threefry_2x32(dropout.key_data, jnp.concatenate(counters))[: counters[0].size]
    # 24 bits fill a float32 exactly.
    kept = (bits.reshape(shape) >> 8).astype(jnp.float32) >= dropout.rate * 2**24
    return kept / (1 - dropout.rate)
