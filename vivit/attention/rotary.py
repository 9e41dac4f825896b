"""Rotary position embeddings of a space-time grid."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vivit.registry import Registry

BASE = 10_000.0

# Queries or keys [B, T, S, h, k] and their places (t, y, x) [T, S, 3] -> the same, turned.
ROTATIONS: Registry[Callable[..., Array]] = Registry("rope")


def rotated_channels(channels: int) -> int:
    """Channels per axis that `rotate` turns: the largest even third, as in V-JEPA 2."""
    return channels // 3 // 2 * 2


def rotate(
    x: Float[Array, "B T S h k"], positions: Float[np.ndarray, "T S 3"]
) -> Float[Array, "B T S h k"]:
    """Queries or keys, turned by their places (t, y, x), so that scores depend on distances alone.

    RoPE (2104.09864, section 3.2.2) in three dimensions as V-JEPA 2 (2506.09985, section 2.1)
    shares out the channels: an even third turns with each axis, and what is left over does not.
    Channel i of a third is paired with the one half a third further.
    """
    width = rotated_channels(x.shape[-1])
    parts = []
    for axis in range(3):
        part = x[..., axis * width : (axis + 1) * width].astype(jnp.float32)
        frequencies = BASE ** (-np.arange(width // 2) / (width // 2))
        angles = (positions[..., axis, None] * frequencies)[None, :, :, None]  # [1, T, S, 1, k/6]
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        first, second = part[..., : width // 2], part[..., width // 2 :]
        parts += [first * cos - second * sin, first * sin + second * cos]
    turned = jnp.concatenate(parts, axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 3 * width :]], axis=-1)


def rotate_as_vjepa2(
    x: Float[Array, "B T S h k"], positions: Float[np.ndarray, "T S 3"]
) -> Float[Array, "B T S h k"]:
    """As V-JEPA 2's released code computes it, for its weights: not quite a rotation.

    Neighbouring channels (2i, 2i + 1) of a third are a pair, and each is multiplied by sine and
    cosine of its own angle: channel j has frequency j modulo half the third. So a pair's two angles
    differ, and scores depend on places, not on distances alone.
    """
    width = rotated_channels(x.shape[-1])
    parts = []
    for axis in range(3):
        part = x[..., axis * width : (axis + 1) * width].astype(jnp.float32)
        frequencies = np.tile(BASE ** (-np.arange(width // 2) / (width // 2)), 2)
        angles = (positions[..., axis, None] * frequencies)[None, :, :, None]  # [1, T, S, 1, k/3]
        pairs = part.reshape(*part.shape[:-1], -1, 2)
        turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(part.shape)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        parts.append(part * cos + turned * sin)
    turned = jnp.concatenate(parts, axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 3 * width :]], axis=-1)


ROTATIONS.add("none", lambda x, positions: x)
ROTATIONS.add("3d", rotate)
ROTATIONS.add("3d_vjepa2", rotate_as_vjepa2)
