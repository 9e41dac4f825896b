"""What a model says of videos, and how it is printed."""

import csv
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vivit.results import best_of_heads
from vivit.tasks import Task


class Prediction(NamedTuple):
    """What a model says of a video: the probabilities of the classes of all heads. seconds: where
    in the video, or None for all of it."""

    video: str
    seconds: float | None
    probabilities: Float[np.ndarray, " classes"]


class Printer:
    """Prints predictions as they come: a table, lines of JSON, or CSV."""

    def __init__(self, kind: str, task: Task, names: Sequence[str], top: int) -> None:
        self.kind, self.task, self.names, self.top = kind, task, names, top
        if kind == "csv":
            self.rows = csv.writer(sys.stdout, lineterminator="\n")
            numbered = [
                f"{task.key(head, what)}_{k + 1}"
                for head in task.heads
                for k in range(min(top, head.classes))
                for what in ("class", "p")
            ]
            self.rows.writerow(["video", "seconds", *numbered])

    def __call__(self, found: Prediction) -> None:
        best = best_of_heads(self.task, found.probabilities[None], self.names, k=self.top)[0]
        several = len(best) > 1
        if self.kind == "json":
            row: dict[str, Any] = {"video": found.video, "seconds": found.seconds}
            classes = {
                label: [{"class": name, "probability": round(p, 6)} for name, p in of_head]
                for label, of_head in best.items()
            }
            row |= {"heads": classes} if several else {"classes": next(iter(classes.values()))}
            print(json.dumps(row))
        elif self.kind == "csv":
            values = [
                x for of_head in best.values() for name, p in of_head for x in (name, f"{p:.6f}")
            ]
            seconds = "" if found.seconds is None else f"{found.seconds:g}"
            self.rows.writerow([found.video, seconds, *values])
        else:
            place = "" if found.seconds is None else f"  {found.seconds:8.2f} s"
            listed = {k: ", ".join(f"{name} {p:.1%}" for name, p in v) for k, v in best.items()}
            shown = [f"{label}: {text}" if several else text for label, text in listed.items()]
            print(f"{found.video}{place}  {'; '.join(shown)}")
        sys.stdout.flush()
