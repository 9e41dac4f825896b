"""Exact attention over tokens that are split over devices, on the mesh axis `SEQUENCE`.

Every device holds n / P queries and m / P keys of each set. Other mesh axes split the first set
axis, the clips.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vivit.attention.chunks import (
    CHUNK,
    Blocks,
    Extras,
    attend,
    attend_in_chunks,
    cut,
    fold,
    gradients,
    pad,
)

SEQUENCE = "sequence"


def attend_in_ring(
    q, k, v, *, bias=None, mask=None, soft_cap=None, dropout=None, chunk: int = CHUNK
):
    """`vivit.attention.kernels.ring`."""
    size = _ring_size("ring", q, k, dropout)

    def on_device(q, k, v, bias, mask):
        q, k, v, extras, restore = fold(
            q, k, v, bias=bias, mask=mask, dropout=None, m=k.shape[-3] * size
        )
        blocks = cut(q, k, chunk=chunk, soft_cap=soft_cap, dtype=jnp.float32)
        out = _ring(q, k, v, extras.bias, extras.mask, blocks, size)
        return restore(out.astype(v.dtype))

    return _shard_map(on_device, q, k, v, bias, mask, pairs_axis=-2)


def attend_by_all_to_all(
    q, k, v, *, bias=None, mask=None, soft_cap=None, dropout=None, chunk: int = CHUNK
):
    """`vivit.attention.kernels.ulysses`."""
    size = _ring_size("ulysses", q, k, dropout)
    for name, heads in (("heads", q.shape[-2]), ("kv_heads", k.shape[-2])):
        if heads % size:
            raise ValueError(
                f'kernel "ulysses" splits {name}={heads} over parallel.{SEQUENCE}={size} devices, '
                'which does not divide; use kernel="ring"'
            )
    move = partial(jax.lax.all_to_all, axis_name=SEQUENCE, tiled=True)

    def on_device(q, k, v, bias, mask):
        tokens, heads = q.ndim - 3, q.ndim - 2
        q, k, v = (move(x, split_axis=heads, concat_axis=tokens) for x in (q, k, v))
        out = attend_in_chunks(q, k, v, bias=bias, mask=mask, soft_cap=soft_cap, chunk=chunk)
        return move(out, split_axis=tokens, concat_axis=heads)

    return _shard_map(on_device, q, k, v, bias, mask, pairs_axis=-3)


def _ring_size(name: str, q, k, dropout) -> int:
    """Devices along the sequence axis; ValueError where the kernel can't run."""
    mesh = jax.sharding.get_abstract_mesh()
    size = dict(mesh.shape).get(SEQUENCE, 1)
    if size == 1:
        raise ValueError(
            f'kernel "{name}" splits tokens over devices and there is no mesh axis to split them '
            f'over; set parallel.{SEQUENCE} above 1, or use kernel="chunked"'
        )
    if dropout is not None:
        raise ValueError(f'kernel "{name}" has no dropout of attention weights')
    for what, length in (("queries", q.shape[-3]), ("keys", k.shape[-3])):
        if length % size:
            raise ValueError(
                f'kernel "{name}" splits {length} {what} of a set over parallel.{SEQUENCE}={size} '
                "devices, which does not divide; choose a clip, a tubelet and a readout (a class "
                "token is one token more) so that it does"
            )
    clips = math.prod(mesh.shape[axis] for axis in _others())
    if q.ndim > 3 and q.shape[0] % clips:
        raise ValueError(f"a batch of {q.shape[0]} clips is no multiple of {clips} devices")
    return size


def _others() -> tuple[str, ...]:
    names = jax.sharding.get_abstract_mesh().axis_names
    return tuple(name for name in names if name != SEQUENCE)


def _token_spec(x) -> PartitionSpec:
    """Of queries, keys and values: split along their tokens."""
    axes: list[Any] = [None] * x.ndim
    axes[-3] = SEQUENCE
    if x.ndim > 3:
        axes[0] = _others()
    return PartitionSpec(*axes)


def _pair_spec(x, *, axis: int, ndim: int) -> PartitionSpec:
    """Of a bias or a mask: split along `axis` (heads or queries), unless it broadcasts there."""
    axes: list[Any] = [None] * x.ndim
    if x.ndim >= -axis and x.shape[axis] > 1:
        axes[axis] = SEQUENCE
    if x.ndim == ndim > 3 and x.shape[0] > 1:
        axes[0] = _others()
    return PartitionSpec(*axes)


def _shard_map(function, q, k, v, bias, mask, *, pairs_axis: int):
    pairs = partial(_pair_spec, axis=pairs_axis, ndim=q.ndim)
    extra = tuple(None if x is None else pairs(x) for x in (bias, mask))
    return jax.shard_map(
        function,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(*(_token_spec(x) for x in (q, k, v)), *extra),
        out_specs=_token_spec(q),
        check_vma=False,
    )(q, k, v, bias, mask)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _ring(q, k, v, bias, mask, blocks: Blocks, size: int):
    """On one device: its queries [z, g, n, k], its keys and values, bias and mask of its queries
    and all keys. float32."""
    return _ring_forward(q, k, v, bias, mask, blocks, size)[0]


def _pass_on(x, size: int):
    """To the next device of the ring, from the one before."""
    return jax.lax.ppermute(x, SEQUENCE, [(i, (i + 1) % size) for i in range(size)])


def _holder(step, size: int):
    """Whose keys this device holds at a step."""
    return (jax.lax.axis_index(SEQUENCE) - step) % size


def _columns_of(x, owner, m: int):
    return None if x is None else jax.lax.dynamic_slice_in_dim(x, owner * m, m, axis=3)


def _ring_forward(q, k, v, bias, mask, blocks, size):
    def attend_to(k, v, step):
        owner = _holder(step, size)
        extras = Extras(*(_columns_of(x, owner, blocks.m) for x in (bias, mask)), None)
        padded, k, v, extras = pad(q, k, v, extras, blocks)
        attended: Any = attend(padded, k, v, *extras, blocks)
        return tuple(x[:, :, : blocks.n] for x in attended)

    def step(carry, number):
        out, log_sum, k, v = carry
        k, v = (_pass_on(x, size) for x in (k, v))
        new_out, new_log_sum = attend_to(k, v, number)
        both = jnp.logaddexp(log_sum, new_log_sum)
        finite = jnp.where(jnp.isneginf(both), 0, both)
        out = out * jnp.exp(log_sum - finite) + new_out * jnp.exp(new_log_sum - finite)
        return (out, both, k, v), None

    start = (*attend_to(k, v, 0), k, v)
    (out, log_sum, _, _), _ = jax.lax.scan(step, start, jnp.arange(1, size))
    return out, (q, k, v, bias, mask, out, log_sum)


def _ring_backward(blocks, size, saved, d_out):
    q, k, v, bias, mask, out, log_sum = saved
    row_sum = (d_out * out).sum(axis=-1, keepdims=True)
    more_rows = [(0, 0), (0, 0), (0, -blocks.n % blocks.rows), (0, 0)]
    d_out, row_sum = (jnp.pad(x, more_rows) for x in (d_out.astype(v.dtype), row_sum))
    # Padded queries weigh nothing, whatever a bias makes of their scores.
    rows = (d_out, jnp.pad(log_sum, more_rows, constant_values=jnp.inf), row_sum)

    def step(carry, number):
        d_q, d_bias, k, v, d_k, d_v = carry
        owner = _holder(number, size)
        extras = Extras(*(_columns_of(x, owner, blocks.m) for x in (bias, mask)), None)
        padded, k_padded, v_padded, extras = pad(q, k, v, extras, blocks)
        more_q, more_k, more_v, more_bias = gradients(
            padded, k_padded, v_padded, *extras, *rows, blocks
        )
        d_q += more_q[:, :, : blocks.n]
        d_k += more_k[:, :, : blocks.m]
        d_v += more_v[:, :, : blocks.m]
        if bias is not None:
            part = more_bias[:, :, : bias.shape[2], : blocks.m]
            d_bias = jax.lax.dynamic_update_slice_in_dim(d_bias, part, owner * blocks.m, axis=3)
        # After as many steps as there are devices, keys and their gradients are home again.
        return (d_q, d_bias, *(_pass_on(x, size) for x in (k, v, d_k, d_v))), None

    zeros = lambda x: None if x is None else jnp.zeros(x.shape)
    start = (zeros(q), zeros(bias), k, v, zeros(k), zeros(v))
    (d_q, d_bias, _, _, d_k, d_v), _ = jax.lax.scan(step, start, jnp.arange(size))
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    d_q, d_k, d_v = (d.astype(x.dtype) for d, x in ((d_q, q), (d_k, k), (d_v, v)))
    return d_q, d_k, d_v, d_bias, None


_ring.defvjp(_ring_forward, _ring_backward)
