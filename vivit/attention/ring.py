"""Exact attention over tokens that are split over devices, on the mesh axis `SEQUENCE`.

Every device holds n / P queries and m / P keys of each set. CLIP_AXES split the first set axis, the
clips, and TENSOR the heads if it divides them. In shapes within one device r and m are its rows and
keys; `all` is the number of keys of all devices.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from vivit.attention.chunks import (
    CHUNK,
    Attended,
    Blocks,
    FoldedBias,
    FoldedKeys,
    FoldedMask,
    FoldedMixed,
    FoldedQueries,
    FoldedValues,
    Index,
    RowValues,
    attend,
    cast_gradients,
    chunked,
    fold_pairs,
    fold_queries,
    gradients,
    heads_first,
    make_blocks,
    pad,
    unfold,
)
from vivit.attention.devices import axis_size, check_clips, head_axis, token_spec
from vivit.attention.kernels import Bias, Keys, Mask, Mixed, Queries, Values, kernel
from vivit.mesh import CLIP_AXES, SEQUENCE, TENSOR

RingBias: TypeAlias = Float[Array, "#z #g #r all"]
RingMask: TypeAlias = Bool[Array, "#z #g #r all"]
RingInputs: TypeAlias = tuple[
    FoldedQueries, FoldedKeys, FoldedValues, RingBias | None, RingMask | None
]
RingResiduals: TypeAlias = tuple[RingInputs, FoldedMixed, RowValues]
ForwardCarry: TypeAlias = tuple[FoldedMixed, RowValues, FoldedKeys, FoldedValues]
BackwardCarry: TypeAlias = tuple[  # gradients of queries and bias; keys, values and their gradients
    FoldedQueries, RingBias | None, FoldedKeys, FoldedValues, FoldedKeys, FoldedValues
]


@kernel("ring", over_devices=True)
def ring(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    bias: Bias | None = None,
    mask: Mask | None = None,
    soft_cap: float | None = None,
    chunk: int = CHUNK,
) -> Mixed:
    """Returns what `dense` returns, for tokens split over devices; keys and values go around.

    Liu et al. (2310.01889). Needs parallel.sequence > 1 and lengths that it divides. Each device
    holds its tokens and one neighbour's, and blocks of scores as in `chunked`.
    """
    size = _ring_size("ring", q, k)

    def on_device(q: Queries, k: Keys, v: Values, bias: Bias | None, mask: Mask | None) -> Mixed:
        m, g = k.shape[-3:-1]
        bias, mask = (
            None if x is None else fold_pairs(x, q, g=g, m=m * size) for x in (bias, mask)
        )
        inputs = fold_queries(q, g), heads_first(k), heads_first(v), bias, mask
        blocks = make_blocks(
            *inputs[:2], chunk=chunk, soft_cap=soft_cap, dtype=np.dtype(jnp.float32)
        )
        mixed: FoldedMixed = _ring(inputs, blocks, size)  # custom_vjp has no return type
        return unfold(mixed.astype(v.dtype), q)

    return _shard_map(on_device, q, k, v, bias, mask, pairs_axis=-2)


@kernel("ulysses", over_devices=True)
def ulysses(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    bias: Bias | None = None,
    mask: Mask | None = None,
    soft_cap: float | None = None,
    chunk: int = CHUNK,
) -> Mixed:
    """Returns what `dense` returns, for tokens split over devices, by splitting heads instead.

    DeepSpeed Ulysses, Jacobs et al. (2309.14509). Needs parallel.sequence > 1 that divides the
    lengths and the heads of queries and of keys.
    """
    size = _ring_size("ulysses", q, k)
    on_device_heads = axis_size(TENSOR) if head_axis(q.shape[-2], k.shape[-2]) else 1
    for name, heads in (("heads", q.shape[-2]), ("kv_heads", k.shape[-2])):
        if heads // on_device_heads % size:
            by_tensor = f" x {TENSOR}={on_device_heads}" if on_device_heads > 1 else ""
            raise ValueError(
                f'kernel "ulysses" splits {name}={heads} over parallel.{SEQUENCE}={size}'
                f'{by_tensor} devices, which does not divide; use kernel="ring"'
            )
    move = partial(jax.lax.all_to_all, axis_name=SEQUENCE, tiled=True)

    def on_device(q: Queries, k: Keys, v: Values, bias: Bias | None, mask: Mask | None) -> Mixed:
        tokens, heads = q.ndim - 3, q.ndim - 2
        q, k, v = (move(x, split_axis=heads, concat_axis=tokens) for x in (q, k, v))
        out = chunked(q, k, v, bias=bias, mask=mask, soft_cap=soft_cap, chunk=chunk)
        return move(out, split_axis=tokens, concat_axis=heads)

    return _shard_map(on_device, q, k, v, bias, mask, pairs_axis=-3)


def _ring_size(name: str, q: Queries, k: Keys) -> int:
    """Returns the number of devices along SEQUENCE. Raises ValueError where `name` cannot run."""
    size = axis_size(SEQUENCE)
    if size == 1:
        raise ValueError(
            f'kernel "{name}" splits tokens over devices and there is no mesh axis to split them '
            f'over; set parallel.{SEQUENCE} above 1, or use kernel="chunked"'
        )
    for what, length in (("queries", q.shape[-3]), ("keys", k.shape[-3])):
        if length % size:
            raise ValueError(
                f'kernel "{name}" splits {length} {what} of a set over parallel.{SEQUENCE}={size} '
                "devices, which does not divide; choose a clip, a tubelet and a readout (a class "
                "token is one token more) so that it does"
            )
    check_clips(q)
    return size


def _pair_spec(x: Shaped[Array, "..."], *, split: Mapping[int, Any], ndim: int) -> PartitionSpec:
    """Returns the spec of a bias or a mask, unless it broadcasts along an axis.

    split: the mesh axes of its last dimensions -3 (heads) and -2 (queries). ndim: of the queries.
    """
    axes: list[Any] = [None] * x.ndim
    for axis, names in split.items():
        if x.ndim >= -axis and x.shape[axis] > 1:
            axes[axis] = names
    if x.ndim == ndim > 3 and x.shape[0] > 1:
        axes[0] = CLIP_AXES
    return PartitionSpec(*axes)


def _shard_map(
    function: Callable[[Queries, Keys, Values, Bias | None, Mask | None], Mixed],
    q: Queries,
    k: Keys,
    v: Values,
    bias: Bias | None,
    mask: Mask | None,
    *,
    pairs_axis: int,
) -> Mixed:
    """Returns function(q, k, v, bias, mask), each device computing it on its part of the arrays.

    pairs_axis: the axis along which SEQUENCE splits bias and mask: -3, heads, or -2, queries.
    """
    heads = head_axis(q.shape[-2], k.shape[-2])
    split = {-3: heads, pairs_axis: SEQUENCE}
    if heads and pairs_axis == -3:
        split = {-3: (heads, SEQUENCE)}  # TENSOR splits heads first, then all_to_all does
    pairs = partial(_pair_spec, split=split, ndim=q.ndim)
    extra = tuple(None if x is None else pairs(x) for x in (bias, mask))
    spec = partial(token_spec, heads=heads, tokens=SEQUENCE)
    return jax.shard_map(
        function,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(*map(spec, (q, k, v)), *extra),
        out_specs=spec(q),
        check_vma=False,
    )(q, k, v, bias, mask)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _ring(inputs: RingInputs, blocks: Blocks, size: int) -> FoldedMixed:
    """Returns the result for the queries of one device, float32, from all keys of the ring."""
    return _ring_forward(inputs, blocks, size)[0]


def _next_device(x: Shaped[Array, "z g m k"], size: int) -> Shaped[Array, "z g m k"]:
    """Returns the previous device's array, and sends this device's to the next one."""
    return jax.lax.ppermute(x, SEQUENCE, [(i, (i + 1) % size) for i in range(size)])


def _owner(step: Index, size: int) -> Int[Array, ""]:
    """Returns the index of the device whose keys this device holds at a step."""
    return (jax.lax.axis_index(SEQUENCE) - step) % size


def _keys_of(
    pairs: tuple[RingBias | None, RingMask | None], owner: Index, m: int
) -> tuple[FoldedBias | None, FoldedMask | None]:
    """Returns the columns of bias and mask for the m keys of a device."""
    bias, mask = (
        None if x is None else jax.lax.dynamic_slice_in_dim(x, owner * m, m, axis=3) for x in pairs
    )
    return bias, mask


def _ring_forward(
    inputs: RingInputs, blocks: Blocks, size: int
) -> tuple[FoldedMixed, RingResiduals]:
    q, k, v, bias, mask = inputs

    def attend_to(k: FoldedKeys, v: FoldedValues, step: Index) -> Attended:
        pairs = _keys_of((bias, mask), _owner(step, size), blocks.m)
        attended: Attended = attend(pad((q, k, v, *pairs, None), blocks), blocks)
        return attended[0][:, :, : blocks.n], attended[1][:, :, : blocks.n]

    def step(carry: ForwardCarry, number: Index) -> tuple[ForwardCarry, None]:
        mixed, log_sum, k, v = carry
        k, v = (_next_device(x, size) for x in (k, v))
        new_mixed, new_log_sum = attend_to(k, v, number)
        both = jnp.logaddexp(log_sum, new_log_sum)
        finite = jnp.where(jnp.isneginf(both), 0, both)
        mixed = mixed * jnp.exp(log_sum - finite) + new_mixed * jnp.exp(new_log_sum - finite)
        return (mixed, both, k, v), None

    start = (*attend_to(k, v, 0), k, v)
    (mixed, log_sum, _, _), _ = jax.lax.scan(step, start, jnp.arange(1, size))
    return mixed, (inputs, mixed, log_sum)


def _ring_backward(
    blocks: Blocks, size: int, residuals: RingResiduals, d_mixed: FoldedMixed
) -> tuple[tuple[FoldedQueries, FoldedKeys, FoldedValues, RingBias | None, None]]:
    (q, k, v, bias, mask), mixed, log_sum = residuals
    row_sum = (d_mixed * mixed).sum(axis=-1, keepdims=True)
    more_rows = [(0, 0), (0, 0), (0, -blocks.n % blocks.rows), (0, 0)]
    d_mixed, row_sum = (jnp.pad(x, more_rows) for x in (d_mixed.astype(v.dtype), row_sum))
    # Padded queries weigh nothing, whatever a bias makes of their scores.
    log_sum = jnp.pad(log_sum, more_rows, constant_values=jnp.inf)

    def step(carry: BackwardCarry, number: Index) -> tuple[BackwardCarry, None]:
        d_q, d_bias, k, v, d_k, d_v = carry
        owner = _owner(number, size)
        pairs = _keys_of((bias, mask), owner, blocks.m)
        padded = pad((q, k, v, *pairs, None), blocks)
        more_q, more_k, more_v, more_bias = gradients(padded, d_mixed, log_sum, row_sum, blocks)
        d_q += more_q[:, :, : blocks.n]
        d_k += more_k[:, :, : blocks.m]
        d_v += more_v[:, :, : blocks.m]
        if d_bias is not None and more_bias is not None:
            part = more_bias[:, :, : d_bias.shape[2], : blocks.m]
            d_bias = jax.lax.dynamic_update_slice_in_dim(d_bias, part, owner * blocks.m, axis=3)
        # After as many steps as there are devices, keys and their gradients are home again.
        k, v, d_k, d_v = (_next_device(x, size) for x in (k, v, d_k, d_v))
        return (d_q, d_bias, k, v, d_k, d_v), None

    d_q, d_k, d_v = (jnp.zeros(x.shape) for x in (q, k, v))
    d_bias = None if bias is None else jnp.zeros(bias.shape)
    start = (d_q, d_bias, k, v, d_k, d_v)
    (d_q, d_bias, _, _, d_k, d_v), _ = jax.lax.scan(step, start, jnp.arange(size))
    return ((*cast_gradients((d_q, d_k, d_v, d_bias), (q, k, v, bias)), None),)


_ring.defvjp(_ring_forward, _ring_backward)
