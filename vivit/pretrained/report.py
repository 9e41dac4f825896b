"""The result of `load` for every array of a file and every parameter of a model."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A parameter of the model.

    action: loaded, transformed, resized, inflated, copied, zero, sliced or fresh (newly
        initialised). origin: the array's name in the file; "" for zero and fresh.
    """

    parameter: str
    shape: tuple[int, ...]
    action: str
    origin: str


@dataclass(frozen=True)
class Report:
    """A report that prints as a table.

    dropped: name in the file -> why. labels: names of the model's classes. task: of TASKS, what the
    head predicts. groups: label -> number of classes, of a head of several labels. source_config:
    the model of the file. sha256: of every file that was read, by name.
    """

    source: str
    path: str
    rows: tuple[Row, ...]
    dropped: dict[str, str]
    notes: tuple[str, ...]
    labels: tuple[str, ...] = ()
    task: str = "classify"
    groups: dict[str, int] = field(default_factory=dict)
    source_config: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """The number of parameters of each action, and of "dropped" arrays."""
        counted = Counter(row.action for row in self.rows)
        return dict(counted) | ({"dropped": len(self.dropped)} if self.dropped else {})

    def summary(self) -> str:
        """Returns the counts in one line, and one line for each note."""
        counted = ", ".join(f"{n} {action}" for action, n in self.counts.items())
        lines = [f"{self.path}: {self.source}, {counted}"]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def __str__(self) -> str:
        lines = [self.summary(), ""]
        cells = [(row.parameter, str(list(row.shape)), row.action, row.origin) for row in self.rows]
        cells += [("-", "", f"dropped: {why}", name) for name, why in self.dropped.items()]
        header = ("parameter", "shape", "action", "from")
        widths = [max(len(row[i]) for row in [header, *cells]) for i in range(4)]
        for row in [header, *cells]:
            padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)
