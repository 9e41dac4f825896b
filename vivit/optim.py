"""The optax chain of a config: an optimiser and a schedule by name, and what goes around them."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vivit.optimizers import OPTIMIZERS, optimizer, path_name
from vivit.schedules import SCHEDULES, Schedule, schedule
from vivit.settings import OptimSettings

__all__ = ["OPTIMIZERS", "SCHEDULES", "make_optimizer", "optimizer", "peak_rate", "schedule"]


def peak_rate(settings: OptimSettings, batch_size: int) -> float:
    """Returns the learning rate after warm-up of a run with this global batch size."""
    scale = batch_size / settings.lr_batch_size if settings.lr_batch_size else 1.0
    return settings.lr * scale


def make_optimizer(
    settings: OptimSettings, *, steps: int, batch_size: int
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
    """Returns the optimiser of a run of `steps` training steps with this global batch size, and its
    schedule.

    Raises ValueError for unknown names and options, and values out of range.
    """
    warmup = settings.warmup_steps or int(settings.warmup_fraction * steps)
    lr = peak_rate(settings, batch_size)
    rate = SCHEDULES[settings.schedule](lr=lr, warmup_steps=warmup, steps=steps)
    parts: list[Any] = [OPTIMIZERS[settings.name]()]
    if settings.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    if settings.freeze:
        which = partial(_frozen_or_not, patterns=settings.freeze)
        moving: dict[Any, optax.GradientTransformation] = {
            "train": optax.chain(*parts),
            "freeze": optax.set_to_zero(),
        }
        parts = [optax.partition(moving, which)]
    if settings.layer_decay < 1:
        parts.append(scale_by_layer(settings.layer_decay))
    chain = optax.chain(*parts, optax.scale_by_learning_rate(rate))
    return optax.with_extra_args_support(chain), rate


def _frozen_or_not(params, *, patterns: tuple[str, ...]):
    """Returns "freeze" or "train" for each parameter.

    Raises ValueError for a pattern that freezes nothing.
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    idle = [p for p in patterns if not any(re.search(p, path) for path in paths)]
    if idle:
        raise ValueError(
            f"optim.freeze has {idle}, found in no path such as {paths[0]!r}. Scanned layers are "
            "one array each, below stage_I/layers/; model.scan=False has them one by one"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            "freeze" if any(re.search(p, path_name(path)) for p in patterns) else "train"
        ),
        params,
    )


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Returns updates times decay^(layers after it): layer-wise learning-rate decay, as BEiT
    (2106.08254) fine-tunes.

    Layers count through all stages; the tubelet and what the first stage starts with come before
    the first, a stage's norm and pool belong to its last, and the head comes after all.
    """

    def init(params):
        if not _depths(params):
            raise ValueError(
                f"optim.layer_decay={decay}: the task trains more than a model, whose layers do "
                "not follow each other; set 1.0"
            )
        return optax.EmptyState()

    def scale(updates, state, params=None):
        depths = _depths(updates)
        total = sum(depths.values())

        def one(path, update):
            after = total + 1 - _layer_number(path, update, depths)
            factor = jnp.asarray(decay**after, update.dtype)
            return update * factor.reshape(factor.shape + (1,) * (update.ndim - factor.ndim))

        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.GradientTransformation(init, scale)


def _depths(params) -> dict[str, int]:
    """Returns the number of layers of each stage, scanned or not."""
    stages = sorted((n for n in params if n.startswith("stage_")), key=lambda n: int(n[6:]))
    depths = {}
    for name in stages:
        layers = params[name].get("layers")
        depths[name] = (
            sum(n.startswith("layer_") for n in params[name])
            if layers is None
            else jax.tree.leaves(layers)[0].shape[0]
        )
    return depths


def _layer_number(path, leaf, depths: dict[str, int]) -> np.ndarray:
    """Returns the layer of a parameter: 0 before the first layer, one more than all for the head.

    Scanned layers have an array over their first axis.
    """
    first, *rest = (key.key for key in path)
    if first not in depths:
        return np.asarray(0 if first == "tubelet" else sum(depths.values()) + 1)
    names = list(depths)
    before = sum(depths[name] for name in names[: names.index(first)])
    if rest[0] == "layers":
        return before + 1 + np.arange(leaf.shape[0])
    if rest[0].startswith("layer_"):
        return np.asarray(before + 1 + int(rest[0][6:]))
    if rest[0] in ("norm", "pool"):
        return np.asarray(before + depths[first])
    return np.asarray(before)
