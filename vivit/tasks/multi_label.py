"""Any number of classes of each label, by sigmoid and binary cross-entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from scipy.special import expit, log_expit, logsumexp

from vivit.axes import Logits
from vivit.objective import hits_any, sigmoid_cross_entropy
from vivit.ramps import Strength
from vivit.tasks.task import HeadScores, Labels, Task, Values


class MultiLabel(Task):
    """Each clip has any number of classes of each label. Labels are uint8 [B, classes of all
    heads]: 1 for the classes that a clip has. Labels with one class per clip can be trained so
    too.
    """

    titles = MappingProxyType({"mAP": "mAP", "mAP_micro": "micro mAP", "top1": "top-1"})
    several = True

    def encode(self, labels: Mapping[str, Any]) -> np.ndarray:
        parts = []
        for head in self.heads:
            part = np.zeros(head.classes, np.uint8)
            numbers = np.array(labels[head.label], int)
            if (numbers < 0).any():
                raise ValueError(f"{head.label} {numbers.tolist()}: class numbers begin with 0")
            part[numbers] = 1
            parts.append(part)
        return np.concatenate(parts)

    def decode(self, labels: Any) -> dict[str, tuple[int, ...]]:
        return {head.label: tuple(np.flatnonzero(head.of(labels)).tolist()) for head in self.heads}

    def mirrored(self, labels: Labels, flips: Sequence[Sequence[int]]) -> Labels:
        of_heads = [
            jnp.zeros_like(head.of(labels)).at[:, np.array(flip)].max(head.of(labels))
            for head, flip in zip(self.heads, flips, strict=True)
        ]
        return jnp.concatenate(of_heads, axis=1)

    def target(self, labels: Any, number: int) -> Any:
        return self.heads[number].of(labels)

    def head_loss(self, logits: Logits, target: Array, *, label_smoothing: Strength) -> Values:
        return sigmoid_cross_entropy(logits, target, label_smoothing=label_smoothing)

    def head_metrics(self, logits: Logits, target: Array) -> dict[str, Values]:
        return {"top1": hits_any(logits, target)}

    def head_probabilities(self, logits: Any) -> Any:
        return (jax.nn.sigmoid if isinstance(logits, jax.Array) else expit)(logits)

    def head_mean(self, logits: Any) -> Any:
        # The logarithms of the means of p and of 1 - p: neither is rounded to 0 or 1.
        if isinstance(logits, jax.Array):
            mean = lambda x: jax.nn.logsumexp(jax.nn.log_sigmoid(x), axis=0)
        else:
            mean = lambda x: np.asarray(logsumexp(log_expit(x.astype(np.float64)), axis=0))
        return mean(logits) - mean(-logits)

    def head_scores(self, target: np.ndarray, logits: np.ndarray) -> "LabelScores":
        return LabelScores(target, logits)


@dataclass(frozen=True)
class LabelScores(HeadScores):
    """What a model says of clips that have any number of classes; targets: 1 for those that they
    have."""

    targets: UInt8[np.ndarray, "N classes"]
    logits: Float[np.ndarray, "N classes"]

    @property
    def probabilities(self) -> Float[np.ndarray, "N classes"]:
        return expit(self.logits.astype(np.float64))

    @property
    def right(self) -> UInt8[np.ndarray, " N"]:
        """1 where the most probable class is one of the clip's."""
        found = hits_any(jnp.asarray(self.logits), jnp.asarray(self.targets))
        return np.asarray(found).astype(np.uint8)

    @property
    def metrics(self) -> dict[str, float]:
        return {**self.whole_metrics, "top1": float(self.right.mean())}

    @property
    def whole_metrics(self) -> dict[str, float]:
        """mAP is the mean over the classes that a clip has; mAP_micro is of all pairs of a clip
        and a class as one ranking."""
        precisions = self.average_precisions
        known = precisions[~np.isnan(precisions)]
        return {
            "mAP": float(known.mean()) if len(known) else float("nan"),
            "mAP_micro": average_precision(self.targets.ravel(), self.logits.ravel()),
        }

    @cached_property
    def average_precisions(self) -> Float[np.ndarray, " classes"]:
        """The average precision of each class; NaN for one that no clip has."""
        pairs = zip(self.targets.T, self.logits.T, strict=True)
        return np.array([average_precision(target, score) for target, score in pairs])

    def per_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Returns clips and average precision of each class; None for one without clips."""
        found = zip(names, self.targets.sum(axis=0), self.average_precisions, strict=True)
        return [
            {"class": name, "clips": int(n), "average_precision": float(ap) if n else None}
            for name, n, ap in found
        ]


def average_precision(target: np.ndarray, score: np.ndarray) -> float:
    """Returns the area under the curve of precision over recall, as a sum over thresholds.

    Clips with the same score count together, so their order does not matter. NaN without any
    target, and for scores that are not finite.
    """
    if not target.any() or not np.isfinite(score).all():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    target, score = target[order].astype(float), score[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # of equal scores
    found = np.cumsum(target)[ends]
    precision, recall = found / (ends + 1), found / target.sum()
    return float((np.diff(recall, prepend=0.0) * precision).sum())
