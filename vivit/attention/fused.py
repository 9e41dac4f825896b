"""The platform's own attention: cuDNN on NVIDIA GPUs, Pallas splash attention on TPUs."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from vivit.attention.chunks import heads_first, heads_last
from vivit.attention.demand import Demand

LANES = 128  # splash attention's blocks and channels come in multiples of a TPU's lanes


def why_not_fused(demand: Demand) -> str:
    """Why this process's platform can't meet a demand, or ""."""
    platform = jax.default_backend()
    if platform == "gpu":
        return _why_not_cudnn(demand)
    if platform == "tpu":
        return _why_not_splash(demand)
    return f"it needs an NVIDIA GPU with cuDNN or a TPU, and this process runs on {platform}"


def attend_fused(q, k, v, **options):
    """`vivit.attention.kernels.fused`; ValueError where it can't run."""
    reason = why_not_fused(Demand.of(q, options))
    if reason:
        raise ValueError(f'kernel "fused" can\'t run: {reason}; use kernel="auto" or "chunked"')
    if jax.default_backend() == "gpu":
        return by_cudnn(q, k, v, implementation="cudnn")
    return by_splash(q, k, v, soft_cap=options.get("soft_cap"))


def _why_not_cudnn(demand: Demand) -> str:
    """JAX's door to cuDNN. Masks and biases stay outside on purpose: with an explicit mask its
    backward pass gives NaN at lengths of 64 more than a multiple of 128 (pytorch#196678), and it
    has a bias's gradient for a batch of one only (jax#30593)."""
    problems = []
    if demand.dtype not in ("bfloat16", "float16"):
        problems.append(f'cuDNN computes in bfloat16, not {demand.dtype} (model.dtype="bfloat16")')
    if demand.channels % 8 or demand.channels > 128:
        problems.append(
            f"cuDNN takes channels per head in multiples of 8 up to 128, not {demand.channels}"
        )
    if demand.options():
        problems.append(f"cuDNN has no sound {', '.join(demand.options())}")
    return "; ".join(problems)


def by_cudnn(q, k, v, *, implementation: str):
    """implementation: as in jax.nn.dot_product_attention; "xla" checks this on any machine."""
    *sets, n, h, channels = q.shape
    values = v.shape[-1]
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, channels - values)))  # it wants them equal
    out = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    return out[..., :values].reshape(*sets, n, h, values)


def _why_not_splash(demand: Demand) -> str:
    lacks = [name for name in demand.options() if name != "soft_cap"]
    return f"splash attention has no {', '.join(lacks)}" if lacks else ""


def by_splash(q, k, v, *, soft_cap: float | None = None, interpret: bool = False):
    """Splash attention of sets of any length: padding is a segment of its own.

    interpret: run the TPU kernel's program on any machine, slowly, to check it.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    *sets, n, h, _ = q.shape
    m, g = k.shape[-3:-1]
    values = v.shape[-1]
    q = q * q.shape[-1] ** -0.5  # splash doesn't scale
    q, k, v = (_pad_to_lanes(heads_first(x)) for x in (q, k, v))
    if h > g:  # grouped: splash's keys have as many heads as its queries
        k, v = (jnp.repeat(x, h // g, axis=1) for x in (k, v))
    real = [np.arange(x.shape[2]) < length for x, length in ((q, n), (k, m))]
    segments = SegmentIds(*(jnp.asarray(x, jnp.int32) for x in real))
    attend = _splash(h, q.shape[2], k.shape[2], soft_cap, interpret)
    out = jax.vmap(partial(attend, segment_ids=segments))(q, k, v)
    return heads_last(out[:, :, :n, :values], sets)


@cache
def _splash(heads: int, n: int, m: int, soft_cap: float | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention

    mask = splash_attention.MultiHeadMask([splash_attention.FullMask((n, m))] * heads)
    block = lambda length: max(b for b in (LANES, 2 * LANES, 4 * LANES) if length % b == 0)
    rows, columns = block(n), block(m)
    sizes = splash_attention.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    with jax.ensure_compile_time_eval():
        return splash_attention.make_splash_mha(
            mask,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=soft_cap,
            interpret=interpret,
        )


def _pad_to_lanes(x):
    """Tokens and channels [z, h, n, k] padded with zeros to multiples of the lanes."""
    more = [(0, 0), (0, 0), (0, -x.shape[2] % LANES), (0, -x.shape[3] % LANES)]
    return jnp.pad(x, more)
