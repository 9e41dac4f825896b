"""Changes of colour, on the device: frames float32 [F, H, W, 3] in 0 .. 255, one draw for a clip.

Each equals Pillow's operation of that name on every frame, but for Pillow's rounding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Frames = Float[Array, "F H W 3"]
Scalar = Float[Array, ""]

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's mode L


def blend(clip: Frames, other: Array, factor: Scalar) -> Frames:
    """`other` for factor 0, the clip for 1, and beyond it for more; PIL.Image.blend."""
    return jnp.clip(other + factor * (clip - other), 0, 255)


def grey(clip: Frames) -> Frames:
    """Its luma in all three channels."""
    luma = jnp.einsum("fhwc,c->fhw", clip, jnp.array(GREY))
    return jnp.repeat(luma[..., None], 3, axis=-1)


def without_light(clip: Frames) -> Frames:
    """Black: what "brightness" blends with."""
    return jnp.zeros_like(clip)


def without_contrast(clip: Frames) -> Frames:
    """Each frame's mean luma, rounded as Pillow does: what "contrast" blends with."""
    mean = jnp.floor(jnp.round(grey(clip)).mean(axis=(1, 2, 3), keepdims=True) + 0.5)
    return jnp.broadcast_to(mean, clip.shape)


def without_detail(clip: Frames) -> Frames:
    """Smoothed by PIL.ImageFilter.SMOOTH, its edge as it is: what "sharpness" blends with."""
    weights = jnp.array([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    _, h, w, _ = clip.shape
    inner = sum(
        weights[i, j] * clip[:, i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3)
    )
    return clip.at[:, 1:-1, 1:-1].set(inner)


def turn_hue(clip: Frames, turn: Scalar) -> Frames:
    """Hues turned by this share of the circle; saturation and value (of HSV) stay."""
    value, least = clip.max(axis=-1), clip.min(axis=-1)
    chroma = value - least
    safe = jnp.where(chroma > 0, chroma, 1.0)
    r, g, b = jnp.moveaxis(clip, -1, 0)
    hue = jnp.where(
        value == r,
        (g - b) / safe % 6,
        jnp.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4),
    )
    hue = jnp.where(chroma > 0, hue, 0.0) + 6 * turn
    # HSV to RGB in its closed form: each channel is the value less a trapezium of the hue.
    k = (jnp.array([5.0, 3.0, 1.0]) + hue[..., None]) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def posterize(clip: Frames, bits: Array) -> Frames:
    """Keeps that many of the 8 bits of each channel."""
    step = 2.0 ** (8 - bits)
    return jnp.floor(jnp.round(clip) / step) * step


def solarize(clip: Frames, threshold: Scalar) -> Frames:
    """Inverts what is at least as light as the threshold."""
    return jnp.where(jnp.round(clip) < threshold, clip, 255 - clip)


def autocontrast(clip: Frames) -> Frames:
    """Each frame's channels stretched so that their darkest is 0 and their lightest 255."""
    low = clip.min(axis=(1, 2), keepdims=True)
    high = clip.max(axis=(1, 2), keepdims=True)
    stretched = (clip - low) * (255 / jnp.where(high > low, high - low, 1.0))
    return jnp.where(high > low, stretched, clip)


def equalize(clip: Frames) -> Frames:
    """Each frame's channels with a flat histogram, by Pillow's table of whole steps."""
    levels = jnp.round(clip).astype(jnp.int32)

    def one(channel):  # [H, W] -> [H, W]
        counts = jnp.zeros(256, jnp.int32).at[channel.reshape(-1)].add(1)
        last = counts[255 - jnp.argmax((counts > 0)[::-1])]
        step = (counts.sum() - last) // 255
        before = jnp.cumsum(counts) - counts
        table = (before + step // 2) // jnp.maximum(step, 1)
        table = jnp.where(step > 0, jnp.clip(table, 0, 255), jnp.arange(256))
        return table[channel]

    over = jax.vmap(jax.vmap(one, in_axes=2, out_axes=2))
    return over(levels).astype(clip.dtype)
