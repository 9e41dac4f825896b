"""The spatial views of an evaluation, made on the device from whole frames."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.axes import Logits
from vivit.data.geometry import as_they_are, view
from vivit.data.sources import Split
from vivit.registry import Registry

# What becomes of the views' logits [V, B, classes].
AVERAGES: Registry[Callable[[Float[Array, "V B classes"]], Logits]] = Registry("average of views")
AVERAGES.add("logits", lambda logits: logits.mean(axis=0))
AVERAGES.add("probabilities", lambda logits: jnp.log(jax.nn.softmax(logits, axis=-1).mean(axis=0)))


@dataclass(frozen=True)
class Views:
    """How a clip is seen in an evaluation; `config.data.views`.

    temporal: clips from beginning to end. spatial: 1 (the centre) or 3 (left, centre and right, or
    top, centre and bottom) of each. short_side: pixels that frames are scaled to before the crop;
    None for the crop's own, which loses the least. average: a name of AVERAGES.
    """

    temporal: int = 1
    spatial: int = 1
    short_side: int | None = None
    average: str = "logits"

    def __post_init__(self) -> None:
        AVERAGES[self.average]
        if self.temporal < 1 or self.spatial not in (1, 3):
            raise ValueError(
                f"data.views: temporal={self.temporal} must be at least 1, and "
                f"spatial={self.spatial} 1 or 3"
            )

    def centre(self) -> "Views":
        """One view of each clip, from the middle: for validation while a model is trained."""
        return replace(self, temporal=1, spatial=1)

    @property
    def positions(self) -> tuple[float, ...]:
        return (0.5,) if self.spatial == 1 else (0.0, 0.5, 1.0)

    def build(self, split: Split, size: tuple[int, int]) -> Callable[..., Logits]:
        """(model, clips [B, V, F, H, W, 3], extents [B, 2]) -> what it thinks of all views.

        model: clips [B, F, h, w, 3] of `size` -> logits. The views go through it one after another:
        memory is that of one. ValueError where views can't be made, or would be equal.
        """
        crop = self.crop(split, size)

        def through(model: Callable[[Array], Logits], clips: Array, extents: Array) -> Logits:
            count = clips.shape[1]
            if count == self.spatial == 1:
                return model(crop(clips[:, 0], extents, 0.5))
            numbers = jnp.repeat(jnp.arange(count), self.spatial)
            positions = jnp.tile(jnp.array(self.positions), count)
            one = lambda x: model(crop(jnp.take(clips, x[0], axis=1), extents, x[1]))
            return AVERAGES[self.average](jax.lax.map(one, (numbers, positions)))

        return through

    def crop(self, split: Split, size: tuple[int, int]) -> Callable[..., Array]:
        """(clips [B, F, H, W, 3], extents [B, 2], position) -> clips of `size`, uint8.

        position: 0, 0.5 or 1, from left to right, or from top to bottom of tall frames.
        """
        short_side = self.short_side or max(size)
        if short_side < max(size):
            raise ValueError(
                f"data.views.short_side={short_side} is smaller than the crop {tuple(size)}"
            )
        plain = as_they_are(split.largest, split.smallest, size) and short_side == max(size)
        if plain and self.spatial > 1:
            raise ValueError(
                f"data.views.spatial={self.spatial}: the frames are as large as the model's clip, "
                "so these views would be equal"
            )

        def crop(clips: Array, extents: Array, position: Array | float) -> Array:
            if plain:
                return clips
            cut = partial(view, position=position, short_side=short_side, size=size)
            return jax.vmap(cut)(clips, extents)

        return crop
