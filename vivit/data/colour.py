"""Changes of colour, on the device: frames float32 [F, H, W, 3] in 0 .. 255, one draw per clip.

Each equals Pillow's operation of that name on every frame, but for Pillow's rounding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Frames = Float[Array, "F H W 3"]
Scalar = Float[Array, ""]

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's mode L


def blend(clip: Frames, other: Array, factor: Scalar) -> Frames:
    """Returns `other` for factor 0, the clip for 1, an extrapolation beyond; PIL.Image.blend."""
    return jnp.clip(other + factor * (clip - other), 0, 255)


def grey(clip: Frames) -> Frames:
    """Returns the luma in all three channels."""
    luma = jnp.einsum("fhwc,c->fhw", clip, jnp.array(GREY))
    return jnp.repeat(luma[..., None], 3, axis=-1)


def black(clip: Frames) -> Frames:
    """Returns the frames that "brightness" blends with."""
    return jnp.zeros_like(clip)


def mean_grey(clip: Frames) -> Frames:
    """Returns each frame's mean luma, rounded as in Pillow, which "contrast" blends with."""
    mean = jnp.floor(jnp.round(grey(clip)).mean(axis=(1, 2, 3), keepdims=True) + 0.5)
    return jnp.broadcast_to(mean, clip.shape)


def smooth(clip: Frames) -> Frames:
    """Returns PIL.ImageFilter.SMOOTH of all but the edge, which "sharpness" blends with."""
    weights = jnp.array([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    _, h, w, _ = clip.shape
    inner = sum(
        weights[i, j] * clip[:, i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3)
    )
    return clip.at[:, 1:-1, 1:-1].set(inner)


def adjust_hue(clip: Frames, turn: Scalar) -> Frames:
    """Returns the hues shifted by a fraction of the circle; saturation and value (of HSV) stay."""
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
    """Returns the clip with only this many of the 8 bits of each channel."""
    step = 2.0 ** (8 - bits)
    return jnp.floor(jnp.round(clip) / step) * step


def solarize(clip: Frames, threshold: Scalar) -> Frames:
    """Returns the clip with all values from the threshold on inverted."""
    return jnp.where(jnp.round(clip) < threshold, clip, 255 - clip)


def autocontrast(clip: Frames) -> Frames:
    """Returns each frame's channels stretched so that they reach from 0 to 255."""
    low = clip.min(axis=(1, 2), keepdims=True)
    high = clip.max(axis=(1, 2), keepdims=True)
    stretched = (clip - low) * (255 / jnp.where(high > low, high - low, 1.0))
    return jnp.where(high > low, stretched, clip)


def equalize(clip: Frames) -> Frames:
    """Returns each frame's channels with a flat histogram, by Pillow's table of whole steps."""
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
