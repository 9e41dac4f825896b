"""Learning-rate schedules by name, each with its own options.

All warm up linearly, from lr / warmup_steps at the first step, and all that have a `floor` end
at it: it is the rate of the last step, and of any after it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from vivit.registry import OptionRegistry, Options, options_of

Schedule = Callable[[Any], Any]  # training step -> learning rate


@dataclass(frozen=True)
class LearningRate:
    """A registered schedule: `make(lr=, warmup_steps=, steps=, **options)` maps a training step to
    its learning rate."""

    name: str
    make: Callable[..., Schedule]
    options: Options = field(default_factory=Options)

    def __call__(self, *, lr: float, warmup_steps: int, steps: int) -> Schedule:
        return self.make(lr=lr, warmup_steps=warmup_steps, steps=steps, **self.options)


SCHEDULES: OptionRegistry[LearningRate] = OptionRegistry("schedule")


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


def warmed_up(
    shape: Callable[[Any], Any], *, lr: float, warmup_steps: int, steps: int, floor: float = 0.0
) -> Schedule:
    """Returns a linear rise to lr, then floor + (lr - floor) * shape(progress).

    shape: from 0, at the end of the warm-up, to 1 at the last step and after it.
    Raises ValueError for a warm-up as long as the training, and a floor that is not in [0, lr].
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"optim.{warmup_steps=} must be at least 0 and less than train.{steps=}; set "
            f"--config.optim.warmup_steps={max(steps // 20, 0)}, or a part of the steps by "
            "--config.optim.warmup_fraction"
        )
    if not 0 <= floor <= lr:
        raise ValueError(f"{floor=} of optim.schedule must be between 0 and {lr=}")

    def rate(step):
        warm = lr * (step + 1) / max(warmup_steps, 1)
        progress = jnp.clip((step - warmup_steps) / max(steps - 1 - warmup_steps, 1), 0, 1)
        return jnp.where(step < warmup_steps, warm, floor + (lr - floor) * shape(progress))

    return rate


@schedule("cosine")
def cosine(*, lr: float, warmup_steps: int, steps: int, floor: float = 0.0) -> Schedule:
    """Half a cosine (1608.03983, without restarts)."""
    shape = lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return warmed_up(shape, lr=lr, warmup_steps=warmup_steps, steps=steps, floor=floor)


@schedule("linear")
def linear(*, lr: float, warmup_steps: int, steps: int, floor: float = 0.0) -> Schedule:
    """A straight line."""
    shape = lambda progress: 1 - progress
    return warmed_up(shape, lr=lr, warmup_steps=warmup_steps, steps=steps, floor=floor)


@schedule("constant")
def constant(*, lr: float, warmup_steps: int, steps: int) -> Schedule:
    """lr after the warm-up, to the end."""
    return warmed_up(jnp.ones_like, lr=lr, warmup_steps=warmup_steps, steps=steps)


@schedule("steps")
def steps_down(
    *,
    lr: float,
    warmup_steps: int,
    steps: int,
    at: tuple[float, ...] = (0.6, 0.9),
    factor: float = 0.1,
) -> Schedule:
    """lr times `factor` after each of these parts of the steps after the warm-up: TimeSformer's
    (2102.05095) is at=(11/15, 14/15)."""
    if not all(0 < part < 1 for part in at):
        raise ValueError(f"{at=} of optim.schedule are not parts between 0 and 1")
    if not 0 < factor < 1:
        raise ValueError(f"{factor=} of optim.schedule is not between 0 and 1")
    shape = lambda progress: factor ** sum((progress >= part).astype(jnp.float32) for part in at)
    return warmed_up(shape, lr=lr, warmup_steps=warmup_steps, steps=steps)


@schedule("wsd")
def warmup_stable_decay(
    *, lr: float, warmup_steps: int, steps: int, decay: float = 0.1, floor: float = 0.0
) -> Schedule:
    """lr until the last part `decay` of the steps after the warm-up, then a straight line
    (2404.06395, section 4)."""
    return warmed_up(_cool_down(decay), lr=lr, warmup_steps=warmup_steps, steps=steps, floor=floor)


@schedule("rsqrt")
def reciprocal_square_root(
    *,
    lr: float,
    warmup_steps: int,
    steps: int,
    timescale: int = 10_000,
    decay: float = 0.1,
    floor: float = 0.0,
) -> Schedule:
    """1 / sqrt(1 + steps after the warm-up / timescale), which over the last part `decay` of the
    steps a straight line multiplies (2106.04560, section 3.5)."""
    after, cool_down = max(steps - 1 - warmup_steps, 1), _cool_down(decay)
    shape = lambda progress: cool_down(progress) / jnp.sqrt(1 + progress * after / timescale)
    return warmed_up(shape, lr=lr, warmup_steps=warmup_steps, steps=steps, floor=floor)


def _cool_down(decay: float) -> Callable[[Any], Any]:
    """Returns a shape that is 1, and over the last part `decay` a straight line to 0."""
    if not 0 < decay <= 1:
        raise ValueError(f"{decay=} of optim.schedule is not in (0, 1]")
    return lambda progress: jnp.clip((1 - progress) / decay, 0, 1)
