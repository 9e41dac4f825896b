"""How strong a regulariser is over the training, by name, each with its own options.

A ramp maps the training's progress, from 0 at the first step to 1 at the last one, to a factor in
[0, 1] of the strength that the config gives.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.registry import OptionRegistry, Options, options_of

Strength = float | Float[Array, ""]  # an array where it changes over the training
Factors = dict[str, jax.Array]  # of each strength that changes, at one step


@dataclass(frozen=True)
class Ramp:
    """A registered ramp: `factor(progress, **options)`."""

    factor: Callable[..., jax.Array]
    options: Options = field(default_factory=Options)


RAMPS: OptionRegistry[Ramp] = OptionRegistry("ramp")


def ramp(name: str):
    """Returns a decorator that registers a function of the progress as a ramp.

    The function's keyword-only arguments are the ramp's options, each with a default.
    """

    def register(factor):
        RAMPS.add(name, Ramp(factor, options_of(factor)))
        return factor

    return register


def make_ramps(ramps: Mapping[str, str], *, steps: int) -> Callable[[jax.Array], Factors]:
    """Returns step -> the factor of each strength, from what `train.ramps` says of each.

    Raises ValueError for an unknown ramp and for options that it does not have.
    """
    made = {}
    for name, text in ramps.items():
        entry = RAMPS[text]
        if not all(0 < part <= 2 for part in entry.options.values()):
            raise ValueError(f"train.ramps: {text!r} of {name} has an option that is not in (0, 2]")
        made[name] = partial(entry.factor, **entry.options)
        jax.eval_shape(made[name], 0.0)  # raises for options that contradict each other

    def factors(step: jax.Array) -> Factors:
        progress = step / max(steps - 1, 1)
        return {name: jnp.float32(factor(progress)) for name, factor in made.items()}

    return factors


def is_off(strength: Strength) -> bool:
    """Returns whether a strength is 0 in the whole training."""
    return not isinstance(strength, jax.Array) and strength == 0


@ramp("falling")
def falling(progress: jax.Array, *, until: float = 1.0) -> jax.Array:
    """A straight line from 1 to 0, which it reaches at `until`: early dropout and early stochastic
    depth (2303.01500, section 4). V-JEPA's averaging falls until 1.25, beyond the end."""
    return jnp.clip(1 - progress / until, 0, 1)


@ramp("rising")
def rising(progress: jax.Array, *, until: float = 1.0) -> jax.Array:
    """A straight line from 0 to 1, which it reaches at `until`: regularisation of progressive
    learning (2104.00298, section 4.2)."""
    return jnp.clip(progress / until, 0, 1)


@ramp("rising_later")
def rising_later(progress: jax.Array, *, since: float = 0.125, until: float = 0.25) -> jax.Array:
    """0 until `since`, and then a straight line to 1, which it reaches at `until`: the loss of
    tokens that are seen of V-JEPA 2.1 (2603.14482; released code: from step 15,000 to 30,000)."""
    if since >= until:
        raise ValueError(f"ramp rising_later: {since=} is not before {until=}")
    return jnp.clip((progress - since) / (until - since), 0, 1)


@ramp("rising_cosine")
def rising_cosine(progress: jax.Array, *, start: float = 0.1) -> jax.Array:
    """Half a cosine from `start` to 1: the weight decay of DINO (2104.14294) and V-JEPA."""
    return 1 - (1 - start) * (1 + jnp.cos(jnp.pi * progress)) / 2


@ramp("before")
def before(progress: jax.Array, *, part: float = 0.9) -> jax.Array:
    """1 in the first `part` of the steps and then 0: clips are not mixed at the end."""
    return progress < part


@ramp("after")
def after(progress: jax.Array, *, part: float = 0.5) -> jax.Array:
    """0 in the first `part` of the steps and then 1: late dropout (2303.01500, section 4)."""
    return progress >= part
