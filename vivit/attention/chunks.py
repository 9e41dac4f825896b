"""Exact attention by blocks of scores, with its own backward pass.

Arrays are folded first: the axes of the sets become one, z, and heads come before tokens. g counts
the heads of the keys, r the rows: queries of all h / g heads that share a key head.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

from vivit.attention.dropout import WeightDropout, dropout_factors
from vivit.attention.kernels import Bias, Keys, Mask, Mixed, Queries, Values, kernel

FoldedQueries: TypeAlias = Float[Array, "z g r k"]
FoldedKeys: TypeAlias = Float[Array, "z g m k"]
FoldedValues: TypeAlias = Float[Array, "z g m c"]
FoldedBias: TypeAlias = Float[Array, "#z #g #r m"]
FoldedMask: TypeAlias = Bool[Array, "#z #g #r m"]
FoldedMixed: TypeAlias = Float[Array, "z g r c"]
RowValues: TypeAlias = Float[Array, "z g r 1"]  # one number per query, as its log-sum-exp
Attended: TypeAlias = tuple[FoldedMixed, RowValues]
Inputs: TypeAlias = tuple[
    FoldedQueries, FoldedKeys, FoldedValues,
    FoldedBias | None, FoldedMask | None, WeightDropout | None,
]  # fmt: skip
PaddedInputs: TypeAlias = tuple[  # the same with rows R and keys M padded to whole blocks
    Float[Array, "z g R k"], Float[Array, "z g M k"], Float[Array, "z g M c"],
    Float[Array, "#z #g #R M"] | None, Bool[Array, "#z #g #R M"] | None, WeightDropout | None,
]  # fmt: skip
Gradients: TypeAlias = tuple[FoldedQueries, FoldedKeys, FoldedValues, FoldedBias | None]

Index: TypeAlias = int | Int[Array, ""]  # of a block, or of a device in a ring
Scores: TypeAlias = Float[Array, "z g rows columns"]
Running: TypeAlias = tuple[  # maximum, sum of exponentials and weighted values of a block of rows
    Float[Array, "z g rows 1"], Float[Array, "z g rows 1"], Float[Array, "z g rows c"]
]
# Those of a block of keys and values have columns last: XLA's CPU backend is twice as slow at
# products that contract the rows of scores and leave a narrow result.
BlockGradients: TypeAlias = tuple[
    FoldedQueries,
    Float[Array, "z g k columns"],
    Float[Array, "z g c columns"],
    FoldedBias | None,
]
Residuals: TypeAlias = tuple[Inputs, FoldedMixed, RowValues]
Carry = TypeVar("Carry")

# On a CPU at N=3136 blocks of 392, 512 and 784 take the same time within 10 %; a multiple of 128
# fits the tiles of accelerators.
CHUNK = 512

SAVED_RESIDUALS = "attention"  # the checkpoint name of what `remat="attention"` saves


class Blocks(NamedTuple):
    """The size of blocks of scores, and settings of their computation; static under jit.

    rows, columns: of a block. n, m: queries and keys without padding. dtype: of the result.
    """

    rows: int
    columns: int
    n: int
    m: int
    soft_cap: float | None
    dtype: np.dtype


@kernel("chunked", general=True, auto_order=2)
def chunked(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    bias: Bias | None = None,
    mask: Mask | None = None,
    soft_cap: float | None = None,
    dropout: WeightDropout | None = None,
    chunk: int = CHUNK,
) -> Mixed:
    """Returns what `dense` returns, but holds only a block of scores of every head, also backward.

    Online softmax over blocks of keys (Rabe & Staats, 2112.05682, section 3); the backward pass
    keeps only the log-sum-exp of each row and recomputes the scores (FlashAttention, 2205.14135,
    appendix B.2). Options other than `chunk` are those of `dense`.

    chunk: the length of the longest block, in a config "chunked(256)". Blocks are equal.
    """
    inputs = fold(q, k, v, bias=bias, mask=mask, dropout=dropout)
    blocks = make_blocks(*inputs[:2], chunk=chunk, soft_cap=soft_cap, dtype=v.dtype)
    attended: Attended = attend(pad(inputs, blocks), blocks)  # custom_vjp has no return type
    return unfold(attended[0][:, :, : blocks.n], q)


def make_blocks(
    q: FoldedQueries,
    k: FoldedKeys,
    *,
    chunk: int,
    soft_cap: float | None,
    dtype: np.dtype,
) -> Blocks:
    """Returns the blocks for folded queries and keys, each of at most `chunk` rows and columns."""
    n, m = q.shape[2], k.shape[2]
    return Blocks(block_size(n, chunk), block_size(m, chunk), n, m, soft_cap, dtype)


def fold(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    bias: Bias | None,
    mask: Mask | None,
    dropout: WeightDropout | None,
) -> Inputs:
    """Returns folded arrays; queries of one key head are further rows of its set."""
    m, g = k.shape[-3:-1]
    bias, mask = (None if x is None else fold_pairs(x, q, g=g, m=m) for x in (bias, mask))
    return fold_queries(q, g), heads_first(k), heads_first(v), bias, mask, dropout


def fold_queries(q: Queries, g: int) -> FoldedQueries:
    """Returns folded queries, those of the h / g heads of each key head in one set."""
    q = heads_first(q)
    return q.reshape(q.shape[0], g, -1, q.shape[3])


def unfold(mixed: FoldedMixed, q: Queries) -> Mixed:
    """Returns a folded result in the layout of its queries before they were folded."""
    *sets, n, h, _ = q.shape
    return heads_last(mixed.reshape(mixed.shape[0], h, n, -1), sets)


def heads_first(x: Shaped[Array, "*sets n h k"]) -> Shaped[Array, "z h n k"]:
    """Returns sets of tokens with the sets' axes merged and heads before tokens."""
    return jnp.moveaxis(x, -2, -3).reshape(-1, x.shape[-2], x.shape[-3], x.shape[-1])


def heads_last(x: Shaped[Array, "z h n k"], sets: Sequence[int]) -> Shaped[Array, "*sets n h k"]:
    """Returns the inverse of `heads_first`, for these lengths of the sets' axes."""
    return jnp.moveaxis(x.reshape(*sets, *x.shape[1:]), -3, -2)


def fold_pairs(
    x: Shaped[Array, "..."], q: Queries, *, g: int, m: int
) -> Shaped[Array, "z_or_1 g_or_1 r_or_1 m"]:
    """Returns a bias or mask that broadcasts to [*sets, h, n, m] as one for folded arrays."""
    *sets, n, h, _ = q.shape
    x = x.reshape((1,) * (len(sets) + 3 - x.ndim) + x.shape)
    x_sets, (x_h, x_n, _) = x.shape[:-3], x.shape[-3:]
    z = 1 if all(length == 1 for length in x_sets) else -1
    x = jnp.broadcast_to(x, (*(x_sets if z == 1 else sets), x_h, x_n, m))
    if h > g and (x_h > 1 or x_n > 1):
        x = jnp.broadcast_to(x, (*x.shape[:-3], h if x_h > 1 else h // g, n, m))
        x_n = h // g * n
    return x.reshape(z, g if x_h > 1 else 1, x_n, m)


def block_size(length: int, chunk: int) -> int:
    """Returns the length of equal blocks of at most `chunk`, the longest ones, or those without
    padding if they are longer than half of these."""
    blocks = -(-length // chunk)
    for count in range(blocks, 2 * blocks):
        if length % count == 0:
            return length // count
    return -(-length // blocks)


def pad(inputs: Inputs, blocks: Blocks) -> PaddedInputs:
    """Returns the inputs with rows and columns padded to whole blocks."""
    q, k, v, *pairs, dropout = inputs
    more_rows, more_columns = -blocks.n % blocks.rows, -blocks.m % blocks.columns
    bias, mask = (
        None if x is None else _pad(_pad(x, 3, more_columns), 2, more_rows * (x.shape[2] > 1))
        for x in pairs
    )
    k, v = (_pad(x, 2, more_columns) for x in (k, v))
    return _pad(q, 2, more_rows), k, v, bias, mask, dropout


def _pad(x: Shaped[Array, "z g _ _"], axis: int, more: int) -> Shaped[Array, "z g _ _"]:
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)]) if more else x


def _rows(x: Shaped[Array, "z g _ k"], i: Index, blocks: Blocks) -> Shaped[Array, "z g _ k"]:
    """Returns block i of an array's rows; an array with a single row is every block's."""
    if x.shape[2] == 1 or x.shape[2] == blocks.rows:
        return x
    return jax.lax.dynamic_slice_in_dim(x, i * blocks.rows, blocks.rows, axis=2)


def _columns(
    x: Shaped[Array, "z g _ _"], j: Index, blocks: Blocks, *, axis: int = 2
) -> Shaped[Array, "z g _ _"]:
    """Returns block j of an array's columns, which are those of keys and values along axis 2."""
    if x.shape[axis] == blocks.columns:
        return x
    return jax.lax.dynamic_slice_in_dim(x, j * blocks.columns, blocks.columns, axis=axis)


def _put(
    x: Shaped[Array, "z g r k"], block: Shaped[Array, "z g rows k"], start: Index
) -> Shaped[Array, "z g r k"]:
    return jax.lax.dynamic_update_slice_in_dim(x, block, start, axis=2)


def _score(
    q_block: Float[Array, "z g rows k"],
    k_block: Float[Array, "z g columns k"],
    bias: FoldedBias | None,
    mask: FoldedMask | None,
    i: Index,
    j: Index,
    blocks: Blocks,
) -> tuple[Scores, Scores | None]:
    """Returns the scores of block (i, j), float32, and the soft cap's derivative, if it has one."""
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


def _factors(
    scores: Scores, dropout: WeightDropout | None, i: Index, j: Index, blocks: Blocks
) -> Scores | None:
    """Returns the factors of dropout for the weights of block (i, j), None without dropout."""
    if dropout is None:
        return None
    z, g = scores.shape[:2]
    first = jnp.arange(z * g, dtype=jnp.uint32).reshape(z, g, 1, 1) * blocks.n
    rows = first + (i * blocks.rows + jnp.arange(blocks.rows)).astype(jnp.uint32)[:, None]
    columns = (j * blocks.columns + jnp.arange(blocks.columns)).astype(jnp.uint32)
    return dropout_factors(dropout, rows, columns)


def _times(weights: Scores, factors: Scores | None) -> Scores:
    return weights if factors is None else weights * factors


def _product(
    form: str, x: Float[Array, "z g _ _"], y: Float[Array, "z g _ _"]
) -> Float[Array, "z g _ _"]:
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)


def _loop(count: int, body: Callable[[Carry, Index], Carry], carry: Carry) -> Carry:
    """Returns the carry of a loop over block numbers, without a loop for a single block."""
    if count == 1:
        return body(carry, 0)
    return jax.lax.scan(lambda carry, i: (body(carry, i), None), carry, jnp.arange(count))[0]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def attend(inputs: Inputs, blocks: Blocks) -> Attended:
    """Returns, for padded inputs, the result of each query and the log-sum-exp of its scores, which
    is -inf where it sees nothing."""
    return _forward(inputs, blocks)[0]


def _forward(inputs: Inputs, blocks: Blocks) -> tuple[Attended, Residuals]:
    q, k, v, bias, mask, dropout = inputs
    z, g, n, _ = q.shape
    m, c = v.shape[2:]
    # Online softmax starts from a finite value: a row that sees nothing yet stays at zero weights.
    lowest = jnp.finfo(jnp.float32).min

    def rows(carry: Attended, i: Index) -> Attended:
        q_block = _rows(q, i, blocks)

        def columns(carry: Running, j: Index) -> Running:
            top, total, mixed = carry
            scores, _ = _score(q_block, _columns(k, j, blocks), bias, mask, i, j, blocks)
            new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            total = total * shrink + weights.sum(axis=-1, keepdims=True)
            factors = _factors(weights, dropout, i, j, blocks)
            weights, v_block = _times(weights, factors).astype(v.dtype), _columns(v, j, blocks)
            mixed = mixed * shrink + _product("zgnm,zgmc->zgnc", weights, v_block)
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
    mixed, log_sum = _loop(n // blocks.rows, rows, empty)
    # Named, so that rematerialisation can save them: with them the backward pass needs no second
    # forward pass of the attention.
    mixed, log_sum = (checkpoint_name(x, SAVED_RESIDUALS) for x in (mixed, log_sum))
    return (mixed, log_sum), (inputs, mixed, log_sum)


def _backward(
    blocks: Blocks, residuals: Residuals, cotangents: Attended
) -> tuple[tuple[FoldedQueries, FoldedKeys, FoldedValues, FoldedBias | None, None, None]]:
    inputs, mixed, log_sum = residuals
    d_mixed, d_log_sum = cotangents
    # Row sums of d_weights · weights, without the weights: FlashAttention, appendix B.2, eq. 4.
    # The gradient of the log-sum-exp itself is the weights, so it enters with the other sign.
    row_sum = (d_mixed.astype(jnp.float32) * mixed).sum(axis=-1, keepdims=True) - d_log_sum
    found = gradients(inputs, d_mixed, log_sum, row_sum, blocks)
    return ((*cast_gradients(found, inputs[:4]), None, None),)


def cast_gradients(found: Gradients, inputs: Gradients) -> Gradients:
    """Returns gradients in the dtypes of their inputs."""
    return jax.tree.map(lambda d, x: d.astype(x.dtype), found, inputs)


def gradients(
    inputs: Inputs, d_mixed: FoldedMixed, log_sum: RowValues, row_sum: RowValues, blocks: Blocks
) -> Gradients:
    """Returns gradients of queries, keys, values and bias, float32, given each row's log-sum-exp.

    row_sum: of the products of each row's weights and their cotangents. A padded query has
    d_mixed = 0 and row_sum = 0, so it adds nothing to any of them where its weights are finite:
    its log-sum-exp is that of its scores, or infinite.
    """
    q, k, v, bias, mask, dropout = inputs
    scale = q.shape[-1] ** -0.5
    # exp(score - log_sum) must be 0 where a query sees nothing: its scores are all -inf.
    log_sum = jnp.where(jnp.isneginf(log_sum), 0, log_sum)

    def columns(carry: Gradients, j: Index) -> Gradients:
        d_q, d_k, d_v, d_bias = carry
        k_block, v_block = _columns(k, j, blocks), _columns(v, j, blocks)

        def rows(carry: BlockGradients, i: Index) -> BlockGradients:
            d_q, d_k_block, d_v_block, d_bias = carry
            q_block, d_mixed_block = _rows(q, i, blocks), _rows(d_mixed, i, blocks)
            scores, slope = _score(q_block, k_block, bias, mask, i, j, blocks)
            weights = jnp.exp(scores - _rows(log_sum, i, blocks))
            d_weights = _product("zgnc,zgmc->zgnm", d_mixed_block, v_block)
            factors = _factors(weights, dropout, i, j, blocks)
            kept, d_weights = _times(weights, factors), _times(d_weights, factors)
            d_v_block += _product("zgnc,zgnm->zgcm", d_mixed_block, kept.astype(v.dtype))
            d_scores = weights * (d_weights - _rows(row_sum, i, blocks))
            if d_bias is not None:
                d_bias = _add_to_bias(d_bias, d_scores, i, j, blocks)
            d_scores = d_scores * scale if slope is None else d_scores * (scale * slope)
            # Not rounded to the dtype of q and k: dense's gradient doesn't either.
            d_k_block += _product("zgnk,zgnm->zgkm", q_block, d_scores)
            d_q_block = _product("zgnm,zgmk->zgnk", d_scores, k_block)
            d_q = _put(d_q, _rows(d_q, i, blocks) + d_q_block, i * blocks.rows)
            return d_q, d_k_block, d_v_block, d_bias

        d_k_block, d_v_block = (jnp.zeros(jnp.swapaxes(x, 2, 3).shape) for x in (k_block, v_block))
        start = (d_q, d_k_block, d_v_block, d_bias)
        d_q, d_k_block, d_v_block, d_bias = _loop(q.shape[2] // blocks.rows, rows, start)
        d_k, d_v = (
            _put(whole, jnp.swapaxes(block, 2, 3), j * blocks.columns)
            for whole, block in ((d_k, d_k_block), (d_v, d_v_block))
        )
        return d_q, d_k, d_v, d_bias

    d_q, d_k, d_v = (jnp.zeros(x.shape) for x in (q, k, v))
    d_bias = None if bias is None else jnp.zeros(bias.shape)
    return _loop(k.shape[2] // blocks.columns, columns, (d_q, d_k, d_v, d_bias))


def _add_to_bias(
    d_bias: FoldedBias, d_scores: Scores, i: Index, j: Index, blocks: Blocks
) -> FoldedBias:
    """Returns d_bias plus block (i, j), summed over the axes along which the bias was broadcast."""
    summed = tuple(
        axis for axis in range(3) if d_bias.shape[axis] == 1 and d_scores.shape[axis] > 1
    )
    block = d_scores.sum(axis=summed, keepdims=True)
    i = 0 if d_bias.shape[2] == 1 else i
    start = (0, 0, i * blocks.rows, j * blocks.columns)
    return jax.lax.dynamic_update_slice(
        d_bias, jax.lax.dynamic_slice(d_bias, start, block.shape) + block, start
    )


attend.defvjp(_forward, _backward)
