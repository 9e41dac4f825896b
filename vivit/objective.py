"""Losses and metrics. Metrics are (sum, count) pairs: batches, devices and padding add up."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from vivit.axes import Labels, Logits
from vivit.ramps import Strength

Valid = Float[Array, " B"]  # 1 for a clip, 0 for padding
Scalar = Num[Array | np.ndarray, ""]
Sums = dict[str, tuple[Scalar, Scalar]]


def cross_entropy(
    logits: Logits, labels: Labels, *, label_smoothing: Strength = 0.0
) -> Float[Array, " B"]:
    """Returns the softmax cross-entropy of each clip, in nats.

    Smoothing mixes the one-hot target with the uniform one (1512.00567, section 7).
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return -(1 - label_smoothing) * picked - label_smoothing * log_p.mean(axis=-1)


def top_k_hits(logits: Logits, labels: Labels, *, k: int) -> Float[Array, " B"]:
    """Returns 1 where fewer than k classes score at least as high as the label, else 0.

    A tie counts as a miss, so a model that gives every class the same score, or NaN, has no hits.
    """
    score = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    others = (logits >= score).sum(axis=-1) - 1
    return ((others < k) & jnp.isfinite(score[:, 0])).astype(jnp.float32)


def sigmoid_cross_entropy(
    logits: Logits, targets: Num[Array, "B classes"], *, label_smoothing: Strength = 0.0
) -> Float[Array, " B"]:
    """Returns the binary cross-entropy of each clip, summed over the classes, in nats.

    targets: 1 for the classes that a clip has, else 0. Smoothing mixes each with 1/2, the uniform
    distribution of whether a clip has a class.
    """
    x = logits.astype(jnp.float32)
    wanted = (1 - label_smoothing) * targets.astype(jnp.float32) + label_smoothing / 2
    return (jax.nn.softplus(x) - wanted * x).sum(axis=-1)


def hits_any(logits: Logits, targets: Num[Array, "B classes"]) -> Float[Array, " B"]:
    """Returns 1 where the class that scores highest is one of a clip's, else 0.

    A tie counts as a miss, as in `top_k_hits`, and so does NaN.
    """
    highest = logits == logits.max(axis=-1, keepdims=True)
    return ((highest.sum(axis=-1) == 1) & (highest * targets).any(axis=-1)).astype(jnp.float32)


def means(batches: list[Sums]) -> dict[str, float]:
    """Returns the mean of every metric over several batches."""
    totals = jax.tree.map(lambda *leaves: float(sum(leaves)), *batches)
    return {name: value / max(count, 1.0) for name, (value, count) in totals.items()}
