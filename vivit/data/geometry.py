"""Boxes of frames resampled on the device, antialiased, for training's crops and test views."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

Frames = Num[Array, "F H W C"]


def resample(
    clip: Frames,
    extent: Int[Array, "2"],
    *,
    start: Float[Array, "2"],
    scale: Float[Array, ""],
    size: tuple[int, int],
    flip: Array | bool = False,
) -> Float[Array, "F h w C"]:
    """Returns the pixels of a box of every frame, as floats: bilinear, antialiased in shrinking.

    start: the box's upper left corner (y, x) in pixels of the frame; scale: pixels of the frame
    for one of the result; size: of the result. extent: height and width of the frame on its canvas;
    what is beyond them is not read. flip: exchanges left and right.
    """
    rows = _weights(clip.shape[1], extent[0], start[0], scale, size[0])
    columns = _weights(clip.shape[2], extent[1], start[1], scale, size[1])
    columns = jnp.where(flip, columns[::-1], columns)
    clip = jnp.einsum("hH,fHWc->fhWc", rows, clip.astype(jnp.float32))
    return jnp.einsum("wW,fhWc->fhwc", columns, clip)


def _weights(length: int, extent: Array, start: Array, scale: Array, size: int) -> Array:
    """Returns weights [size, length] of a triangle filter along a line; Pillow's BILINEAR."""
    centres = start + (jnp.arange(size) + 0.5) * scale - 0.5
    width = jnp.maximum(scale, 1.0)  # shrinking widens the filter, enlarging interpolates
    distance = jnp.abs(centres[:, None] - jnp.arange(length)[None]) / width
    weights = jnp.maximum(0.0, 1.0 - distance) * (jnp.arange(length) < extent)
    return weights / weights.sum(axis=1, keepdims=True)


def to_uint8(clip: Float[Array, "..."]) -> Array:
    """Returns pixels rounded to the nearest of 0 .. 255."""
    return jnp.clip(jnp.round(clip), 0, 255).astype(jnp.uint8)


def view(
    clip: Frames,
    extent: Int[Array, "2"],
    *,
    place: Array | float,
    short_side: int,
    size: tuple[int, int],
) -> Array:
    """Returns a crop of `size` after the frame's short side is scaled to `short_side`.

    place: 0, 0.5 or 1 for left, centre, right (of a tall frame: top, centre, bottom), along the
    longer side; along the other side the crop is in the middle. ViViT (2103.15691), section 4.1.
    """
    shape = extent.astype(jnp.float32)
    scale = shape.min() / short_side
    room = shape - jnp.array(size) * scale  # below 0 where frames are enlarged past their edge
    tall = shape[0] > shape[1]
    along = jnp.stack([jnp.where(tall, place, 0.5), jnp.where(tall, 0.5, place)])
    return to_uint8(resample(clip, extent, start=along * room, scale=scale, size=size))


def needs_no_resize(largest: tuple[int, int], smallest: int, size: tuple[int, int]) -> bool:
    """Returns whether every frame has exactly this size."""
    return tuple(largest) == tuple(size) == (smallest, smallest)
