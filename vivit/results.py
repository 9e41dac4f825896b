"""Results of an evaluation, clip by clip: scores, and the Parquet files that keep them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from vivit.data.split import Split
from vivit.tasks import HeadScores, Task

TOP = 5  # classes of each clip that are kept


@dataclass(frozen=True)
class ClipScores:
    """What a model says of the clips of a split, in their order.

    indices: of the clips in the split; clips that cannot be read are missing. labels: as the task
    encodes them. logits: of all heads.
    """

    indices: Int[np.ndarray, " N"]
    labels: Integer[np.ndarray, "N ..."]
    logits: Float[np.ndarray, "N classes"]
    task: Task

    @cached_property
    def heads(self) -> dict[str, HeadScores]:
        """Label -> the scores of its head."""
        return {
            head.label: self.task.head_scores(
                self.task.target(self.labels, i), head.of(self.logits)
            )
            for i, head in enumerate(self.task.heads)
        }

    @cached_property
    def head_losses(self) -> dict[str, Float[np.ndarray, " N"]]:
        """Label -> the loss of each clip by its head, in nats."""
        batch = {"labels": jnp.asarray(self.labels)}
        losses = self.task.losses(jnp.asarray(self.logits), batch)
        return dict(zip(self.task.labels, map(np.asarray, losses), strict=True))

    @property
    def losses(self) -> Float[np.ndarray, " N"]:
        """The loss of each clip in nats, the mean over the heads."""
        return np.mean(list(self.head_losses.values()), axis=0)

    def head_metrics(self, label: str) -> dict[str, float]:
        """Returns the metrics of a head and its loss."""
        return {"loss": float(self.head_losses[label].mean()), **self.heads[label].metrics}

    @property
    def right(self) -> Bool[np.ndarray, " N"]:
        """Whether every head is right about a clip."""
        return np.all([scores.right for scores in self.heads.values()], axis=0)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of all clips, by the names that training gives them."""
        metrics = {"loss": float(self.losses.mean())}
        if len(self.heads) > 1 and self.task.joint:
            metrics[self.task.best] = float(self.right.mean())
        for head in self.task.heads:
            found = self.head_metrics(head.label).items()
            metrics |= {self.task.key(head, name): value for name, value in found}
        return metrics | self._mean_of_heads

    @property
    def whole_metrics(self) -> dict[str, float]:
        """Those that are not means over clips, so that batches do not add up to them."""
        metrics = {}
        for head in self.task.heads:
            found = self.heads[head.label].whole_metrics.items()
            metrics |= {self.task.key(head, name): value for name, value in found}
        return metrics | self._mean_of_heads

    @property
    def _mean_of_heads(self) -> dict[str, float]:
        """What heads are compared by that have no joint metric."""
        if len(self.heads) == 1 or self.task.joint:
            return {}
        first = next(iter(self.task.titles))
        return {self.task.best: float(np.mean([x.metrics[first] for x in self.heads.values()]))}


def average_probabilities(members: Sequence[ClipScores]) -> ClipScores:
    """Returns an ensemble, whose probabilities are the means of the members'.

    Raises ValueError if the members did not see the same clips.
    """
    first, *others = members
    if any(not np.array_equal(first.indices, x.indices) for x in others):
        raise ValueError(
            "the runs could not read the same clips; mend or leave out the damaged ones"
        )
    mean = first.task.mean_probabilities(np.stack([member.logits for member in members]))
    return replace(first, logits=np.asarray(mean, np.float32))


def parts_by_head(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns label -> what an evaluation's file has of its head: the metrics, "per_class" and
    "confusion"."""
    return result.get("heads") or {result["data"]["label"]: result}


def top_classes(
    probabilities: Float[np.ndarray, "N classes"], names: Sequence[str], *, k: int = TOP
) -> list[list[tuple[str, float]]]:
    """Returns the k most probable classes of each clip with their probabilities, best first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return [
        [(str(names[j]), float(row[j])) for j in best]
        for row, best in zip(probabilities, order, strict=True)
    ]


def best_of_heads(
    task: Task, probabilities: Float[np.ndarray, "N classes"], names: Sequence[str], *, k: int = TOP
) -> list[dict[str, list[tuple[str, float]]]]:
    """Returns label -> the k most probable classes of its head, for each clip.

    names: of the classes of all heads.
    """
    of_heads = [
        top_classes(head.of(probabilities), names[head.start : head.start + head.classes], k=k)
        for head in task.heads
    ]
    return [dict(zip(task.labels, best, strict=True)) for best in zip(*of_heads, strict=True)]


def write_clips(path: Path, scores: ClipScores, split: Split, *, logits: bool) -> None:
    """Writes one row per clip as Parquet: index, id, path, segment, label, top-5 classes with
    probabilities, loss, and with `logits` the logits of all classes.

    With several heads the columns of each begin with its label: verb_label, verb_classes ... The
    label of a clip that may have several classes is a list.
    """
    import pyarrow as pa  # training does not need it
    from pyarrow import parquet

    places = [split.reader.name(int(i)) for i in scores.indices]
    columns: dict[str, Any] = {
        "index": scores.indices,
        "id": [split.reader.id(int(i)) for i in scores.indices],
        "path": [_parts(name)[0] for name in places],
        "segment": [_parts(name)[1] for name in places],
    }
    decoded = [scores.task.decode(row) for row in scores.labels]
    for head in scores.task.heads:
        names = split.classes[head.label].names
        known = [[names[k] for k in clip[head.label]] for clip in decoded]
        best = top_classes(scores.heads[head.label].probabilities, names)
        lists = [[p for _, p in row] for row in best]
        named = {
            "label": known if scores.task.several else [x[0] for x in known],
            "classes": [[name for name, _ in row] for row in best],
            "probabilities": pa.array(lists, pa.list_(pa.float32())),
        }
        columns |= {scores.task.key(head, name): column for name, column in named.items()}
    columns["loss"] = scores.losses.astype(np.float32)
    if logits:
        flat = pa.array(scores.logits.astype(np.float32).ravel())
        columns["logits"] = pa.FixedSizeListArray.from_arrays(flat, scores.logits.shape[1])
    table = pa.table(columns)
    table = table.replace_schema_metadata({"class_names": "\n".join(split.class_names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    parquet.write_table(table, part)
    part.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of such a file, without the logits."""
    from pyarrow import parquet

    columns = [name for name in parquet.read_schema(path).names if name != "logits"]
    return parquet.read_table(path, columns=columns).to_pylist()


def has_logits(path: Path) -> bool:
    """Returns whether there is such a file that was written with logits."""
    from pyarrow import parquet

    return path.exists() and "logits" in parquet.read_schema(path).names


def read_clips(path: Path, task: Task) -> ClipScores | None:
    """Returns the scores of such a file, or None if there is none with logits."""
    from pyarrow import parquet

    if not has_logits(path):
        return None
    table = parquet.read_table(path)
    names = table.schema.metadata[b"class_names"].decode().split("\n")
    logits = table["logits"].combine_chunks().flatten().to_numpy().reshape(-1, len(names))
    numbers: dict[str, list[Any]] = {}
    for head in task.heads:
        place = {name: i for i, name in enumerate(names[head.start : head.start + head.classes])}
        column = table[task.key(head, "label")].to_pylist()
        numbers[head.label] = [
            [place[name] for name in x] if isinstance(x, list) else place[x] for x in column
        ]
    rows = zip(*numbers.values(), strict=True)
    labels = [task.encode(dict(zip(numbers, row, strict=True))) for row in rows]
    return ClipScores(table["index"].to_numpy(), np.stack(labels), logits, task)


def _parts(name: str) -> tuple[str, str]:
    """Returns the path and the segment of what a manifest's clip is called."""
    match = re.fullmatch(r"(.+) \((\S+ s to .+)\)", name, re.DOTALL)
    return (match[1], match[2]) if match else (name, "")
