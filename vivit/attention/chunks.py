"""Exact attention by blocks of scores, with a backward pass of its own.

Inside, heads stand before tokens: [z, g, n, k], where z counts the sets and g the heads of the
keys. Queries that share a key head are further rows of its set.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, UInt32

from vivit.attention.dropout import WeightDropout, dropout_factors

# On a CPU at N=3136 blocks of 392, 512 and 784 take the same time within 10 %; a multiple of 128
# fits the tiles of accelerators.
CHUNK = 512

KEPT = "attention"  # the name of what `remat="attention"` keeps


class Blocks(NamedTuple):
    """How scores are cut up, and what is done to them; static under jit.

    rows, columns: of a block. n, m: queries and keys that count, the others are padding.
    dtype: of the result.
    """

    rows: int
    columns: int
    n: int
    m: int
    soft_cap: float | None
    rate: float
    dtype: Any


class Extras(NamedTuple):
    """What is added to scores or weights; None where there is nothing."""

    bias: Any
    mask: Any
    words: UInt32[Array, "2"] | None


def attend_in_chunks(
    q, k, v, *, bias=None, mask=None, soft_cap=None, dropout=None, chunk: int = CHUNK
):
    """`vivit.attention.kernels.chunked`."""
    q, k, v, extras, restore = fold(q, k, v, bias=bias, mask=mask, dropout=dropout)
    rate = dropout.rate if dropout else 0.0
    blocks = cut(q, k, chunk=chunk, soft_cap=soft_cap, rate=rate, dtype=v.dtype)
    q, k, v, extras = pad(q, k, v, extras, blocks)
    attended: Any = attend(q, k, v, *extras, blocks)
    return restore(attended[0][:, :, : blocks.n])


def cut(q, k, *, chunk: int, soft_cap: float | None, rate: float = 0.0, dtype) -> Blocks:
    n, m = q.shape[2], k.shape[2]
    return Blocks(
        block_size(n, chunk), block_size(m, chunk), n, m, soft_cap, rate, jnp.dtype(dtype)
    )


def fold(q, k, v, *, bias, mask, dropout: WeightDropout | None, m: int | None = None):
    """Queries, keys, values and extras as [z, g, n, ...], and what puts a result back.

    m: the keys of bias and mask, if they are more than are here.
    """
    *sets, n, h, _ = q.shape
    m, g = m or k.shape[-3], k.shape[-2]
    group = h // g
    q = heads_first(q)
    z = q.shape[0]
    q = q.reshape(z, g, group * n, -1)
    extras = Extras(
        *(None if x is None else fold_pairs(x, sets=tuple(sets), g=g, h=h, n=n, m=m)
          for x in (bias, mask)),
        dropout.words if dropout else None,
    )  # fmt: skip

    def restore(out):
        return heads_last(out.reshape(z, h, n, -1), sets)

    return q, heads_first(k), heads_first(v), extras, restore


def heads_first(x: Float[Array, "... n h k"]) -> Float[Array, "z h n k"]:
    """Sets of tokens, with the sets' axes merged and heads before tokens."""
    return jnp.moveaxis(x, -2, -3).reshape(-1, x.shape[-2], x.shape[-3], x.shape[-1])


def heads_last(x: Float[Array, "z h n k"], sets: Sequence[int]) -> Float[Array, "... n h k"]:
    """The inverse of `heads_first`, with the lengths of the sets' axes."""
    return jnp.moveaxis(x.reshape(*sets, *x.shape[1:]), -3, -2)


def fold_pairs(x: Array, *, sets: tuple[int, ...], g: int, h: int, n: int, m: int) -> Array:
    """A bias or mask that broadcasts to [*sets, h, n, m] as [z or 1, g or 1, rows or 1, m]."""
    x = x.reshape((1,) * (len(sets) + 3 - x.ndim) + x.shape)
    own_sets, (own_h, own_n, _) = x.shape[:-3], x.shape[-3:]
    z = 1 if all(length == 1 for length in own_sets) else -1
    x = jnp.broadcast_to(x, (*(own_sets if z == 1 else sets), own_h, own_n, m))
    if h > g and (own_h > 1 or own_n > 1):
        x = jnp.broadcast_to(x, (*x.shape[:-3], h if own_h > 1 else h // g, n, m))
        own_n = h // g * n
    return x.reshape(z, g if own_h > 1 else 1, own_n, m)


def block_size(length: int, chunk: int) -> int:
    """The longest equal blocks of at most `chunk`: without padding, if that costs no more than
    half of their length."""
    blocks = -(-length // chunk)
    for count in range(blocks, 2 * blocks):
        if length % count == 0:
            return length // count
    return -(-length // blocks)


def pad(q, k, v, extras: Extras, blocks: Blocks):
    """The same, with rows and columns padded to whole blocks."""
    more_rows, more_columns = -blocks.n % blocks.rows, -blocks.m % blocks.columns
    bias, mask = (
        None if x is None else _pad(_pad(x, 3, more_columns), 2, more_rows * (x.shape[2] > 1))
        for x in (extras.bias, extras.mask)
    )
    k, v = (_pad(x, 2, more_columns) for x in (k, v))
    return _pad(q, 2, more_rows), k, v, Extras(bias, mask, extras.words)


def _pad(x: Array, axis: int, more: int) -> Array:
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)]) if more else x


def _rows(x, i, blocks: Blocks):
    """Block i of an array's rows; an array with a single row is every block's."""
    if x.shape[2] == 1 or x.shape[2] == blocks.rows:
        return x
    return jax.lax.dynamic_slice_in_dim(x, i * blocks.rows, blocks.rows, axis=2)


def _columns(x, j, blocks: Blocks, *, axis: int = 2):
    if x.shape[axis] == blocks.columns:
        return x
    return jax.lax.dynamic_slice_in_dim(x, j * blocks.columns, blocks.columns, axis=axis)


def _put(x, block, at):
    return jax.lax.dynamic_update_slice_in_dim(x, block, at, axis=2)


def _score(q_block, k_block, bias, mask, i, j, blocks: Blocks):
    """Scores of block (i, j), float32, and their derivative by the raw products (None for 1)."""
    scores = jnp.einsum("zgnk,zgmk->zgnm", q_block, k_block, preferred_element_type=jnp.float32)
    scores = scores * q_block.shape[-1] ** -0.5
    slope = None
    if blocks.soft_cap is not None:
        bent = jnp.tanh(scores / blocks.soft_cap)
        scores, slope = blocks.soft_cap * bent, 1 - bent * bent
    if bias is not None:
        scores = scores + _columns(_rows(bias, i, blocks), j, blocks, axis=3)
    if mask is not None:
        scores = jnp.where(_columns(_rows(mask, i, blocks), j, blocks, axis=3), scores, -jnp.inf)
    if blocks.m % blocks.columns:
        column = j * blocks.columns + jnp.arange(blocks.columns)
        scores = jnp.where(column < blocks.m, scores, -jnp.inf)
    return scores, slope


def _drop(weights, words, i, j, blocks: Blocks):
    """The factors of dropout in block (i, j), or None."""
    if not blocks.rate:
        return None
    z, g = weights.shape[:2]
    first = jnp.arange(z * g, dtype=jnp.uint32).reshape(z, g, 1, 1) * blocks.n
    rows = first + (i * blocks.rows + jnp.arange(blocks.rows)).astype(jnp.uint32)[:, None]
    columns = (j * blocks.columns + jnp.arange(blocks.columns)).astype(jnp.uint32)
    return dropout_factors(WeightDropout(blocks.rate, words), rows, columns)


def _loop(count: int, body, carry) -> Any:
    """A loop over block numbers, without one where there is a single block."""
    if count == 1:
        return body(carry, 0)
    return jax.lax.scan(lambda carry, i: (body(carry, i), None), carry, jnp.arange(count))[0]


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def attend(q, k, v, bias, mask, words, blocks: Blocks):
    """Of padded arrays: what each query gets [z, g, n, c], and the logarithm [z, g, n, 1] of its
    sum of exponentials, -inf where it sees nothing."""
    return _forward(q, k, v, bias, mask, words, blocks)[0]


def _forward(q, k, v, bias, mask, words, blocks):
    z, g, n, _ = q.shape
    m, c = v.shape[2:]
    # Online softmax starts from a finite value: a row that sees nothing yet stays at zero weights.
    lowest = jnp.finfo(jnp.float32).min

    def rows(carry, i):
        q_block = _rows(q, i, blocks)

        def columns(carry, j):
            top, total, mixed = carry
            scores, _ = _score(q_block, _columns(k, j, blocks), bias, mask, i, j, blocks)
            new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            total = total * shrink + weights.sum(axis=-1, keepdims=True)
            dropped = _drop(weights, words, i, j, blocks)
            weights = (weights if dropped is None else weights * dropped).astype(v.dtype)
            mixed = mixed * shrink + jnp.einsum(
                "zgnm,zgmc->zgnc",
                weights,
                _columns(v, j, blocks),
                preferred_element_type=jnp.float32,
            )
            return new_top, total, mixed

        shape = (z, g, blocks.rows)
        start = (jnp.full((*shape, 1), lowest), jnp.zeros((*shape, 1)), jnp.zeros((*shape, c)))
        top, total, mixed = _loop(m // blocks.columns, columns, start)
        mixed = (mixed / jnp.where(total == 0, 1, total)).astype(blocks.dtype)
        log_sum = top + jnp.log(total)
        if blocks.rows == n:
            return mixed, log_sum
        return _put(carry[0], mixed, i * blocks.rows), _put(carry[1], log_sum, i * blocks.rows)

    empty = (jnp.zeros((z, g, n, c), blocks.dtype), jnp.zeros((z, g, n, 1)))
    out, log_sum = _loop(n // blocks.rows, rows, empty)
    # Named, so that rematerialisation can keep them: with them the backward pass needs no second
    # forward pass of the attention.
    out, log_sum = checkpoint_name(out, KEPT), checkpoint_name(log_sum, KEPT)
    return (out, log_sum), (q, k, v, bias, mask, words, out, log_sum)


def _backward(blocks, saved, cotangents):
    q, k, v, bias, mask, words, out, log_sum = saved
    d_out, d_log_sum = cotangents
    # Row sums of d_weights · weights, without the weights: FlashAttention, appendix B.2, eq. 4.
    # The gradient of the log-sum-exp itself is the weights, so it enters with the other sign.
    row_sum = (d_out.astype(jnp.float32) * out).sum(axis=-1, keepdims=True) - d_log_sum
    d_q, d_k, d_v, d_bias = gradients(q, k, v, bias, mask, words, d_out, log_sum, row_sum, blocks)
    d_q, d_k, d_v = (d.astype(x.dtype) for d, x in ((d_q, q), (d_k, k), (d_v, v)))
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    return d_q, d_k, d_v, d_bias, None, None


def gradients(q, k, v, bias, mask, words, d_out, log_sum, row_sum, blocks: Blocks):
    """Gradients of queries, keys, values and bias, float32, given each row's log-sum-exp.

    A padded query has d_out = 0 and row_sum = 0, so it adds nothing to any of them where its
    weights are finite: its log-sum-exp is that of its scores, or infinite.
    """
    scale = q.shape[-1] ** -0.5
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    # exp(score - log_sum) must be 0 where a query sees nothing: its scores are all -inf.
    log_sum = jnp.where(jnp.isneginf(log_sum), 0, log_sum)

    def columns(carry, j):
        d_q, d_k, d_v, d_bias = carry
        k_block, v_block = _columns(k, j, blocks), _columns(v, j, blocks)

        def rows(carry, i):
            d_q, d_k_block, d_v_block, d_bias = carry
            q_block, d_out_block = _rows(q, i, blocks), _rows(d_out, i, blocks)
            scores, slope = _score(q_block, k_block, bias, mask, i, j, blocks)
            weights = jnp.exp(scores - _rows(log_sum, i, blocks))
            d_weights = product("zgnc,zgmc->zgnm", d_out_block, v_block)
            dropped = _drop(weights, words, i, j, blocks)
            kept = weights if dropped is None else weights * dropped
            d_weights = d_weights if dropped is None else d_weights * dropped
            d_v_block += product("zgnc,zgnm->zgcm", d_out_block, kept.astype(v.dtype))
            d_scores = weights * (d_weights - _rows(row_sum, i, blocks))
            if bias is not None:
                d_bias = _add_to_bias(d_bias, d_scores, i, j, blocks)
            d_scores = d_scores * scale if slope is None else d_scores * (scale * slope)
            # Not rounded to the dtype of q and k: dense's gradient doesn't either.
            d_k_block += product("zgnk,zgnm->zgkm", q_block, d_scores)
            d_q_block = product("zgnm,zgmk->zgnk", d_scores, k_block)
            d_q = _put(d_q, _rows(d_q, i, blocks) + d_q_block, i * blocks.rows)
            return d_q, d_k_block, d_v_block, d_bias

        # Those of keys and values as [z, g, k, m]: XLA's CPU backend is twice as slow at products
        # that contract the rows of scores and leave a narrow result.
        start = (d_q, *(jnp.zeros(jnp.swapaxes(x, 2, 3).shape) for x in (k_block, v_block)), d_bias)
        d_q, d_k_block, d_v_block, d_bias = _loop(q.shape[2] // blocks.rows, rows, start)
        d_k, d_v = (
            _put(whole, jnp.swapaxes(block, 2, 3), j * blocks.columns)
            for whole, block in ((d_k, d_k_block), (d_v, d_v_block))
        )
        return d_q, d_k, d_v, d_bias

    zeros = [jnp.zeros(x.shape) for x in (q, k, v)]
    zeros.append(None if bias is None else jnp.zeros(bias.shape))
    return _loop(k.shape[2] // blocks.columns, columns, tuple(zeros))


def _add_to_bias(d_bias, d_scores, i, j, blocks: Blocks):
    """Adds block (i, j), summed over the axes along which the bias was broadcast."""
    summed = tuple(
        axis for axis in range(3) if d_bias.shape[axis] == 1 and d_scores.shape[axis] > 1
    )
    block = d_scores.sum(axis=summed, keepdims=True)
    i = 0 if d_bias.shape[2] == 1 else i
    at = (0, 0, i * blocks.rows, j * blocks.columns)
    return jax.lax.dynamic_update_slice(
        d_bias, jax.lax.dynamic_slice(d_bias, at, block.shape) + block, at
    )


attend.defvjp(_forward, _backward)
