"""What a config may say of what a model predicts: the schema of `config.task`. No JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskSettings:
    """What a model predicts of a clip; the schema of `config.task`.

    name: of TASKS, with its options: "classify", one class of each label by softmax, "multi_label",
        any number of classes by sigmoid, or "mae(mask='tube(0.9)')", which learns from clips alone:
        data.label is then "" and model.classes is 0.
    heads: label -> number of classes, for several labels at once: {"noun": 300, "verb": 97}. The
        logits of all heads follow each other in the order of the labels' names, so model.classes is
        the sum, and data.label is "". {} for data.label alone.
    """

    name: str = "classify"
    heads: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = [label for label in self.heads if label in ("joint", "mean", "raw")]
        if taken:
            raise ValueError(f"task.heads: metrics of another kind begin with {taken[0]}_")
        wrong = {k: n for k, n in self.heads.items() if type(n) is not int or n < 1}
        if wrong:
            listed = ", ".join(f"{label}={classes!r}" for label, classes in wrong.items())
            raise ValueError(f"task.heads: {listed} must be whole numbers of classes, at least 1")
        if len(self.heads) == 1:
            (label,) = self.heads
            raise ValueError(
                f"task.heads={dict(self.heads)}: set data.label={label!r} for one label"
            )
