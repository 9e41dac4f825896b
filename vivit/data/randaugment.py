"""RandAugment (1909.13719) of clips on the device: one draw for all frames of a clip.

Operations are of three kinds: a geometric one warps, one of colour blends with something or maps
the levels. Under vmap every clip computes all of them and keeps its own; so they share what they
can: one warp serves all that are geometric.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.data import colour
from vivit.data.colour import Frames, Scalar
from vivit.registry import Registry

FILL = 128.0  # what comes in from beyond the edge


class Operation(NamedTuple):
    """strength: magnitude in 0 .. 1 and a sign (-1 or 1) -> its argument, as in the paper's code.

    Either matrix: (argument, height, width) -> affine map [2, 3] from a pixel of the result to one
    of the frame; or apply: (frames, argument) -> frames.
    """

    strength: Callable[[Scalar, Scalar], Scalar]
    matrix: Callable[[Scalar, int, int], Array] | None = None
    apply: Callable[[Frames, Scalar], Frames] | None = None


OPERATIONS: Registry[Operation] = Registry("operation of RandAugment")


def _affine(strength: Callable[[Scalar, Scalar], Scalar]):
    def register(matrix: Callable[[Scalar, int, int], Array]):
        OPERATIONS.add(matrix.__name__, Operation(strength, matrix=matrix))
        return matrix

    return register


def _rows(*rows: tuple) -> Array:
    return jnp.stack([jnp.stack([jnp.asarray(x, jnp.float32) for x in row]) for row in rows])


@_affine(lambda m, sign: sign * m * jnp.pi / 6)
def rotate(angle: Scalar, height: int, width: int) -> Float[Array, "2 3"]:
    """Turns anticlockwise around the middle, by up to 30 degrees."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = (height - 1) / 2, (width - 1) / 2
    return _rows((cos, sin, y - cos * y - sin * x), (-sin, cos, x + sin * y - cos * x))


@_affine(lambda m, sign: sign * m * 0.3)
def shear_x(by: Scalar, height: int, width: int) -> Float[Array, "2 3"]:
    """Moves rows sideways, the more the lower, by up to 0.3 of their height."""
    return _rows((1.0, 0.0, 0.0), (by, 1.0, 0.0))


@_affine(lambda m, sign: sign * m * 0.3)
def shear_y(by: Scalar, height: int, width: int) -> Float[Array, "2 3"]:
    """Moves columns up or down, the more the further right."""
    return _rows((1.0, by, 0.0), (0.0, 1.0, 0.0))


@_affine(lambda m, sign: sign * m * 0.45)
def translate_x(by: Scalar, height: int, width: int) -> Float[Array, "2 3"]:
    """Moves sideways by up to 0.45 of the width."""
    return _rows((1.0, 0.0, 0.0), (0.0, 1.0, by * width))


@_affine(lambda m, sign: sign * m * 0.45)
def translate_y(by: Scalar, height: int, width: int) -> Float[Array, "2 3"]:
    """Moves up or down by up to 0.45 of the height."""
    return _rows((1.0, 0.0, by * height), (0.0, 1.0, 0.0))


def _blending(other: Callable[[Frames], Frames]) -> Operation:
    blend = lambda clip, factor: colour.blend(clip, other(clip), factor)
    return Operation(lambda m, sign: 1 + 0.9 * sign * m, apply=blend)


OPERATIONS.add("brightness", _blending(colour.without_light))
OPERATIONS.add("colour", _blending(colour.grey))
OPERATIONS.add("contrast", _blending(colour.without_contrast))
OPERATIONS.add("sharpness", _blending(colour.without_detail))
OPERATIONS.add("posterize", Operation(lambda m, _: 8 - jnp.round(4 * m), apply=colour.posterize))
OPERATIONS.add("solarize", Operation(lambda m, _: 256 * (1 - m), apply=colour.solarize))
OPERATIONS.add("invert", Operation(lambda m, _: m, apply=lambda clip, _: 255 - clip))
OPERATIONS.add(
    "autocontrast", Operation(lambda m, _: m, apply=lambda clip, _: colour.autocontrast(clip))
)
OPERATIONS.add("equalize", Operation(lambda m, _: m, apply=lambda clip, _: colour.equalize(clip)))
OPERATIONS.add("identity", Operation(lambda m, _: m, apply=lambda clip, _: clip))


def warp(clip: Frames, matrix: Float[Array, "2 3"]) -> Frames:
    """Each pixel from where an affine map of its (y, x) leads, bilinear; FILL from beyond."""
    _, height, width, _ = clip.shape
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    at = jnp.einsum("ij,jhw->ihw", matrix[:, :2], jnp.stack([y, x]).astype(jnp.float32))
    y, x = at[0] + matrix[0, 2], at[1] + matrix[1, 2]
    top, left = jnp.floor(y), jnp.floor(x)
    out = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = top + dy, left + dx
            weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            i = jnp.clip(row, 0, height - 1).astype(jnp.int32)
            j = jnp.clip(column, 0, width - 1).astype(jnp.int32)
            picked = jnp.where(inside[..., None], clip[:, i, j], FILL)
            out = out + weight[..., None] * picked
    return out


def apply(name: str, clip: Frames, magnitude: Scalar, sign: Scalar) -> Frames:
    """One operation by name, at a magnitude in 0 .. 1."""
    operation = OPERATIONS[name]
    argument = operation.strength(magnitude, sign)
    if operation.matrix is not None:
        return warp(clip, operation.matrix(argument, *clip.shape[1:3]))
    assert operation.apply is not None
    return operation.apply(clip, argument)


def randaugment(clip: Frames, key: Array, *, count: int, magnitude: float) -> Frames:
    """`count` operations, each drawn from all with equal chance; magnitude in 0 .. 1."""
    size, strength = clip.shape[1:3], jnp.float32(magnitude)
    operations = [OPERATIONS[name] for name in OPERATIONS]
    moving = [(x.matrix, x.strength) for x in operations if x.matrix]
    still = [name for name in OPERATIONS if not OPERATIONS[name].matrix]
    for own in jax.random.split(key, count):
        which, side = jax.random.split(own)
        chosen = jax.random.randint(which, (), 0, len(moving) + len(still))
        sign = jnp.where(jax.random.bernoulli(side), 1.0, -1.0)
        matrices = jnp.stack([make(by(strength, sign), *size) for make, by in moving])
        matrix = matrices[jnp.minimum(chosen, len(moving) - 1)]
        branches = [partial(warp, matrix=matrix)]
        branches += [partial(apply, name, magnitude=strength, sign=sign) for name in still]
        clip = jax.lax.switch(jnp.maximum(chosen - len(moving) + 1, 0), branches, clip)
    return clip
