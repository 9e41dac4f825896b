"""A config's task."""

from collections.abc import Mapping

from vivit.pretraining.jepa import Jepa
from vivit.pretraining.mae import Mae
from vivit.registry import options_of
from vivit.tasks.classify import Classify
from vivit.tasks.multi_label import MultiLabel
from vivit.tasks.objective import TASKS, Objective, TaskKind
from vivit.tasks.task import Task

TASKS.add("classify", TaskKind(Classify))
TASKS.add("multi_label", TaskKind(MultiLabel))
TASKS.add("mae", TaskKind(Mae, options_of(Mae)))
TASKS.add("jepa", TaskKind(Jepa, options_of(Jepa)))


def make_objective(name: str, heads: Mapping[str, int]) -> Objective:
    """Returns the objective of that name for label -> number of classes, in the order of the
    logits.

    Raises ValueError where it predicts labels and there are none, or the other way round.
    """
    kind = TASKS[name]
    made = kind.make(heads, **kind.options)
    if isinstance(made, Task) and not heads:
        raise ValueError("data.label='': name the label to train on, or several in task.heads")
    if heads and not isinstance(made, Task):
        raise ValueError(
            f"task {name!r} learns from clips alone: set data.label='', task.heads={{}} and "
            "model.classes=0"
        )
    return made


def make_task(name: str, heads: Mapping[str, int]) -> Task:
    """Returns the task of that name, as `make_objective`; ValueError if it predicts no labels."""
    made = make_objective(name, heads)
    if not isinstance(made, Task):
        raise ValueError(f"task {name!r} predicts no labels, so there is nothing to score")
    return made
