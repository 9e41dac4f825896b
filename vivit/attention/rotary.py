"""Rotary position embeddings of a space-time grid."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vivit.registry import Registry

BASE = 10_000.0
Coordinates = Float[np.ndarray | Array, "*B T S 3"]  # (t, y, x) of every token, maybe of each clip


def rotated_channels(channels: int) -> int:
    """Returns how many channels are rotated per axis: the largest even third, as in V-JEPA 2."""
    return channels // 3 // 2 * 2


def check_channels(channels: int) -> None:
    """Raises ValueError for a number of channels per head that cannot be rotated."""
    if channels % 2 or not rotated_channels(channels):
        raise ValueError(
            f"rope rotates pairs of channels along three axes and a head has {channels}; use an "
            "even number of at least 6 (width / heads)"
        )


def _cos_and_sin(
    positions: Float[np.ndarray | Array, "*B T S"], frequencies: Float[np.ndarray, " c"]
) -> tuple[Float[np.ndarray | Array, "*B T S 1 c"], Float[np.ndarray | Array, "*B T S 1 c"]]:
    """Returns cosine and sine of each token's angles, for all heads."""
    angles = (positions[..., None] * frequencies)[..., None, :]
    if isinstance(angles, np.ndarray):  # of a whole grid: constants, in float64 until here
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T S h k"], coordinates: Coordinates) -> Float[Array, "B T S h k"]:
    """Returns queries or keys rotated by their coordinates; scores then depend on distances alone.

    RoPE (2104.09864, section 3.2.2) in three dimensions as V-JEPA 2 (2506.09985, section 2.1)
    divides the channels: an even third is rotated by each axis, and the rest is not rotated.
    Channel i of a third is paired with the one half a third further.
    """
    width = rotated_channels(x.shape[-1])
    parts = []
    for axis in range(3):
        part = x[..., axis * width : (axis + 1) * width].astype(jnp.float32)
        frequencies = BASE ** (-np.arange(width // 2) / (width // 2))
        cos, sin = _cos_and_sin(coordinates[..., axis], frequencies)
        first, second = part[..., : width // 2], part[..., width // 2 :]
        parts += [first * cos - second * sin, first * sin + second * cos]
    turned = jnp.concatenate(parts, axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 3 * width :]], axis=-1)


def rotate_as_vjepa2(
    x: Float[Array, "B T S h k"], coordinates: Coordinates
) -> Float[Array, "B T S h k"]:
    """Returns what V-JEPA 2's released code computes, for its weights: not quite a rotation.

    Neighbouring channels (2i, 2i + 1) of a third are a pair, and each is multiplied by sine and
    cosine of its own angle: channel j has frequency j modulo half the third. So a pair's two angles
    differ, and scores depend on coordinates, not on distances alone.
    """
    width = rotated_channels(x.shape[-1])
    parts = []
    for axis in range(3):
        part = x[..., axis * width : (axis + 1) * width].astype(jnp.float32)
        frequencies = np.tile(BASE ** (-np.arange(width // 2) / (width // 2)), 2)
        cos, sin = _cos_and_sin(coordinates[..., axis], frequencies)
        pairs = part.reshape(*part.shape[:-1], -1, 2)
        turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(part.shape)
        parts.append(part * cos + turned * sin)
    turned = jnp.concatenate(parts, axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 3 * width :]], axis=-1)


@dataclass(frozen=True)
class Rotation:
    """A registered rotary embedding.

    rotate: (queries or keys [B, T, S, h, k], coordinates (t, y, x) [T, S, 3]) -> the rotated ones.
    rotates: whether it needs every token's coordinates. check: channels of a head -> ValueError
    for a number that it cannot rotate.
    """

    rotate: Callable[[Array, Coordinates], Array]
    rotates: bool = True
    check: Callable[[int], None] = lambda channels: None


ROTATIONS: Registry[Rotation] = Registry("rope")
ROTATIONS.add("none", Rotation(lambda x, coordinates: x, rotates=False))
ROTATIONS.add("3d", Rotation(rotate, check=check_channels))
ROTATIONS.add("3d_vjepa2", Rotation(rotate_as_vjepa2, check=check_channels))
