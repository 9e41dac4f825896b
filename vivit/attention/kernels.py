"""Kernels: how softmax(QKᵀ/√k)V is computed over a set of tokens.

Every kernel has the signature of `dense` and equals it in values and gradients. Scores, softmax
and sums are float32 whatever the inputs are; the result has the dtype of the values.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.registry import Registry

Queries: TypeAlias = Float[Array, "*sets n h k"]
Keys: TypeAlias = Float[Array, "*sets m h k"]
Values: TypeAlias = Float[Array, "*sets m h c"]
Mixed: TypeAlias = Float[Array, "*sets n h c"]
Kernel: TypeAlias = Callable[[Queries, Keys, Values], Mixed]

KERNELS: Registry[Kernel] = Registry("attention kernel")

# On a CPU at N=3136 blocks of 392, 512 and 784 take the same time within 10 %; a multiple of 128
# fits the tiles of accelerators.
CHUNK = 512


@KERNELS.register("dense")
def dense(q: Queries, k: Keys, v: Values) -> Mixed:
    """The readable reference; holds all n·m scores of every head at once."""
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("...nhk,...mhk->...hnm", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("...hnm,...mhc->...nhc", weights, v)


@KERNELS.register("chunked")
def chunked(q: Queries, k: Keys, v: Values, *, chunk: int = CHUNK) -> Mixed:
    """Equal to `dense`, but holds only chunk² scores of every head at once, forward and backward.

    Online softmax over blocks of keys (Rabe & Staats, 2112.05682, section 3); the backward pass
    keeps only the log-sum-exp of each row and recomputes the scores (FlashAttention, 2205.14135,
    appendix B.2). Lengths need not be multiples of `chunk`.
    """
    *sets, n, h, _ = q.shape
    merge = lambda x: jnp.moveaxis(x, -2, -3).reshape(-1, h, x.shape[-3], x.shape[-1])
    out = _attend_blocks(merge(q), merge(k), merge(v), chunk)  # [sets, h, n, c]
    return jnp.moveaxis(out.reshape(*sets, h, n, -1), -3, -2)


def _blocks(x: Float[Array, "z h n c"], *, chunk: int) -> Float[Array, "blocks z h size c"]:
    """Splits the tokens into equal blocks of at most `chunk`, the last one padded with zeros."""
    z, h, n, c = x.shape
    blocks = -(-n // chunk)
    size = -(-n // blocks)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, blocks * size - n), (0, 0)))
    return jnp.moveaxis(x.reshape(z, h, blocks, size, c), 2, 0)


def _join(x: Float[Array, "blocks z h size c"], *, length: int) -> Float[Array, "z h n c"]:
    blocks, z, h, size, c = x.shape
    return jnp.moveaxis(x, 0, 2).reshape(z, h, blocks * size, c)[:, :, :length]


def _scores(q, k, *, valid):
    """Scaled scores [z, h, n, m] of two blocks; those of the last block's padding are -inf."""
    scores = jnp.einsum("zhnk,zhmk->zhnm", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    return scores if valid is None else jnp.where(valid, scores, -jnp.inf)


def _valid_keys(blocks: int, size: int, length: int) -> Array | None:
    """[blocks, size], False where a key is padding; None where none is (no mask to pay for)."""
    if blocks * size == length:
        return None
    return (jnp.arange(blocks * size) < length).reshape(blocks, size)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend_blocks(q, k, v, chunk):
    return _attend_blocks_forward(q, k, v, chunk)[0]


def _attend_blocks_forward(q, k, v, chunk):
    n, m = q.shape[2], k.shape[2]
    blocks = partial(_blocks, chunk=chunk)
    k_blocks, v_blocks = blocks(k), blocks(v)
    valid = _valid_keys(k_blocks.shape[0], k_blocks.shape[3], m)

    def rows(q_block):
        def accumulate(carry, inputs):
            top, total, mixed = carry
            k_block, v_block, valid_block = inputs
            scores = _scores(q_block, k_block, valid=valid_block)
            new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
            weights = jnp.exp(scores - new_top)
            shrink = jnp.exp(top - new_top)
            total = total * shrink + weights.sum(axis=-1, keepdims=True)
            mixed = mixed * shrink + jnp.einsum(
                "zhnm,zhmc->zhnc",
                weights.astype(v.dtype),
                v_block,
                preferred_element_type=jnp.float32,
            )
            return (new_top, total, mixed), None

        z, h, size, _ = q_block.shape
        start = (
            jnp.full((z, h, size, 1), -jnp.inf),
            jnp.zeros((z, h, size, 1)),
            jnp.zeros((z, h, size, v.shape[-1])),
        )
        (top, total, mixed), _ = jax.lax.scan(accumulate, start, (k_blocks, v_blocks, valid))
        return (mixed / total).astype(v.dtype), top + jnp.log(total)

    out, log_sum = jax.lax.map(rows, blocks(q))
    out, log_sum = _join(out, length=n), _join(log_sum, length=n)  # [z, h, n, c], [z, h, n, 1]
    return out, (q, k, v, out, log_sum)


def _attend_blocks_backward(chunk, saved, d_out):
    q, k, v, out, log_sum = saved
    n, m = q.shape[2], k.shape[2]
    scale = q.shape[-1] ** -0.5
    blocks = partial(_blocks, chunk=chunk)
    k_blocks, v_blocks = blocks(k), blocks(v)
    valid = _valid_keys(k_blocks.shape[0], k_blocks.shape[3], m)
    # Row sums of d_weights · weights, without the weights: FlashAttention, appendix B.2, eq. 4.
    row_sum = (d_out.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    # A padded query has d_out = 0 and row_sum = 0, so it adds nothing to any gradient.
    rows = tuple(blocks(x) for x in (q, d_out, log_sum, row_sum))
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def columns(d_q, inputs):
        k_block, v_block, valid_block = inputs

        def accumulate(carry, row):
            d_k, d_v = carry
            q_block, d_out_block, log_sum_block, row_sum_block = row
            weights = jnp.exp(_scores(q_block, k_block, valid=valid_block) - log_sum_block)
            d_v += product("zhnm,zhnc->zhmc", weights.astype(v.dtype), d_out_block)
            d_weights = product("zhnc,zhmc->zhnm", d_out_block, v_block)
            d_scores = (weights * (d_weights - row_sum_block) * scale).astype(q.dtype)
            d_k += product("zhnm,zhnk->zhmk", d_scores, q_block)
            return (d_k, d_v), product("zhnm,zhmk->zhnk", d_scores, k_block)

        zeros = (jnp.zeros(k_block.shape), jnp.zeros(v_block.shape))
        d_kv, d_q_part = jax.lax.scan(accumulate, zeros, rows)
        return d_q + d_q_part, d_kv

    d_q, (d_k, d_v) = jax.lax.scan(columns, jnp.zeros(rows[0].shape), (k_blocks, v_blocks, valid))
    return (
        _join(d_q, length=n).astype(q.dtype),
        _join(d_k, length=m).astype(k.dtype),
        _join(d_v, length=m).astype(v.dtype),
    )


_attend_blocks.defvjp(_attend_blocks_forward, _attend_blocks_backward)
