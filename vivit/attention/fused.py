"""The platform's own attention: cuDNN on NVIDIA GPUs, Pallas splash attention on TPUs."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vivit.attention.chunks import heads_first, heads_last
from vivit.attention.devices import axis_size, on_each_device, platform
from vivit.attention.dropout import WeightDropout
from vivit.attention.kernels import Bias, Keys, Mask, Mixed, Queries, Values, kernel
from vivit.attention.requirements import KernelRequirements
from vivit.mesh import SEQUENCE

LANES = 128  # splash attention's blocks are multiples of a TPU's lanes
SUBLANES = 16  # and channels, on the sublanes, are multiples of what a bfloat16 tile has of these


def unsupported_reason(requirements: KernelRequirements) -> str:
    """Returns why the mesh's platform cannot meet the requirements, or "" where it can."""
    if (requirements.value_channels or 0) > requirements.channels:
        return f"it takes no values of more channels than the keys' {requirements.channels}"
    if axis_size(SEQUENCE) > 1:
        return f'parallel.{SEQUENCE} splits tokens over devices, which "ring" and "ulysses" take'
    if platform() not in PLATFORM_KERNELS:
        return f"it needs an NVIDIA GPU with cuDNN or a TPU, and this is for {platform()}"
    return PLATFORM_KERNELS[platform()].unsupported(requirements)


# Splash attention pads each set to a block: over 16 time steps that is most of the memory.
SHORTEST_FOR_AUTO = {"tpu": LANES * LANES}


@kernel(
    "fused",
    unsupported=unsupported_reason,
    auto_order=0,
    auto_scores=lambda platform: (SHORTEST_FOR_AUTO.get(platform, 0), math.inf),
)
def fused(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    bias: Bias | None = None,
    mask: Mask | None = None,
    soft_cap: float | None = None,
    dropout: WeightDropout | None = None,
) -> Mixed:
    """Returns what the platform's own kernel gives: cuDNN's on NVIDIA GPUs, Pallas splash attention
    on TPUs. On a mesh each device computes its clips, and its heads if the axis `tensor` divides
    them. Raises ValueError where it cannot run."""
    requirements = KernelRequirements.of_call(
        q, v, bias=bias, mask=mask, soft_cap=soft_cap, dropout=dropout
    )
    reason = unsupported_reason(requirements)
    if reason:
        raise ValueError(f'kernel "fused" can\'t run: {reason}; use kernel="auto" or "chunked"')
    options = {} if soft_cap is None else {"soft_cap": soft_cap}
    return on_each_device(partial(PLATFORM_KERNELS[platform()].attend, **options), q, k, v)


def _unsupported_by_cudnn(requirements: KernelRequirements) -> str:
    """Requirements of JAX's cuDNN attention. Masks and biases are rejected deliberately: with an
    explicit mask its backward pass gives NaN at lengths of 64 more than a multiple of 128
    (pytorch#196678), and it has a bias's gradient for a batch of one only (jax#30593)."""
    dtype, channels = requirements.dtype, requirements.channels
    problems = []
    if dtype not in ("bfloat16", "float16"):
        problems.append(f'cuDNN computes in bfloat16, not {dtype} (model.dtype="bfloat16")')
    if channels % 8 or channels > 128:
        problems.append(
            f"cuDNN takes channels per head in multiples of 8 up to 128, not {channels}"
        )
    if requirements.options:
        problems.append(f"cuDNN has no sound {', '.join(requirements.options)}")
    return "; ".join(problems)


def by_cudnn(
    q: Queries, k: Keys, v: Values, *, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> Mixed:
    """Returns attention by `jax.nn.dot_product_attention`.

    implementation: "cudnn", or "xla" to check this function on any machine.
    """
    *sets, n, h, channels = q.shape
    m, values = k.shape[-3], v.shape[-1]
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    # cuDNN's queries, keys and values have the same number of channels.
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, channels - values)))
    # JAX refuses odd numbers of tokens, as with a class token, and cuDNN's backward pass one query.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(k.shape[0], m, jnp.int32) if m % 2 else None
    out = jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation=implementation
    )
    return out[:, :n, :, :values].reshape(*sets, n, h, values)


def _unsupported_by_splash(requirements: KernelRequirements) -> str:
    lacks = [name for name in requirements.options if name != "soft_cap"]
    return f"splash attention has no {', '.join(lacks)}" if lacks else ""


def by_splash(
    q: Queries, k: Keys, v: Values, *, soft_cap: float | None = None, interpret: bool = False
) -> Mixed:
    """Returns splash attention of sets of any length: padding is a segment of its own.

    interpret: run the TPU kernel's program on any machine, slowly, to check it.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    *sets, n, h, _ = q.shape
    m, g = k.shape[-3:-1]
    values = v.shape[-1]
    q = q * q.shape[-1] ** -0.5  # splash doesn't scale
    q, k, v = (_pad_to_tiles(heads_first(x)) for x in (q, k, v))  # [z, h, n, k]
    if h > g:  # grouped: splash's keys have as many heads as its queries
        k, v = (jnp.repeat(x, h // g, axis=1) for x in (k, v))
    real = [np.arange(x.shape[2]) < length for x, length in ((q, n), (k, m))]
    segments = SegmentIds(*(jnp.asarray(x, jnp.int32) for x in real))
    attend = _splash(h, q.shape[2], k.shape[2], soft_cap, interpret)
    out = jax.vmap(partial(attend, segment_ids=segments))(q, k, v)
    return heads_last(out[:, :, :n, :values], sets)


def _splash(
    heads: int, n: int, m: int, soft_cap: float | None, interpret: bool
) -> Callable[..., Any]:
    """Returns (q [h, n, k], k [h, m, k], v [h, m, c]) -> [h, n, c], splash attention of one set."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    mask = splash_attention.MultiHeadMask([splash_attention.FullMask((n, m))] * heads)
    rows, columns = _block(n), _block(m)
    # Tokens on the lanes: channels there would be padded from 64 to 128, which costs 10 % more
    # memory in B and 15 % in L (the figures are in CHANGELOG.md).
    layout = splash_attention.QKVLayout.SEQ_MINOR
    sizes = splash_attention.BlockSizes(
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
        block_q=rows,
        block_kv=columns,
        block_kv_compute=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    # Made anew in every trace: it holds arrays that belong to the trace.
    return splash_attention.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )


def _block(length: int) -> int:
    return max(b for b in (LANES, 2 * LANES, 4 * LANES) if length % b == 0)


def _pad_to_tiles(x: Float[Array, "z h n k"]) -> Float[Array, "z h padded_n padded_k"]:
    """Returns tokens padded with zeros to a multiple of the lanes, and channels of the sublanes."""
    more = [(0, 0), (0, 0), (0, -x.shape[2] % LANES), (0, -x.shape[3] % SUBLANES)]
    return jnp.pad(x, more)


class PlatformKernel(NamedTuple):
    """A platform's own attention. attend: (q, k, v, soft_cap=) -> the result for each query.
    unsupported: requirements -> why it cannot meet them, or "" where it can."""

    attend: Callable[..., Mixed]
    unsupported: Callable[[KernelRequirements], str]


PLATFORM_KERNELS = {
    "gpu": PlatformKernel(by_cudnn, _unsupported_by_cudnn),
    "tpu": PlatformKernel(by_splash, _unsupported_by_splash),
}
