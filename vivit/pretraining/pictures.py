"""Clips as pre-training sees them: masked, and reconstructed."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from vivit.axes import Clips
from vivit.model.config import ModelConfig
from vivit.model.places import put, take

GREY = 0.5  # of tokens that are not shown
Patches = Float[Array, "B N p C"]  # the pixels of each tubelet, from 0 to 1
Frames = UInt8[np.ndarray, "B F H W C"]


def patches_of(clips: Clips, config: ModelConfig) -> Patches:
    """Returns the pixels of the tubelets of clips: uint8, or floats as the model gets them."""
    if clips.dtype == jnp.uint8:
        frames = jnp.asarray(clips, jnp.float32) / 255
    else:
        frames = jnp.asarray(clips) * np.array(config.pixel_std) + np.array(config.pixel_mean)
    t, h, w = config.tubelet
    form = "B (T t) (Y h) (X w) C -> B (T Y X) (t h w) C"
    return rearrange(frames, form, t=t, h=h, w=w)


def frames_of(patches: Patches, config: ModelConfig) -> Frames:
    """Returns the clips of such tubelets; inverse of `patches_of` but for rounding."""
    (t, h, w), (steps, rows, columns) = config.tubelet, config.grid
    form = "B (T Y X) (t h w) C -> B (T t) (Y h) (X w) C"
    sizes = {"T": steps, "Y": rows, "X": columns, "t": t, "h": h, "w": w}
    frames = rearrange(np.asarray(patches), form, **sizes)
    return (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)


def picked(x: Float[Array, "B N *rest"], places: Int[Array, "B M"]) -> Float[Array, "B M *rest"]:
    """Returns the tokens, or tubelets, of clips that have these numbers."""
    return take(x[:, None], places[:, None])[:, 0]


def replaced(
    patches: Patches, places: Int[Array, "B M"], by: Float[Array, "B M p C"] | float
) -> Patches:
    """Returns tubelets of which some are replaced."""
    shape = (1, patches.shape[1])
    there = put(jnp.ones((*places.shape, 1, 1))[:, None], places[:, None], shape)[:, 0]
    new = jnp.broadcast_to(by, (*places.shape, *patches.shape[2:]))
    return jnp.where(there > 0, put(new[:, None], places[:, None], shape)[:, 0], patches)
