"""Boxes of frames resampled on the device, antialiased, for training's crops and test views."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

Clip = Num[Array, "F H W C"]


def resample(
    clip: Clip,
    extent: Int[Array, "2"],
    *,
    start: Float[Array, "2"],
    scale: Float[Array, ""],
    size: tuple[int, int],
    flip: Array | bool = False,
) -> Float[Array, "F h w C"]:
    """Pixels of a box of every frame, as floats: bilinear, antialiased where it shrinks.

    start: the box's upper left corner (y, x) in pixels of the frame; scale: pixels of the frame
    for one of the result; size: of the result. extent: height and width that the frame has of its
    canvas: nothing beyond them is seen. flip: left and right change places.
    """
    rows = _weights(clip.shape[1], extent[0], start[0], scale, size[0])
    columns = _weights(clip.shape[2], extent[1], start[1], scale, size[1])
    columns = jnp.where(flip, columns[::-1], columns)
    clip = jnp.einsum("hH,fHWc->fhWc", rows, clip.astype(jnp.float32))
    return jnp.einsum("wW,fhWc->fhwc", columns, clip)


def _weights(length: int, extent: Array, start: Array, scale: Array, size: int) -> Array:
    """A triangle filter's weights [size, length] of the pixels of a line; Pillow's BILINEAR."""
    centres = start + (jnp.arange(size) + 0.5) * scale - 0.5
    width = jnp.maximum(scale, 1.0)  # shrinking widens the filter, enlarging interpolates
    distance = jnp.abs(centres[:, None] - jnp.arange(length)[None]) / width
    weights = jnp.maximum(0.0, 1.0 - distance) * (jnp.arange(length) < extent)
    return weights / weights.sum(axis=1, keepdims=True)


def to_uint8(clip: Float[Array, "..."]) -> Array:
    """Rounded to the nearest of 0 .. 255, as frames come."""
    return jnp.clip(jnp.round(clip), 0, 255).astype(jnp.uint8)


def view(
    clip: Clip,
    extent: Int[Array, "2"],
    *,
    position: Array | float,
    short_side: int,
    size: tuple[int, int],
) -> Array:
    """A test view: the frame's short side scaled to `short_side`, then a crop of `size`.

    position: 0, 0.5 or 1 for left, centre, right (of a tall frame: top, centre, bottom). Across
    the longer side only; on the other one the crop is in the middle. ViViT (2103.15691), sec. 4.1.
    """
    shape = extent.astype(jnp.float32)
    scale = shape.min() / short_side
    room = shape - jnp.array(size) * scale  # below 0 where frames are enlarged past their edge
    tall = shape[0] > shape[1]
    along = jnp.stack([jnp.where(tall, position, 0.5), jnp.where(tall, 0.5, position)])
    return to_uint8(resample(clip, extent, start=along * room, scale=scale, size=size))


def as_they_are(largest: tuple[int, int], smallest: int, size: tuple[int, int]) -> bool:
    """Whether every frame has exactly this size, which needs no resampling."""
    return tuple(largest) == tuple(size) == (smallest, smallest)
