"""Losses and metrics. Metrics are (sum, count) pairs: batches, devices and padding add up."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from vivit.axes import Labels, Logits

Valid = Float[Array, " B"]  # 1 for a clip, 0 for padding
Scalar = Num[Array | np.ndarray, ""]
Sums = dict[str, tuple[Scalar, Scalar]]


def cross_entropy(
    logits: Logits, labels: Labels, *, label_smoothing: float = 0.0
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


def metric_sums(losses: Float[Array, " B"], logits: Logits, labels: Labels, valid: Valid) -> Sums:
    """Returns sums of loss, top-1 and top-5 accuracy over the valid clips of a batch."""
    count = valid.sum()
    values = {
        "loss": losses,
        "top1": top_k_hits(logits, labels, k=1),
        "top5": top_k_hits(logits, labels, k=5),
    }
    return {name: ((value * valid).sum(), count) for name, value in values.items()}


def means(batches: list[Sums]) -> dict[str, float]:
    """Returns the mean of every metric over several batches."""
    totals = jax.tree.map(lambda *leaves: float(sum(leaves)), *batches)
    return {name: value / max(count, 1.0) for name, (value, count) in totals.items()}
