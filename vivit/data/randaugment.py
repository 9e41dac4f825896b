"""RandAugment (1909.13719) of clips on the device: one draw for all frames of a clip.

Under vmap every clip computes all operations and keeps one. All geometric operations share one
warp, which is the costly part.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.data import colour
from vivit.data.colour import Frames, Scalar
from vivit.ramps import Strength
from vivit.registry import Registry

FILL = 128.0  # what comes in from beyond the edge


class Operation(NamedTuple):
    """strength: magnitude and a sign (-1 or 1) -> its argument, as in the paper's code, whose
    largest magnitude is 1 here. Beyond it brightness and colours never turn negative.

    Either matrix: (argument, height, width) -> affine map [2, 3] from a pixel of the result to one
    of the frame; or apply: (frames, argument) -> frames.
    """

    strength: Callable[[Scalar, Scalar], Scalar]
    matrix: Callable[[Scalar, int, int], Array] | None = None
    apply: Callable[[Frames, Scalar], Frames] | None = None


OPERATIONS: Registry[Operation] = Registry("operation of RandAugment")


def _rows(*rows: tuple) -> Array:
    return jnp.stack([jnp.stack([jnp.asarray(x, jnp.float32) for x in row]) for row in rows])


def rotate(angle: Scalar, height: int, width: int) -> Float[Array, "2 3"]:
    """Returns the map that rotates anticlockwise around the middle."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = (height - 1) / 2, (width - 1) / 2
    return _rows((cos, sin, y - cos * y - sin * x), (-sin, cos, x + sin * y - cos * x))


def _affine(most: float, matrix: Callable[[Scalar, int, int], Array]) -> Operation:
    return Operation(lambda m, sign: sign * m * most, matrix=matrix)


Y, X = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)  # the rows of the identity
OPERATIONS.add("rotate", _affine(jnp.pi / 6, rotate))  # up to 30 degrees
OPERATIONS.add("shear_x", _affine(0.3, lambda by, h, w: _rows(Y, (by, 1.0, 0.0))))
OPERATIONS.add("shear_y", _affine(0.3, lambda by, h, w: _rows((1.0, by, 0.0), X)))
OPERATIONS.add("translate_x", _affine(0.45, lambda by, h, w: _rows(Y, (0.0, 1.0, by * w))))
OPERATIONS.add("translate_y", _affine(0.45, lambda by, h, w: _rows((1.0, 0.0, by * h), X)))


def _blending(other: Callable[[Frames], Frames]) -> Operation:
    blend = lambda clip, factor: colour.blend(clip, other(clip), factor)
    return Operation(lambda m, sign: jnp.maximum(1 + 0.9 * sign * m, 0.1), apply=blend)


OPERATIONS.add("brightness", _blending(colour.black))
OPERATIONS.add("colour", _blending(colour.grey))
OPERATIONS.add("contrast", _blending(colour.mean_grey))
OPERATIONS.add("sharpness", _blending(colour.smooth))
OPERATIONS.add(
    "posterize",
    Operation(lambda m, _: jnp.maximum(8 - jnp.round(4 * m), 1), apply=colour.posterize),
)
OPERATIONS.add(
    "solarize", Operation(lambda m, _: 256 * jnp.maximum(1 - m, 0), apply=colour.solarize)
)
OPERATIONS.add("invert", Operation(lambda m, _: m, apply=lambda clip, _: 255 - clip))
OPERATIONS.add(
    "autocontrast", Operation(lambda m, _: m, apply=lambda clip, _: colour.autocontrast(clip))
)
OPERATIONS.add("equalize", Operation(lambda m, _: m, apply=lambda clip, _: colour.equalize(clip)))
OPERATIONS.add("identity", Operation(lambda m, _: m, apply=lambda clip, _: clip))


def warp(clip: Frames, matrix: Float[Array, "2 3"]) -> Frames:
    """Returns each pixel from where an affine map of (y, x) leads, bilinear; FILL from outside."""
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
    """Returns the clip after one operation, at a magnitude of which 1 is the paper's largest."""
    operation = OPERATIONS[name]
    argument = operation.strength(magnitude, sign)
    if operation.matrix is not None:
        return warp(clip, operation.matrix(argument, *clip.shape[1:3]))
    assert operation.apply is not None
    return operation.apply(clip, argument)


def randaugment(clip: Frames, key: Array, *, count: int, magnitude: Strength) -> Frames:
    """Returns the clip after `count` operations drawn with equal chance; magnitude: see `apply`."""
    size, strength = clip.shape[1:3], jnp.float32(magnitude)
    operations = [OPERATIONS[name] for name in OPERATIONS]
    moving = [(x.matrix, x.strength) for x in operations if x.matrix]
    still = [name for name in OPERATIONS if not OPERATIONS[name].matrix]
    for draw in jax.random.split(key, count):
        which, side = jax.random.split(draw)
        chosen = jax.random.randint(which, (), 0, len(moving) + len(still))
        sign = jnp.where(jax.random.bernoulli(side), 1.0, -1.0)
        matrices = jnp.stack([make(by(strength, sign), *size) for make, by in moving])
        matrix = matrices[jnp.minimum(chosen, len(moving) - 1)]
        branches = [partial(warp, matrix=matrix)]
        branches += [partial(apply, name, magnitude=strength, sign=sign) for name in still]
        clip = jax.lax.switch(jnp.maximum(chosen - len(moving) + 1, 0), branches, clip)
    return clip
