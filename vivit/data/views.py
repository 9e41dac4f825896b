"""The spatial views of an evaluation, made on the device from whole frames."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.axes import Logits
from vivit.data.geometry import needs_no_resize, view
from vivit.data.settings import ViewsSettings
from vivit.data.split import Split
from vivit.registry import Registry
from vivit.tasks import Task

# (logits of views [V, B, classes], task) -> logits.
Average = Callable[[Float[Array, "V B classes"], Any], Logits]
AVERAGES: Registry[Average] = Registry("average of views")
AVERAGES.add("logits", lambda logits, task: logits.mean(axis=0))
AVERAGES.add("probabilities", lambda logits, task: task.mean_probabilities(logits))


def make_views(
    settings: ViewsSettings,
    split: Split,
    size: tuple[int, int],
    *,
    average: Callable[[Any, Any], Any] | None = None,
) -> Callable[[Callable[[Array], Any], Array, Array], Any]:
    """Returns (predict, clips [B, V, F, H, W, 3], extents [B, 2]) -> logits averaged over views.

    predict: clips [B, F, h, w, 3] of `size` -> logits, or of a single view anything. It gets the
        views one after another, so the memory is that of one view.
    average: (what `predict` returns, with an axis of views before it, the split's task) -> what is
        returned; None for that of `settings`.
    Raises ValueError where views can't be made, or would be equal.
    """
    crop, task = make_crop(settings, split, size), split.task
    of_views = average or AVERAGES[settings.average]
    several = settings.temporal > 1 or settings.spatial > 1
    if several and not (average or isinstance(task, Task)):
        raise ValueError(
            f"data.views: {settings.name} views are averaged, and without labels there is nothing "
            "to average; set temporal=1 and spatial=1"
        )
    places = (0.5,) if settings.spatial == 1 else (0.0, 0.5, 1.0)

    def predict_views(predict: Callable[[Array], Any], clips: Array, extents: Array) -> Any:
        count = clips.shape[1]
        if count == settings.spatial == 1:
            return predict(crop(clips[:, 0], extents, 0.5))
        numbers = jnp.repeat(jnp.arange(count), settings.spatial)
        each = jnp.tile(jnp.array(places), count)
        one = lambda x: predict(crop(jnp.take(clips, x[0], axis=1), extents, x[1]))
        return of_views(jax.lax.map(one, (numbers, each)), task)

    return predict_views


def make_crop(
    settings: ViewsSettings, split: Split, size: tuple[int, int]
) -> Callable[[Array, Array, Array | float], Array]:
    """Returns (clips [B, F, H, W, 3], extents [B, 2], place) -> uint8 clips of `size`.

    place: 0, 0.5 or 1, from left to right, or from top to bottom of tall frames.
    """
    short_side = settings.short_side or max(size)
    if short_side < max(size):
        raise ValueError(
            f"data.views.short_side={short_side} is smaller than the crop {tuple(size)}"
        )
    whole = needs_no_resize(split.largest, split.smallest, size) and short_side == max(size)
    if whole and settings.spatial > 1:
        raise ValueError(
            f"data.views.spatial={settings.spatial}: the frames are as large as the model's clip, "
            "so these views would be equal; use spatial=1"
        )

    def crop(clips: Array, extents: Array, place: Array | float) -> Array:
        if whole:
            return clips
        cut = partial(view, place=place, short_side=short_side, size=size)
        return jax.vmap(cut)(clips, extents)

    return crop
