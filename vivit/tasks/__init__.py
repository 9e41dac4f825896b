"""What a model predicts of a clip: `make_task("classify", {"noun": 300, "verb": 97})`.

The names load JAX when they are first used, so that configs can be read without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vivit.tasks.classify import Classify
    from vivit.tasks.make import TASKS, make_task
    from vivit.tasks.multi_label import MultiLabel
    from vivit.tasks.task import Head, HeadScores, Task

_HOMES = {
    "TASKS": "make",
    "Classify": "classify",
    "Head": "task",
    "HeadScores": "task",
    "MultiLabel": "multi_label",
    "Task": "task",
    "make_task": "make",
}
__all__ = ["TASKS", "Classify", "Head", "HeadScores", "MultiLabel", "Task", "make_task"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"vivit.tasks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vivit.tasks' has no attribute {name!r}")
