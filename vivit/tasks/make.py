"""A config's task."""

from collections.abc import Mapping

from vivit.tasks.classify import Classify
from vivit.tasks.multi_label import MultiLabel
from vivit.tasks.task import TASKS, Task

TASKS.add("classify", Classify)
TASKS.add("multi_label", MultiLabel)


def make_task(name: str, heads: Mapping[str, int]) -> Task:
    """Returns the task of that name for label -> number of classes, in the order of the logits."""
    return TASKS[name](heads)
