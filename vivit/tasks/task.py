"""Tasks: what a model predicts of a clip, and all that follows from it.

A task has one head per label; the model's logits are those of all heads, one after another. A task
owns the targets, the loss, the metrics, and the scores that an evaluation keeps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vivit.axes import Logits
from vivit.objective import Sums
from vivit.ramps import Strength
from vivit.tasks.objective import Batch, Head, Labels, Objective, Values, weighted_sums


class HeadScores(ABC):
    """What an evaluation says of one head, for clips whose targets are known; NumPy."""

    @property
    def confusion(self) -> Shaped[np.ndarray, "classes classes"] | None:
        """Counts of [label, predicted class], where a clip has one class."""
        return None

    @property
    @abstractmethod
    def probabilities(self) -> Float[np.ndarray, "N classes"]: ...

    @property
    @abstractmethod
    def right(self) -> Shaped[np.ndarray, " N"]:
        """1 for the clips that the head is right about, else 0."""

    @property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """The metrics of all clips."""

    @property
    @abstractmethod
    def whole_metrics(self) -> dict[str, float]:
        """Those that are not means over clips, so that batches do not add up to them."""

    @abstractmethod
    def per_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Returns "class", "clips" and fractions of each class; None for those of no clips."""


class Task(Objective):
    """What a model predicts of a clip. Subclasses say what the heads have in common.

    titles: what pages call the metrics of a head that are fractions, the most important first;
        checkpoints are compared by it. joint: the one of them that counts for a clip where every
        head has it, as `HeadScores.right` has; "" for none, and then heads are compared by the mean
        of their first metrics.
    several: whether a clip may have several classes of a label.
    """

    titles: ClassVar[Mapping[str, str]]
    joint: ClassVar[str] = ""
    mixes: ClassVar[bool] = True

    def __init__(self, heads: Mapping[str, int]) -> None:
        """heads: label -> number of classes, in the order of the logits."""
        starts = np.cumsum([0, *heads.values()])
        placed = zip(heads.items(), starts, strict=False)
        self.heads: tuple[Head, ...] = tuple(Head(*head, int(start)) for head, start in placed)

    def key(self, head: Head, name: str) -> str:
        """Returns what a metric of a head is called: with several heads, after its label."""
        return name if len(self.heads) == 1 else f"{head.label}_{name}"

    @property
    def best(self) -> str:
        first = next(iter(self.titles))
        if len(self.heads) == 1:
            return first
        return f"joint_{self.joint}" if self.joint else f"mean_{first}"

    def shown(self, head: Head) -> Mapping[str, str]:
        """Returns the titles of the metrics that say something of a head with its classes."""
        return self.titles

    def columns(self) -> dict[str, str]:
        if len(self.heads) == 1:
            return dict(self.shown(self.heads[0]))
        kind, _, name = self.best.partition("_")
        columns = {self.best: f"{kind} {self.titles[name]}"}
        for head in self.heads:
            for name, title in self.shown(head).items():
                columns[self.key(head, name)] = f"{head.label} {title}"
        return columns

    # The labels of a batch.

    @abstractmethod
    def encode(self, labels: Mapping[str, Any]) -> np.ndarray: ...

    @abstractmethod
    def decode(self, labels: Any) -> dict[str, tuple[int, ...]]:
        """Returns label -> class numbers of one clip's encoded labels."""

    @abstractmethod
    def mirrored(self, labels: Labels, flips: Sequence[Sequence[int]]) -> Labels: ...

    @abstractmethod
    def target(self, labels: Any, number: int) -> Any:
        """Returns the targets of the head of that number, of NumPy's or JAX's labels."""

    @property
    def no_classes(self) -> dict[str, Any]:
        return {head.label: () if self.several else 0 for head in self.heads}

    # One head.

    @abstractmethod
    def head_loss(self, logits: Logits, target: Array, *, label_smoothing: Strength) -> Values:
        """Returns the loss of each clip."""

    @abstractmethod
    def head_metrics(self, logits: Logits, target: Array) -> dict[str, Values]:
        """Returns metrics that are means over clips: the value of each clip, by name."""

    @abstractmethod
    def head_probabilities(self, logits: Any) -> Any:
        """Returns the probabilities [..., classes] of NumPy's or JAX's logits."""

    @abstractmethod
    def head_mean(self, logits: Any) -> Any:
        """Returns logits whose probabilities are the means over the first axis."""

    @abstractmethod
    def head_scores(self, target: np.ndarray, logits: np.ndarray) -> HeadScores: ...

    # All heads.

    def losses(
        self, logits: Logits, batch: Batch, *, label_smoothing: Strength = 0.0
    ) -> list[Values]:
        """Returns the loss of each clip by each head; mixed clips have two labels."""

        def of(labels: Labels) -> list[Values]:
            return [
                self.head_loss(
                    head.of(logits), self.target(labels, i), label_smoothing=label_smoothing
                )
                for i, head in enumerate(self.heads)
            ]

        if "label_weight" not in batch:
            return of(batch["labels"])
        weight = batch["label_weight"]
        pairs = zip(of(batch["labels"]), of(batch["other_labels"]), strict=True)
        return [weight * one + (1 - weight) * other for one, other in pairs]

    def sums(self, losses: list[Values], logits: Logits, batch: Batch) -> Sums:
        """Returns the sums of the metrics over the valid clips of a batch. "loss" is the mean over
        the heads, as Scenic trains ViViT on Epic-Kitchens."""
        valid, labels = batch["valid"], batch["labels"]
        values: dict[str, Any] = {"loss": sum(losses) / len(losses)}
        of_heads = [
            self.head_metrics(head.of(logits), self.target(labels, i))
            for i, head in enumerate(self.heads)
        ]
        if len(self.heads) > 1:
            if self.joint:
                right = jnp.stack([metrics[self.joint] for metrics in of_heads])
                values[f"joint_{self.joint}"] = right.prod(axis=0)
            of_heads = [{"loss": x, **m} for x, m in zip(losses, of_heads, strict=True)]
        for head, metrics in zip(self.heads, of_heads, strict=True):
            values |= {self.key(head, name): value for name, value in metrics.items()}
        return weighted_sums(values, valid)

    def kept(self, outputs: Any) -> dict[str, Array]:
        return {"logits": outputs}

    def probabilities(self, logits: Any) -> Any:
        """Returns the probabilities of all classes, head by head."""
        return self._by_head(self.head_probabilities, logits)

    def mean_probabilities(self, logits: Float[Any, "V ... classes"]) -> Any:
        """Returns logits whose probabilities are the means over the first axis, head by head."""
        return self._by_head(self.head_mean, logits)

    def _by_head(self, function: Callable[[Any], Any], logits: Any) -> Any:
        parts = [function(head.of(logits)) for head in self.heads]
        if len(parts) == 1:
            return parts[0]
        return (jnp if isinstance(logits, jax.Array) else np).concatenate(parts, axis=-1)
