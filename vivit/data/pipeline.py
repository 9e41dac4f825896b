"""Batches of clips. A batch is a function of (seed, step) alone, so its position is one number."""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from vivit.data.sources import Split

Batch = dict[str, np.ndarray]  # clips uint8 [B, F, H, W, 3], labels int32 [B], mask float32 [B]


class Loader:
    """Record number -> example; past the last record an example of zeros with mask 0."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __call__(self, index: int) -> dict[str, Any]:
        shape = self.split.clip_shape
        if index >= len(self.split.records):
            clip, label, mask = np.zeros(shape, np.uint8), 0, 0.0
        else:
            record = self.split.records[int(index)]
            clip = np.frombuffer(record["clip"], np.uint8).reshape(shape)
            label, mask = record[self.split.label], 1.0
        if shape[-1] == 1:
            clip = np.repeat(clip, 3, axis=-1)
        return {"clips": clip, "labels": np.int32(label), "mask": np.float32(mask)}


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless shuffled batches from step `start` on, each epoch in a new order.

    `batch_size` counts the clips of all processes; each process gets its equal part of a batch.
    The batches are the same for any number of threads and workers.
    """
    local = _local_size(batch_size, processes)
    examples = len(split.records)
    if examples < batch_size:
        raise ValueError(f"{batch_size=} is larger than the {examples} clips of the split")
    dataset = grain.MapDataset.range(examples).seed(seed).shuffle().repeat().map(Loader(split))
    batches = dataset.batch(local)[start * processes + process :: processes]
    iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read its absl flags; we parse none
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(iterable)


def eval_batches(
    split: Split, *, batch_size: int, process: int = 0, processes: int = 1, threads: int = 2
) -> Iterator[Batch]:
    """The split once, in order; the last batch is filled up with examples of mask 0."""
    local = _local_size(batch_size, processes)
    batches = -(-len(split.records) // batch_size)
    dataset = grain.MapDataset.range(batches * batch_size).map(Loader(split)).batch(local)
    return iter(dataset[process::processes].to_iter_dataset(grain.ReadOptions(num_threads=threads)))


def _local_size(batch_size: int, processes: int) -> int:
    if batch_size % processes:
        raise ValueError(f"{batch_size=} is not a multiple of the {processes} processes")
    return batch_size // processes
