"""Maps on the space-time grid, drawn on the frames they belong to."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8

LIMIT = 4.0  # times the uniform map: what gets the full colour, and a fourth the full shade


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
    mean: float | None = None,
    limit: float = LIMIT,
    opacity: float = 0.75,
    colours: str = "autumn",
) -> UInt8[np.ndarray, "F H W 3"]:
    """Returns frames with a heat map over them, drawn against the uniform map.

    Where the heat is that of a uniform map, the frame is plain. Where it is more, a colour covers
    the frame, fully at `limit` times the uniform map; where it is less, the frame is dark.
    mean: the heat of a uniform map; None for the mean of `heat`.
    """
    uniform = float(np.mean(heat)) if mean is None else mean
    gain, add = blend_weights(
        np.asarray(heat), mean=uniform, limit=limit, opacity=opacity, colours=colours
    )
    return (clip * gain + add).round().astype(np.uint8)


def blend_weights(
    heat: Float[np.ndarray, "*shape"],
    *,
    mean: float,
    limit: float = LIMIT,
    opacity: float = 0.75,
    colours: str = "autumn",
) -> tuple[Float[np.ndarray, "*shape 1"], Float[np.ndarray, "*shape 3"]]:
    """Returns what `overlay` multiplies pixels with, and what it adds to them."""
    ratio = np.asarray(heat, np.float32) / np.float32(max(mean, 1e-12))
    strength = np.log(np.maximum(ratio, np.float32(1e-6))) / np.float32(np.log(limit))
    more, less = opacity * np.clip(strength, 0, 1), opacity * np.clip(-strength, 0, 1)
    coloured = matplotlib.colormaps[colours](more / opacity)[..., :3].astype(np.float32) * 255
    return ((1 - less) * (1 - more))[..., None], coloured * more[..., None]


def colour_bar(*, width: int = 240, height: int = 14) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the colours of `overlay` on grey, from 1 / LIMIT to LIMIT times the uniform map."""
    ratios = LIMIT ** np.linspace(-1, 1, width, dtype=np.float32)
    grey = np.full((1, height, width, 3), 150, np.uint8)
    return overlay(grey, np.broadcast_to(ratios, (1, height, width)), mean=1.0)[0]


def relative_entropy(heat: Float[np.ndarray, "T S"]) -> float:
    """Returns the entropy of a map over that of the uniform map: 1 for uniform, 0 for one token."""
    p = np.asarray(heat, np.float64).ravel()
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum() / np.log(np.size(heat)))
