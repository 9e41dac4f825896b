"""What a model predicts of a clip: `make_task("classify", {"noun": 300, "verb": 97})`.

The names load JAX when they are first used, so that configs can be read without it.
"""

from typing import TYPE_CHECKING

from vivit.lazy import lazy

if TYPE_CHECKING:
    from vivit.tasks.classify import Classify
    from vivit.tasks.make import TASKS, make_objective, make_task
    from vivit.tasks.multi_label import MultiLabel
    from vivit.tasks.objective import Head, Objective, TaskKind
    from vivit.tasks.task import HeadScores, Task

_HOMES = {
    "TASKS": "make",
    "Classify": "classify",
    "Head": "objective",
    "HeadScores": "task",
    "MultiLabel": "multi_label",
    "Objective": "objective",
    "Task": "task",
    "TaskKind": "objective",
    "make_objective": "make",
    "make_task": "make",
}
__all__ = [
    "TASKS", "Classify", "Head", "HeadScores", "MultiLabel", "Objective", "Task", "TaskKind",
    "make_objective", "make_task",
]  # fmt: skip
__getattr__ = lazy(__name__, _HOMES)
