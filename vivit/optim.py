"""The learning rate's schedule and the optax chain of a config."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vivit.registry import Registry

# A leaf's path in a tree as text: "stage_0/norm/scale".
_path_name = partial(jax.tree_util.keystr, simple=True, separator="/")

Schedule = Callable[[jax.Array | int], jax.Array]


def warmup_cosine(*, lr: float, lr_floor: float, warmup_steps: int, steps: int) -> Schedule:
    """Linear from lr / warmup_steps to lr, then half a cosine to lr_floor at the last step.

    It stays at the floor after that.
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"{warmup_steps=} must be at least 0 and less than train.steps={steps}")
    if not 0 <= lr_floor <= lr:
        raise ValueError(f"{lr_floor=} must be between 0 and {lr=}")

    def schedule(step):
        warm = lr * (step + 1) / max(warmup_steps, 1)
        progress = jnp.clip((step - warmup_steps) / max(steps - 1 - warmup_steps, 1), 0, 1)
        cosine = lr_floor + (lr - lr_floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warm, cosine)

    return schedule


OPTIMIZERS: Registry[Callable[..., optax.GradientTransformation]] = Registry("optimiser")


@OPTIMIZERS.register("adamw")
def adamw(*, b1, b2, momentum, weight_decay) -> optax.GradientTransformation:
    """AdamW (1711.05101): the decay is not scaled by the gradient's moments."""
    return optax.chain(
        optax.scale_by_adam(b1, b2), optax.add_decayed_weights(weight_decay, decayed)
    )


@OPTIMIZERS.register("sgd")
def sgd(*, b1, b2, momentum, weight_decay) -> optax.GradientTransformation:
    """SGD with momentum, ViViT's (2103.15691, section 4.1), and L2 regularisation."""
    return optax.chain(optax.add_decayed_weights(weight_decay, decayed), optax.trace(momentum))


def make_optimizer(
    *,
    steps: int,
    name: str,
    lr: float,
    lr_floor: float,
    warmup_steps: int,
    clip_norm: float | None,
    b1: float,
    b2: float,
    momentum: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    freeze: Sequence[str] = (),
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimiser and its schedule. Gradients are clipped by their global norm after the mean
    over all devices; 0 or None does not clip.

    layer_decay: the learning rate of each layer over that of the one after it; the head has `lr`.
    freeze: regexes of paths ("stage_0/layer_[0-5]/"): what one is found in stays as it is, has no
        optimiser state and does not count in the norm.
    """
    schedule = warmup_cosine(lr=lr, lr_floor=lr_floor, warmup_steps=warmup_steps, steps=steps)
    update = OPTIMIZERS[name](b1=b1, b2=b2, momentum=momentum, weight_decay=weight_decay)
    clip = [] if not clip_norm else [optax.clip_by_global_norm(clip_norm)]
    if not 0 < layer_decay <= 1:
        raise ValueError(f"{layer_decay=} is not in (0, 1]")
    parts = [*clip, update]
    if isinstance(freeze, str):
        raise ValueError(f"{freeze=} must be a list of regexes: [{freeze!r}]")
    if freeze:
        which = partial(_frozen_or_not, patterns=tuple(freeze))
        moving = {"train": optax.chain(*parts), "freeze": optax.set_to_zero()}
        parts = [optax.partition(moving, which)]
    if layer_decay < 1:
        parts.append(scale_by_layer(layer_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule)), schedule


def _frozen_or_not(params, *, patterns: tuple[str, ...]):
    """ "freeze" or "train" for each parameter. ValueError for a pattern that freezes nothing."""
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
    """Updates times decay^(layers after it): layer-wise learning-rate decay, as BEiT (2106.08254)
    fine-tunes. Layers count through all stages; the tubelet and what the first stage starts with
    come before the first, a stage's norm and pool belong to its last, and the head after all."""

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
    """The number of layers of each stage, scanned or not."""
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
    """0 for what comes before the first layer, one more than the layers for the head; an array
    over the first axis for scanned layers."""
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
    """True for what weight decay shrinks: kernels; not biases, norms, tokens or positions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)
