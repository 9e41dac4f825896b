"""Batches of clips. A batch is a function of (seed, step) alone, so its position is one number."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np
from absl import flags

from vivit.data.decode import KINDS, LARGEST_FRAME, Damaged
from vivit.data.footage import Footage, Limits
from vivit.data.memory import keep_freed_memory
from vivit.data.sampling import Sampling
from vivit.data.sources import Split, open_split

log = logging.getLogger(__name__)

# clips uint8 [B, F, H, W, 3], or [B, V, F, H, W, 3] of views; extents int32 [B, 2]: the height and
# width that frames have of H and W; labels int32 [B]; mask float32 [B], 0 for what is no clip;
# positions uint32 [B]: of the examples in the order of training, for what they draw.
Batch = dict[str, np.ndarray]
ATTEMPTS = 8  # clips tried for one example, of which all but the last are damaged
PASSING = ("timed out", "crashed", "unreadable")


@dataclass(frozen=True)
class Data:
    """What a run reads, `config.data`.

    name, root, label: see open_split; a name that ends in .csv or .parquet is a manifest's.
    splits: those to train on and to validate on.
    batch_size: clips of all processes. threads: a process; each has a decoder of its own.
    workers: processes beside this one that load batches; 0 for none.
    short_side: pixels that frames of files are shrunk to; prepared ones have their size.
    canvas: height and width of a frame in a training batch: larger frames are cut to it at random.
        None for what holds every frame.
    enlarge: whether frames may be smaller than the model's and are then enlarged.
    sampling: fields of Sampling. views: fields of views.Views, for evaluation.
    bad_share: of the split's clips that may turn out damaged before a run stops.
    timeout_seconds: for reading one clip. largest_frame: pixels of a frame that is decoded.
    """

    name: str
    root: str
    label: str
    batch_size: int
    splits: tuple[str, ...] = ("train", "validation")
    threads: int = 2
    workers: int = 0
    short_side: int = 256
    canvas: Any = None
    enlarge: bool = False
    sampling: Any = field(default_factory=dict)
    views: Any = field(default_factory=dict)
    bad_share: float = 0.05
    timeout_seconds: float = 60.0
    largest_frame: int = LARGEST_FRAME

    def __post_init__(self) -> None:
        _ = self.sampler  # raises for what it can't be
        if not 0 <= self.bad_share <= 1 or self.timeout_seconds <= 0:
            raise ValueError(
                f"data.bad_share={self.bad_share} must be in 0 .. 1, and "
                f"timeout_seconds={self.timeout_seconds} positive"
            )

    def open(self, split: str) -> Split:
        return open_split(
            self.name,
            self.root,
            split=split,
            label=self.label,
            short_side=self.short_side,
            limits=Limits(float(self.timeout_seconds), self.largest_frame),
        )

    @property
    def sampler(self) -> Sampling:
        return Sampling(**self.sampling)

    def train(
        self, split: Split, *, frames: int, seed: int, start: int = 0, **process
    ) -> "Batches":
        """This process's part of the batches of training, from step `start` on."""
        return train_batches(
            split,
            frames=frames,
            seed=seed,
            start=start,
            sampling=self.sampler,
            canvas=self.canvas,
            batch_size=self.batch_size,
            bad_share=self.bad_share,
            threads=self.threads,
            workers=self.workers,
            **process,
        )

    def evaluate(self, split: Split, *, frames: int, views: int = 1, **process) -> "Batches":
        """This process's part of a split's batches, once."""
        return eval_batches(
            split,
            frames=frames,
            views=views,
            sampling=self.sampler,
            batch_size=self.batch_size,
            bad_share=self.bad_share,
            threads=self.threads,
            **process,
        )


@dataclass(frozen=True)
class Loader:
    """(position, clip number) -> an example; a clip that is damaged is replaced by another.

    Position and seed decide all that is drawn, the clips that replace others among it.
    """

    split: Split
    frames: int
    canvas: tuple[int, int]
    sampling: Sampling
    seed: int

    def __call__(self, position: int, index: int) -> dict[str, Any]:
        bad = np.full((ATTEMPTS, 2), -1, np.int64)
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([self.seed, position, attempt])
            if attempt:
                index = int(rng.integers(len(self.split)))
            try:
                footage = _again(lambda i=int(index): self.split.reader.open(i))
                numbers = self.sampling.train(
                    footage.times, footage.seconds, frames=self.frames, rng=rng
                )
                window = choose_window(footage, self.canvas, rng)
                frames = _again(lambda f=footage, n=numbers, w=window: f.read(n, w))
                clip = on_canvas(frames, self.canvas)
            except Damaged as error:
                bad[attempt] = index, KINDS.index(error.kind)
                continue
            return _example(self.split, footage, clip, window[2:], position, bad)
        names = ", ".join(self.split.reader.name(int(i)) for i in bad[:, 0])
        raise ValueError(f"{ATTEMPTS} clips in a row can't be read: {names}")


@dataclass(frozen=True)
class ViewLoader:
    """Clip number -> an example with all temporal views [V, F, H, W, 3].

    Past the last clip, and for one that is damaged, zeros with mask 0.
    """

    split: Split
    frames: int
    views: int
    sampling: Sampling

    def __call__(self, index: int) -> dict[str, Any]:
        canvas = self.split.largest
        bad = np.full((ATTEMPTS, 2), -1, np.int64)
        if index < len(self.split):
            try:
                footage = _again(lambda: self.split.reader.open(int(index)))
                if footage.height > canvas[0] or footage.width > canvas[1]:
                    raise Damaged("too large", f"is larger than the {canvas} of all others")
                numbers = self.sampling.views(
                    footage.times, footage.seconds, frames=self.frames, views=self.views
                )
                frames = _again(lambda: footage.read(numbers.reshape(-1), None))
                clip = on_canvas(frames, canvas)
                clip = clip.reshape(self.views, self.frames, *clip.shape[1:])
                extent = footage.height, footage.width
                return _example(self.split, footage, clip, extent, index, bad)
            except Damaged as error:
                bad[0] = index, KINDS.index(error.kind)
        return {
            "clips": np.zeros((self.views, self.frames, *canvas, 3), np.uint8),
            "extents": np.array(canvas, np.int32),
            "labels": np.int32(0),
            "mask": np.float32(0),
            "positions": np.uint32(index % (1 << 32)),
            "bad": bad,
        }


def _again(read: Callable[[], Any]) -> Any:
    """Once more where a busy machine may be what failed, and not the clip."""
    try:
        return read()
    except Damaged as error:
        if error.kind not in PASSING:
            raise
    return read()


def choose_window(
    footage: Footage, canvas: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height, width of what a canvas shows of a frame: at random, where it is larger."""
    shape = footage.height, footage.width
    size = min(shape[0], canvas[0]), min(shape[1], canvas[1])
    top, left = (int(rng.integers(a - b + 1)) for a, b in zip(shape, size, strict=True))
    return top, left, size[0], size[1]


def on_canvas(frames: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Frames [F, H, W, C] in the upper left of a black canvas, in RGB."""
    if frames.shape[1:] == (*canvas, 3):
        return frames
    out = np.zeros((len(frames), *canvas, 3), np.uint8)
    out[:, : frames.shape[1], : frames.shape[2]] = frames  # grey becomes RGB
    return out


def _example(split: Split, footage: Footage, clip, extent, position, bad) -> dict[str, Any]:
    return {
        "clips": clip,
        "extents": np.array(extent, np.int32),
        "labels": np.int32(footage.labels[split.label]),
        "mask": np.float32(1),
        "positions": np.uint32(position % (1 << 32)),
        "bad": bad,
    }


class Batches(Iterator[Batch]):
    """Batches of a grain dataset, without what is only for counting damaged clips."""

    def __init__(self, batches: Iterator[Batch], split: Split, bad_share: float) -> None:
        self._batches, self._split, self._bad_share = batches, split, bad_share
        self.damaged: dict[int, str] = {}  # clip number -> what is wrong with it

    def __next__(self) -> Batch:
        batch = next(self._batches)
        for index, kind in batch.pop("bad").reshape(-1, 2).tolist():
            if index >= 0 and index not in self.damaged:
                self._count(index, KINDS[kind])
        return batch

    def close(self) -> None:
        """Ends grain's threads and processes."""
        close = getattr(self._batches, "close", None)
        if close:
            close()

    def _count(self, index: int, kind: str) -> None:
        self.damaged[index] = kind
        name, count, of = self._split.reader.name(index), len(self.damaged), len(self._split)
        log.warning("%s: %s; %d of %d clips so far", name, kind, count, of)
        if count > self._bad_share * of:
            raise ValueError(
                f"{count} of the {of} clips of split {self._split.split!r} can't be read, more "
                f"than data.bad_share={self._bad_share:g}; the last is {name}: {kind}. "
                "See python -m vivit.data check"
            )


def train_batches(
    split: Split,
    *,
    frames: int,
    batch_size: int,
    seed: int,
    sampling: Sampling = Sampling(),
    canvas: tuple[int, int] | None = None,
    bad_share: float = 0.05,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    workers: int = 0,
) -> Batches:
    """Endless shuffled batches from step `start` on, each epoch in a new order.

    `batch_size` counts the clips of all processes; each process gets its equal part of a batch.
    The batches are the same for any number of threads and workers.
    """
    keep_freed_memory()
    local = _local_size(batch_size, processes)
    if len(split) < batch_size:
        raise ValueError(f"{batch_size=} is larger than the {len(split)} clips of the split")
    loader = Loader(split, frames, tuple(canvas or split.largest), sampling, seed)
    dataset = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat()
    batches = dataset.map_with_index(loader).batch(local)[start * processes + process :: processes]
    iterable = batches.to_iter_dataset(_read_options(threads, workers))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read its absl flags; we parse none
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(options, worker_init_fn=_start_worker)
    return Batches(iter(iterable), split, bad_share)


def eval_batches(
    split: Split,
    *,
    frames: int,
    batch_size: int,
    sampling: Sampling = Sampling(),
    views: int = 1,
    bad_share: float = 0.05,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Batches:
    """The split once, in order; the last batch is filled up with examples of mask 0."""
    local = _local_size(batch_size, processes)
    batches = -(-len(split) // batch_size)
    loader = ViewLoader(split, frames, views, sampling)
    dataset = grain.MapDataset.range(batches * batch_size).map(loader).batch(local)
    part = dataset[process::processes].to_iter_dataset(_read_options(threads, 0))
    return Batches(iter(part), split, bad_share)


def _read_options(threads: int, workers: int) -> grain.ReadOptions:
    # A thread makes a whole batch, so a few batches wait at most.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))


def _start_worker(number: int, count: int) -> None:
    keep_freed_memory()


def _local_size(batch_size: int, processes: int) -> int:
    if batch_size % processes:
        raise ValueError(f"{batch_size=} is not a multiple of the {processes} processes")
    return batch_size // processes
