"""What kernels know of the devices when a model is built or traced: the ambient mesh.

A `vivit.parallel.Parallel` sets it around the building of a model and around its steps. Without one
a kernel runs on one device of this process.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from vivit.mesh import CLIP_AXES, SEQUENCE, TENSOR


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the mesh's, or without a mesh this process's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def axis_size(name: str) -> int:
    """Returns the number of devices along an axis of the mesh; 1 without that axis."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(name, 1)


def head_axis(*heads: int) -> str | None:
    """Returns the mesh axis that splits heads, or None where it divides not all these numbers."""
    size = axis_size(TENSOR)
    return TENSOR if size > 1 and not any(h % size for h in heads) else None


def token_spec(
    x: Shaped[Array, "*sets n h k"], *, heads: str | None, tokens: str | None = None
) -> PartitionSpec:
    """Returns the spec of queries, keys or values: clips over CLIP_AXES, and the given mesh axes
    for their heads and tokens."""
    clips = (CLIP_AXES,) if x.ndim > 3 else ()
    return PartitionSpec(*clips, *[None] * (x.ndim - 3 - len(clips)), tokens, heads, None)


def check_clips(q: Shaped[Array, "*sets n h k"]) -> None:
    """Raises ValueError if the first set axis, the clips, is not split evenly over CLIP_AXES."""
    clips = math.prod(map(axis_size, CLIP_AXES))
    if q.ndim > 3 and q.shape[0] % clips:
        raise ValueError(f"a batch of {q.shape[0]} clips is not a multiple of {clips} devices")


def on_each_device(
    attend: Callable[..., Float[Array, "*sets n h c"]],
    q: Float[Array, "*sets n h k"],
    k: Float[Array, "*sets m g k"],
    v: Float[Array, "*sets m g c"],
) -> Float[Array, "*sets n h c"]:
    """Returns attend(q, k, v), where each device of the mesh computes its clips, and its heads if
    TENSOR divides them: XLA cannot split the program of a kernel that it did not write.

    Raises ValueError for a mesh that splits tokens, or a batch that CLIP_AXES do not divide.
    """
    if all(axis_size(axis) == 1 for axis in (*CLIP_AXES, TENSOR, SEQUENCE)):
        return attend(q, k, v)
    check_clips(q)
    spec = partial(token_spec, heads=head_axis(q.shape[-2], k.shape[-2]))
    specs = tuple(map(spec, (q, k, v)))
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=spec(q), check_vma=False)(
        q, k, v
    )
