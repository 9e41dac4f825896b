"""Run by test_ring.py in a process with eight devices: the largest error of every case, as JSON.

JAX_NUM_CPU_DEVICES=8 python -m tests.attention.over_eight_devices
"""

import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from tests.attention.test_kernels import bfloat16_errors, draw, value_and_grads
from vivit.attention import KERNELS
from vivit.attention.devices import on_each_device
from vivit.attention.fused import by_splash
from vivit.attention.kernels import dense
from vivit.mesh import MESH_AXES, SEQUENCE

SHAPES = ((1, 1, 1, 8), (2, 1, 1, 4), (1, 1, 2, 4))  # of the mesh
LENGTHS = ((16, 24, 8, 8), (8, 8, 16, 8))  # queries, keys, heads, kv_heads


def over(mesh, kernel, **fixed):
    """A kernel, traced where it sees the mesh."""

    def attend(q, k, v, **options):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return KERNELS[kernel].attend(q, k, v, **fixed, **options)

    return attend


def worst(ours, theirs):
    """The largest difference between arrays that may be on other devices."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(jnp.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def cases(heads, n, m):
    rng = np.random.default_rng(n)
    bias = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    mask = lambda *shape: jnp.asarray(rng.random(shape) < 0.6)
    yield "plain", {}
    yield "soft cap", {"soft_cap": 1.5}
    yield "bias", {"bias": bias(heads, n, m)}
    yield "bias of sets", {"bias": bias(2, 1, n, m), "soft_cap": 2.0}
    yield "bias of keys", {"bias": bias(m)}
    yield "mask", {"mask": mask(n, m)}
    yield "mask and bias", {"mask": mask(2, heads, n, m), "bias": bias(heads, 1, m)}


def main():
    errors = {}
    # Every kernel with every option, mesh and lengths; not every combination of these three.
    for i, (shape, lengths) in enumerate(itertools.product(SHAPES, LENGTHS)):
        mesh = jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
        n, m, heads, kv_heads = lengths
        inputs = draw(n, m, heads=heads, kv_heads=kv_heads)
        for name, options in list(cases(heads, n, m))[i % 2 :: 2]:
            theirs = value_and_grads(dense, *inputs, **options)
            for kernel in ("ring", "ulysses"):
                with jax.set_mesh(mesh):
                    ours = value_and_grads(over(mesh, kernel), *inputs, **options)
                errors[f"{kernel} over {shape}, {n} queries, {name}"] = worst(ours, theirs)
    # The TPU's program, interpreted: each device computes its clips, and its heads if tensor
    # divides them.
    mesh = jax.make_mesh((2, 2, 2, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)

    def attend(q, k, v):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return on_each_device(partial(by_splash, interpret=True), q, k, v)

    for heads, kv_heads in ((4, 2), (3, 1)):
        inputs = draw(9, 20, sets=(4, 2), heads=heads, kv_heads=kv_heads)
        theirs = value_and_grads(dense, *inputs)
        with jax.set_mesh(mesh):
            ours = value_and_grads(attend, *inputs)
        errors[f"splash of {heads} heads"] = worst(ours, theirs)
    # Several blocks of rows and columns a device, both padded; some queries see nothing; and a
    # bias that would overflow where padding is not left out.
    mesh = jax.make_mesh((2, 1, 1, 4), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    mask = np.random.default_rng(0).random((44, 52)) < 0.5
    mask[[3, 20]] = False
    options = {"bias": draw(52, 1)[0][0, :, 0, 0] + 100, "mask": jnp.asarray(mask)}
    for kernel in ("ring", "ulysses"):
        inputs = draw(44, 52, heads=8, kv_heads=4)
        with jax.set_mesh(mesh):
            ours = value_and_grads(over(mesh, kernel, chunk=3), *inputs, **options)
        theirs = value_and_grads(dense, *inputs, **options)
        errors[f"{kernel}, blocks"] = worst(ours, theirs)
    mesh = jax.make_mesh((1, 1, 1, 8), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    exact = draw(64, 64, heads=8)
    rounded = {"dense": bfloat16_errors(dense, exact)}
    for kernel in ("ring", "ulysses"):
        with jax.set_mesh(mesh):
            rounded[kernel] = bfloat16_errors(over(mesh, kernel), exact)
    memory = {}
    for name, attend in (
        ("one device", KERNELS["chunked(64)"]),
        ("ring", over(mesh, "ring", chunk=64)),
    ):
        loss = lambda q, k, v, attend=attend: (attend(q, k, v) ** 2).sum()
        shard = jax.NamedSharding(mesh, jax.P(None, SEQUENCE)) if name == "ring" else None
        x = jax.ShapeDtypeStruct((1, 2048, 2, 16), jnp.float32, sharding=shard)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        memory[name] = compiled.memory_analysis().temp_size_in_bytes
    refused = {}
    for name, n, heads in (("ring", 12, 8), ("ulysses", 16, 4)):
        q, k, v, _ = draw(n, n, heads=heads)
        try:
            over(mesh, name)(q, k, v)
        except ValueError as error:
            refused[name] = str(error)
    rounded = {name: [float(e) for e in found] for name, found in rounded.items()}
    print(json.dumps([errors, rounded, memory, refused]))


if __name__ == "__main__":
    main()
