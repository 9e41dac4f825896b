"""Optimisers and learning-rate schedules by name, and the optax chain of a config."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vivit.registry import OptionRegistry, Options, options_of
from vivit.settings import OptimSettings

# A leaf's path in a tree as text: "stage_0/norm/scale".
_path_name = partial(jax.tree_util.keystr, simple=True, separator="/")

Schedule = Callable[[Any], Any]  # training step -> learning rate


@dataclass(frozen=True)
class Optimizer:
    """A registered optimiser: `make(**options)` is the transformation of clipped gradients to
    updates before the learning rate."""

    name: str
    make: Callable[..., optax.GradientTransformation]
    options: Options = field(default_factory=Options)

    def __call__(self) -> optax.GradientTransformation:
        return self.make(**self.options)


@dataclass(frozen=True)
class LearningRate:
    """A registered schedule: `make(lr=, warmup_steps=, steps=, **options)` maps a training step to
    its learning rate."""

    name: str
    make: Callable[..., Schedule]
    options: Options = field(default_factory=Options)

    def __call__(self, *, lr: float, warmup_steps: int, steps: int) -> Schedule:
        return self.make(lr=lr, warmup_steps=warmup_steps, steps=steps, **self.options)


OPTIMIZERS: OptionRegistry[Optimizer] = OptionRegistry("optimiser")
SCHEDULES: OptionRegistry[LearningRate] = OptionRegistry("schedule")


def optimizer(name: str):
    """Returns a decorator that registers a function as an optimiser.

    The function's keyword-only arguments are the optimiser's options, each with a default.
    """

    def register(make):
        OPTIMIZERS.add(name, Optimizer(name, make, options_of(make)))
        return make

    return register


def schedule(name: str):
    """Returns a decorator that registers a function as a learning-rate schedule.

    The function takes lr, warmup_steps and steps by keyword; its other keyword-only arguments are
    the schedule's options, each with a default.
    """

    def register(make):
        options = options_of(make, given=("lr", "warmup_steps", "steps"))
        SCHEDULES.add(name, LearningRate(name, make, options))
        return make

    return register


@schedule("cosine")
def warmup_cosine(*, lr: float, warmup_steps: int, steps: int, floor: float = 0.0) -> Schedule:
    """Returns a linear rise from lr / warmup_steps to lr, then half a cosine to `floor` at the last
    step, where it stays.

    Raises ValueError for a warm-up as long as the training, and a floor above lr.
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"optim.{warmup_steps=} must be at least 0 and less than train.{steps=}; set "
            f"--config.optim.warmup_steps={max(steps // 20, 0)}, or a part of the steps by "
            "--config.optim.warmup_fraction"
        )
    if not 0 <= floor <= lr:
        raise ValueError(f"{floor=} of schedule 'cosine' must be between 0 and {lr=}")

    def rate(step):
        warm = lr * (step + 1) / max(warmup_steps, 1)
        progress = jnp.clip((step - warmup_steps) / max(steps - 1 - warmup_steps, 1), 0, 1)
        cosine = floor + (lr - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warm, cosine)

    return rate


@optimizer("adamw")
def adamw(
    *, b1: float = 0.9, b2: float = 0.999, weight_decay: float = 0.05
) -> optax.GradientTransformation:
    """AdamW (1711.05101): the decay is not scaled by the gradient's moments."""
    return optax.chain(
        optax.scale_by_adam(b1, b2), optax.add_decayed_weights(weight_decay, decayed)
    )


@optimizer("sgd")
def sgd(*, momentum: float = 0.9, weight_decay: float = 0.05) -> optax.GradientTransformation:
    """SGD with momentum, ViViT's (2103.15691, section 4.1), and L2 regularisation."""
    return optax.chain(optax.add_decayed_weights(weight_decay, decayed), optax.trace(momentum))


def make_optimizer(
    settings: OptimSettings, *, steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """Returns the optimiser of a run of `steps` training steps, and its schedule.

    Raises ValueError for unknown names and options, and values out of range.
    """
    warmup = settings.warmup_steps or int(settings.warmup_fraction * steps)
    rate = SCHEDULES[settings.schedule](lr=settings.lr, warmup_steps=warmup, steps=steps)
    parts: list[Any] = [OPTIMIZERS[settings.name]()]
    if settings.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    if not 0 < settings.layer_decay <= 1:
        raise ValueError(f"optim.layer_decay={settings.layer_decay} is not in (0, 1]")
    if settings.freeze:
        which = partial(_frozen_or_not, patterns=settings.freeze)
        moving: dict[Any, optax.GradientTransformation] = {
            "train": optax.chain(*parts),
            "freeze": optax.set_to_zero(),
        }
        parts = [optax.partition(moving, which)]
    if settings.layer_decay < 1:
        parts.append(scale_by_layer(settings.layer_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(rate)), rate


def _frozen_or_not(params, *, patterns: tuple[str, ...]):
    """Returns "freeze" or "train" for each parameter.

    Raises ValueError for a pattern that freezes nothing.
    """
    paths = [_path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    idle = [p for p in patterns if not any(re.search(p, path) for path in paths)]
    if idle:
        raise ValueError(
            f"optim.freeze has {idle}, found in no path such as {paths[0]!r}. Scanned layers are "
            "one array each, below stage_I/layers/; model.scan=False has them one by one"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            "freeze" if any(re.search(p, _path_name(path)) for p in patterns) else "train"
        ),
        params,
    )


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Returns updates times decay^(layers after it): layer-wise learning-rate decay, as BEiT
    (2106.08254) fine-tunes.

    Layers count through all stages; the tubelet and what the first stage starts with come before
    the first, a stage's norm and pool belong to its last, and the head comes after all.
    """

    def scale(updates, params=None):
        depths = _depths(updates)
        total = sum(depths.values())

        def one(path, update):
            after = total + 1 - _layer_number(path, update, depths)
            factor = jnp.asarray(decay**after, update.dtype)
            return update * factor.reshape(factor.shape + (1,) * (update.ndim - factor.ndim))

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(scale)


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


def decayed(params):
    """Returns True for what weight decay shrinks: kernels, not biases, norms, tokens, positions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)
