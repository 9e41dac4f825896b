"""Terms of a batch's features that keep them from collapsing."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vivit.objective import Valid
from vivit.registry import OptionRegistry, Options, options_of

KNOTS, LARGEST = 17, 3.0  # of the characteristic function


@dataclass(frozen=True)
class Regulariser:
    """A registered term of the features of a whole batch.

    term: (features [B, D], valid [B], key, **options) -> a number. The option `weight` is the
        term's part of the loss; the error has the rest.
    """

    term: Callable[..., Float[Array, ""]]
    options: Options = field(default_factory=Options)

    @property
    def weight(self) -> float:
        return self.options["weight"]

    def __call__(
        self, features: Float[Array, "B D"], valid: Valid, key: Key[Array, ""]
    ) -> Float[Array, ""]:
        options = {k: v for k, v in self.options.items() if k != "weight"}
        return self.term(features, valid, key, **options)


REGULARISERS: OptionRegistry[Regulariser] = OptionRegistry("regulariser")
REGULARISERS.add("none", Regulariser(lambda *_: jnp.zeros(()), Options(weight=0.0)))


def sigreg(
    features: Float[Array, "B D"],
    valid: Valid,
    key: Key[Array, ""],
    *,
    directions: int = 256,
) -> Float[Array, ""]:
    """Returns how far features are from an isotropic normal distribution: the statistic of Epps and
    Pulley along random directions, anew in each step. SIGReg of LeJEPA (2511.08544, section 4)."""
    count = valid.sum()
    mean = lambda x: jnp.tensordot(valid, x, axes=1) / jnp.maximum(count, 1)
    drawn = jax.random.normal(key, (features.shape[1], directions))
    drawn /= jnp.linalg.norm(drawn, axis=0)  # of a normal vector, never 0
    t = np.linspace(0, LARGEST, KNOTS)
    normal = np.exp(-(t**2) / 2)
    steps = np.full(KNOTS, 2 * LARGEST / (KNOTS - 1))  # of both signs of t
    steps[[0, -1]] /= 2
    angles = (features.astype(jnp.float32) @ drawn)[..., None] * t.astype(np.float32)
    distance = (mean(jnp.cos(angles)) - normal) ** 2 + mean(jnp.sin(angles)) ** 2
    return count * (distance @ (steps * normal)).mean()


REGULARISERS.add("sigreg", Regulariser(sigreg, Options(weight=0.02, **options_of(sigreg))))
