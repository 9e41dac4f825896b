"""The learning rate's schedule and the optax chain of a config."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vivit.registry import Registry

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
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimiser and its schedule. Gradients are clipped by their global norm after the mean
    over all devices; 0 or None does not clip."""
    schedule = warmup_cosine(lr=lr, lr_floor=lr_floor, warmup_steps=warmup_steps, steps=steps)
    update = OPTIMIZERS[name](b1=b1, b2=b2, momentum=momentum, weight_decay=weight_decay)
    clip = [] if not clip_norm else [optax.clip_by_global_norm(clip_norm)]
    return optax.chain(*clip, update, optax.scale_by_learning_rate(schedule)), schedule


def decayed(params):
    """True for what weight decay shrinks: kernels; not biases, norms, tokens or positions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)
