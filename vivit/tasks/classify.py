"""One class of each label, by softmax and cross-entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import log_softmax, logsumexp, softmax

from vivit.axes import Logits
from vivit.objective import cross_entropy, top_k_hits
from vivit.ramps import Strength
from vivit.tasks.task import Head, HeadScores, Labels, Task, Values

TOP_5 = "top5"  # of no use for so few classes


class Classify(Task):
    """Each clip has one class of each label. Labels are int32 [B], or [B, heads] of several."""

    titles = MappingProxyType(
        {"top1": "top-1", TOP_5: "top-5", "mean_class_accuracy": "mean class accuracy"}
    )
    joint = "top1"

    def shown(self, head: Head) -> Mapping[str, str]:
        return {k: v for k, v in self.titles.items() if k != TOP_5 or head.classes > 5}

    def encode(self, labels: Mapping[str, Any]) -> np.ndarray:
        numbers = np.array([labels[head.label] for head in self.heads], np.int32)
        return numbers[0, ...] if len(self.heads) == 1 else numbers

    def decode(self, labels: Any) -> dict[str, tuple[int, ...]]:
        return {k: (int(n),) for k, n in zip(self.labels, np.atleast_1d(labels), strict=True)}

    def mirrored(self, labels: Labels, flips: Sequence[Sequence[int]]) -> Labels:
        if len(self.heads) == 1:
            return jnp.array(flips[0])[labels]
        of_heads = [jnp.array(flip)[labels[:, i]] for i, flip in enumerate(flips)]
        return jnp.stack(of_heads, axis=1)

    def target(self, labels: Any, number: int) -> Any:
        return labels if len(self.heads) == 1 else labels[:, number]

    def head_loss(self, logits: Logits, target: Array, *, label_smoothing: Strength) -> Values:
        return cross_entropy(logits, target, label_smoothing=label_smoothing)

    def head_metrics(self, logits: Logits, target: Array) -> dict[str, Values]:
        return {"top1": top_k_hits(logits, target, k=1), "top5": top_k_hits(logits, target, k=5)}

    def head_probabilities(self, logits: Any) -> Any:
        return (jax.nn.softmax if isinstance(logits, jax.Array) else softmax)(logits, axis=-1)

    def head_mean(self, logits: Any) -> Any:
        if isinstance(logits, jax.Array):
            logs = jax.nn.log_softmax(logits, axis=-1)
            return jax.nn.logsumexp(logs, axis=0) - jnp.log(len(logits))
        logs = np.asarray(log_softmax(logits.astype(np.float64), axis=-1))
        return np.asarray(logsumexp(logs, axis=0)) - np.log(len(logits))

    def head_scores(self, target: np.ndarray, logits: np.ndarray) -> "ClassScores":
        return ClassScores(target, logits)


@dataclass(frozen=True)
class ClassScores(HeadScores):
    """What a model says of clips that have one class each; targets: class numbers."""

    targets: Int[np.ndarray, " N"]
    logits: Float[np.ndarray, "N classes"]

    @property
    def probabilities(self) -> Float[np.ndarray, "N classes"]:
        return softmax(self.logits.astype(np.float64), axis=-1)

    def hits(self, *, k: int = 1) -> Int[np.ndarray, " N"]:
        """Returns 1 where fewer than k classes score at least as high as the label, else 0."""
        found = top_k_hits(jnp.asarray(self.logits), jnp.asarray(self.targets), k=k)
        return np.asarray(found).astype(int)

    @property
    def right(self) -> Int[np.ndarray, " N"]:
        return self.hits()

    @property
    def confusion(self) -> Int[np.ndarray, "classes classes"]:
        """Counts of [label, predicted class]."""
        classes = self.logits.shape[1]
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (self.targets, self.logits.argmax(axis=1)), 1)
        return counts

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the clips, and `whole_metrics`."""
        hits = {"top1": self.hits(), "top5": self.hits(k=5)}
        return {**{name: float(x.mean()) for name, x in hits.items()}, **self.whole_metrics}

    @property
    def whole_metrics(self) -> dict[str, float]:
        """The mean recall of the classes that have clips."""
        clips, found = np.bincount(self.targets), np.bincount(self.targets, self.hits())
        recalls = found[clips > 0] / clips[clips > 0]
        return {"mean_class_accuracy": float(recalls.mean()) if len(recalls) else float("nan")}

    def per_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        return per_class(self.confusion, names)


def per_class(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns clips, recall and precision of each class; None for a ratio to zero clips."""

    def ratio(hits, total):
        return float(hits / total) if total else None

    return [
        {
            "class": name,
            "clips": int(confusion[i].sum()),
            "recall": ratio(confusion[i, i], confusion[i].sum()),
            "precision": ratio(confusion[i, i], confusion[:, i].sum()),
        }
        for i, name in enumerate(names)
    ]
