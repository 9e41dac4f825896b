"""What a run trains: an objective. `vivit.tasks.Task` is one that predicts labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Shaped

from vivit.objective import Sums, Valid
from vivit.ramps import Strength
from vivit.registry import OptionRegistry, Options

if TYPE_CHECKING:  # commands that only read data do without the model and Flax
    from vivit.model.network import Network
    from vivit.model.vivit import ViViT

Batch = Mapping[str, Array]
Values = Float[Array, " B"]  # of each clip
Labels = Shaped[Array, "B ..."]  # of a batch, as a task's `encode` makes them


class Head(NamedTuple):
    """A label, and its part of the logits: `classes` of them from number `start` on."""

    label: str
    classes: int
    start: int

    def of(self, logits: Any) -> Any:
        """Returns the head's part of logits [..., all classes]."""
        return logits[..., self.start : self.start + self.classes]


class Objective(ABC):
    """What a run trains, and how that is judged: a network, what it gets of a batch, and a loss.

    heads: the labels that are predicted; none where a network learns from clips alone.
    mixes: whether the loss is linear in the targets, so that that of a mixture of clips is the
        mixture of the losses.
    averages: whether it learns from the averaged parameters, which are then needed.
    over_batch: whether the loss of a clip depends on the other clips of its batch.
    strengths: fields of its network that train.ramps may change.
    """

    heads: tuple[Head, ...] = ()
    several: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    averages: bool = False
    over_batch: bool = False
    strengths: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(head.label for head in self.heads)

    @property
    @abstractmethod
    def best(self) -> str:
        """The metric by which checkpoints are compared; more is better."""

    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Returns metric -> title, the most important first, for tables. They are fractions."""

    # The network.

    def network(self, model: ViViT) -> Network:
        """Returns what is trained: the model, or one that contains it.

        Raises ValueError for a model with which that cannot be.
        """
        return model

    def split(self, params: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the model's part of the network's parameters, and what is around it."""
        return params, {}

    def start(self, params: Any, model_params: Any, around: Mapping[str, Any]) -> Any:
        """Returns the network's parameters with those of a file, and what the file has around the
        model, instead. Raises ValueError that says which do not fit."""
        return model_params

    def prepare(self, network: Network, batch: Batch, key: Array) -> Batch:
        """Returns the batch with what is drawn for each of its clips, by a key and its "indices"
        alone: the same on any number of devices."""
        return batch

    def inputs(self, batch: Batch) -> tuple[Array, ...]:
        """Returns what the network gets of a batch."""
        return (batch["clips"],)

    def outputs(
        self, network: Network, params: Any, batch: Batch, *, teacher: Any, rngs: Any = None
    ) -> Any:
        """Returns what the network says of a prepared batch, and what else the loss needs.

        teacher: the averaged parameters, or `params` in a run that does not average. rngs: for
        dropout.
        """
        return network.apply({"params": params}, *self.inputs(batch), rngs=rngs)

    def evaluated(self, network: Network, params: Any, batch: Batch) -> Any:
        """Returns the outputs for an evaluation: those, and what else `kept` keeps."""
        return self.outputs(network, params, batch, teacher=params)

    def more_multiply_adds(self, network: Network) -> int:
        """Returns the multiply-adds of one clip in a training step, in addition to those of a
        forward and a backward pass of the network."""
        return 0

    # The loss and the metrics.

    @abstractmethod
    def losses(
        self, outputs: Any, batch: Batch, *, label_smoothing: Strength = 0.0
    ) -> list[Values]:
        """Returns the loss of each clip, by each head if there are any."""

    @abstractmethod
    def sums(self, losses: list[Values], outputs: Any, batch: Batch) -> Sums:
        """Returns the sums of the metrics over the valid clips of a batch."""

    def kept(self, outputs: Any) -> dict[str, Array]:
        """Returns what an evaluation keeps of each clip."""
        return {}

    def whole_metrics(
        self, rows: Mapping[str, np.ndarray], means: Mapping[str, float]
    ) -> dict[str, float]:
        """Returns the metrics that are not means over clips, of what an evaluation has kept of each
        and the metrics that are means."""
        return {}

    # The labels of a batch.

    def for_training(self) -> Objective:
        """Returns what is read of training clips: the objective, without labels that only
        validation needs."""
        return self

    @property
    def no_classes(self) -> dict[str, Any]:
        """What is encoded of a clip that has no labels: padding, and clips of unknown classes."""
        return {}

    def encode(self, labels: Mapping[str, Any]) -> np.ndarray:
        """Returns a clip's label -> class, or classes, as an array of one shape for all clips."""
        return np.zeros(0, np.int32)

    def mirrored(self, labels: Labels, flips: Sequence[Sequence[int]]) -> Labels:
        """Returns the labels of the mirror images of clips.

        flips: of each head, the class number of each class's mirror image.
        """
        return labels


def weighted_sums(values: Mapping[str, Values], valid: Valid) -> Sums:
    """Returns the sum of each metric over the valid clips, and their number."""
    count = valid.sum()
    return {name: ((value * valid).sum(), count) for name, value in values.items()}


@dataclass(frozen=True)
class TaskKind:
    """A registered task: `make(heads, **options)`, for label -> number of classes in the order of
    the logits."""

    make: Callable[..., Objective]
    options: Options = field(default_factory=Options)


# An entry of a user's module runs with task.name.
TASKS: OptionRegistry[TaskKind] = OptionRegistry("task")
