"""Maps on the space-time grid, drawn on the frames they belong to."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8


def heat_on_frames(
    heat: Float[np.ndarray, "T S"], *, grid: tuple[int, int, int], clip: tuple[int, int, int]
) -> Float[np.ndarray, "F H W"]:
    """Returns a map of the grid (T, rows, columns), stretched to the frames of a clip (F, H, W).

    Constant over the frames of a tubelet, linear between the centres of places.
    """
    t, y, x = grid
    frames, height, width = clip
    steps = jax.image.resize(jnp.asarray(heat).reshape(t, y, x), (t, height, width), "linear")
    return np.repeat(np.asarray(steps), frames // t, axis=0)


def overlay(
    clip: UInt8[np.ndarray, "F H W 3"],
    heat: Float[np.ndarray, "F H W"],
    *,
    opacity: float = 0.6,
    colours: str = "inferno",
) -> UInt8[np.ndarray, "F H W 3"]:
    """Returns frames with a heat map over them, whose opacity grows with the heat.

    The heat is scaled by the largest value of the whole clip, so that frames can be compared.
    """
    scaled = np.asarray(heat) / max(float(np.max(heat)), 1e-12)
    coloured = matplotlib.colormaps[colours](scaled)[..., :3] * 255
    alpha = opacity * scaled[..., None]
    return (clip * (1 - alpha) + coloured * alpha).round().astype(np.uint8)
