"""Results of an evaluation, clip by clip: scores, and the Parquet files that keep them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax, logsumexp

from vivit.data.split import Split
from vivit.objective import top_k_hits

TOP = 5  # classes of each clip that are kept


class ClipScores(NamedTuple):
    """What a model says of the clips of a split, in their order.

    indices: of the clips in the split; clips that cannot be read are missing. labels: class
    numbers.
    """

    indices: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    logits: Float[np.ndarray, "N classes"]

    @property
    def log_probabilities(self) -> Float[np.ndarray, "N classes"]:
        return np.asarray(log_softmax(self.logits.astype(np.float64), axis=-1))

    @property
    def losses(self) -> Float[np.ndarray, " N"]:
        """The cross-entropy of each clip, in nats."""
        return -np.take_along_axis(self.log_probabilities, self.labels[:, None], axis=1)[:, 0]

    def hits(self, *, k: int = 1) -> Int[np.ndarray, " N"]:
        """Returns 1 where fewer than k classes score at least as high as the label, else 0."""
        found = top_k_hits(jnp.asarray(self.logits), jnp.asarray(self.labels), k=k)
        return np.asarray(found).astype(int)

    @property
    def confusion(self) -> Int[np.ndarray, "classes classes"]:
        """Counts of [label, predicted class]."""
        classes = self.logits.shape[1]
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (self.labels, self.logits.argmax(axis=1)), 1)
        return counts

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the clips: loss, top1 and top5."""
        return {
            "loss": float(self.losses.mean()),
            "top1": float(self.hits().mean()),
            "top5": float(self.hits(k=5).mean()),
        }


def average_probabilities(members: Sequence[ClipScores]) -> ClipScores:
    """Returns an ensemble: its logits are the logarithms of the mean probabilities.

    Raises ValueError if the members did not see the same clips.
    """
    first, *others = members
    if any(not np.array_equal(first.indices, x.indices) for x in others):
        raise ValueError(
            "the runs could not read the same clips; mend or leave out the damaged ones"
        )
    logs = np.stack([member.log_probabilities for member in members])
    mean = np.asarray(logsumexp(logs, axis=0)) - np.log(len(members))
    return first._replace(logits=mean.astype(np.float32))


def top_classes(
    probabilities: Float[np.ndarray, "N classes"], names: Sequence[str], *, k: int = TOP
) -> list[list[tuple[str, float]]]:
    """Returns the k most probable classes of each clip with their probabilities, best first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return [
        [(str(names[j]), float(row[j])) for j in best]
        for row, best in zip(probabilities, order, strict=True)
    ]


def write_clips(path: Path, scores: ClipScores, split: Split, *, logits: bool) -> None:
    """Writes one row per clip as Parquet: index, id, path, segment, label, top-5 classes with
    probabilities, loss, and with `logits` the logits of all classes."""
    import pyarrow as pa  # training does not need it
    from pyarrow import parquet

    names = split.class_names
    best = top_classes(np.exp(scores.log_probabilities), names)
    places = [split.reader.name(int(i)) for i in scores.indices]
    columns: dict[str, Any] = {
        "index": scores.indices,
        "id": [split.reader.id(int(i)) for i in scores.indices],
        "path": [_parts(name)[0] for name in places],
        "segment": [_parts(name)[1] for name in places],
        "label": [names[i] for i in scores.labels],
        "classes": [[name for name, _ in row] for row in best],
        "probabilities": pa.array([[p for _, p in row] for row in best], pa.list_(pa.float32())),
        "loss": scores.losses.astype(np.float32),
    }
    if logits:
        flat = pa.array(scores.logits.astype(np.float32).ravel())
        columns["logits"] = pa.FixedSizeListArray.from_arrays(flat, len(names))
    table = pa.table(columns).replace_schema_metadata({"class_names": "\n".join(names)})
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


def read_clips(path: Path) -> ClipScores | None:
    """Returns the scores of such a file, or None if there is none with logits."""
    from pyarrow import parquet

    if not has_logits(path):
        return None
    table = parquet.read_table(path)
    names = table.schema.metadata[b"class_names"].decode().split("\n")
    numbers = {name: i for i, name in enumerate(names)}
    logits = table["logits"].combine_chunks().flatten().to_numpy().reshape(-1, len(names))
    labels = np.array([numbers[name] for name in table["label"].to_pylist()])
    return ClipScores(table["index"].to_numpy(), labels, logits)


def _parts(name: str) -> tuple[str, str]:
    """Returns the path and the segment of what a manifest's clip is called."""
    match = re.fullmatch(r"(.+) \((\S+ s to .+)\)", name, re.DOTALL)
    return (match[1], match[2]) if match else (name, "")
