"""Batches of clips. A batch is a function of (seed, step) alone, so its place is one number."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grain
import numpy as np
from absl import flags

from vivit.data.memory import keep_freed_memory
from vivit.data.sampling import SAMPLINGS
from vivit.data.settings import DataSettings
from vivit.data.split import Split
from vivit.data.video import FAILURES, TRANSIENT_ERRORS, ClipReadError, VideoReader, Window
from vivit.processes import gather

log = logging.getLogger(__name__)

# clips uint8 [B, F, H, W, 3], or [B, V, F, H, W, 3] of views; extents int32 [B, 2]: the height and
# width that frames have of H and W; labels [B, ...], as the task encodes them; valid float32 [B], 0
# for padding and clips that can't be read; indices uint32 [B]: of the examples in the order of
# training, for what they draw.
Batch = dict[str, np.ndarray]
ENDLESS = 1 << 60  # clips: grain's slices of a data set without an end overflow
ATTEMPTS = 8  # clips tried for one example, of which all but the last are damaged
Result = TypeVar("Result")


@dataclass(frozen=True)
class TrainLoader:
    """Loads the example of an index in the order of training from a clip number.

    A clip that is damaged is replaced by another. Index and seed decide all that is drawn.
    """

    settings: DataSettings
    split: Split
    frames: int
    seed: int

    def __call__(self, index: int, number: int) -> dict[str, Any]:
        canvas = self.settings.canvas or self.split.largest
        sampling = self.settings.sampling
        failures = _no_failures()
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([self.seed, index, attempt])
            if attempt:
                number = int(rng.integers(len(self.split)))
            try:
                video = _retry_transient(lambda i=int(number): self.split.reader.open(i))
                train = SAMPLINGS[sampling.kind].train
                chosen = train(sampling, video.times, video.seconds, self.frames, rng)
                window = choose_window(video, canvas, rng)
                frames = _retry_transient(lambda v=video, n=chosen, w=window: v.read(n, w))
                clip = on_canvas(frames, canvas)
            except ClipReadError as error:
                failures[attempt] = number, FAILURES.index(error.kind)
                continue
            labels = self.split.task.encode(video.labels)
            return _example(clip, window[2:], labels, 1, index, failures)
        names = ", ".join(self.split.reader.name(int(i)) for i in failures[:, 0])
        raise ValueError(f"{ATTEMPTS} clips in a row can't be read: {names}")


@dataclass(frozen=True)
class ViewLoader:
    """Loads a clip number with all temporal views [V, F, H, W, 3], in the order of the split.

    Zeros that are not valid replace a damaged clip, and follow the last one.
    """

    settings: DataSettings
    split: Split
    frames: int

    def __call__(self, number: int) -> dict[str, Any]:
        canvas, failures = self.split.largest, _no_failures()
        if number < len(self.split):
            try:
                return self._load(int(number), canvas, failures)
            except ClipReadError as error:
                failures[0] = number, FAILURES.index(error.kind)
        clip = np.zeros((self.settings.views.temporal, self.frames, *canvas, 3), np.uint8)
        task = self.split.task
        labels = task.encode(task.no_classes)
        return _example(clip, canvas, labels, 0, number, failures)

    def _load(self, number: int, canvas: tuple[int, int], failures: np.ndarray) -> dict[str, Any]:
        video = _retry_transient(lambda: self.split.reader.open(number))
        if video.height > canvas[0] or video.width > canvas[1]:
            raise ClipReadError("too large", f"is larger than the {canvas} of all others")
        sampling, views = self.settings.sampling, self.settings.views.temporal
        chosen = SAMPLINGS[sampling.kind].views(
            sampling, video.times, video.seconds, self.frames, views
        )
        frames = _retry_transient(lambda: video.read(chosen.reshape(-1), None))
        clip = on_canvas(frames, canvas)
        clip = clip.reshape(views, self.frames, *clip.shape[1:])
        labels = self.split.task.encode(video.labels)
        return _example(clip, (video.height, video.width), labels, 1, number, failures)


def _retry_transient(read: Callable[[], Result]) -> Result:
    """Retries once on errors that may be transient."""
    try:
        return read()
    except ClipReadError as error:
        if error.kind not in TRANSIENT_ERRORS:
            raise
    return read()


def choose_window(video: VideoReader, canvas: tuple[int, int], rng: np.random.Generator) -> Window:
    """Returns the window of a frame that a canvas shows: a random one of larger frames."""
    shape = video.height, video.width
    size = min(shape[0], canvas[0]), min(shape[1], canvas[1])
    top, left = (int(rng.integers(a - b + 1)) for a, b in zip(shape, size, strict=True))
    return top, left, size[0], size[1]


def on_canvas(frames: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Returns frames [F, H, W, C] in the upper left of a black canvas, in RGB."""
    if frames.shape[1:] == (*canvas, 3):
        return frames
    out = np.zeros((len(frames), *canvas, 3), np.uint8)
    window = out[:, : frames.shape[1], : frames.shape[2]]
    if frames.shape[-1] == 1:  # one by one, which is four times as fast as broadcasting
        for channel in range(3):
            window[..., channel] = frames[..., 0]
    else:
        window[...] = frames
    return out


def _no_failures() -> np.ndarray:
    """Returns [attempts, 2] for clip numbers and places in FAILURES; -1 for no failure."""
    return np.full((ATTEMPTS, 2), -1, np.int64)


def _example(clip, extent, labels, valid, index, failures: np.ndarray) -> dict[str, Any]:
    return {
        "clips": clip,
        "extents": np.array(extent, np.int32),
        "labels": labels,
        "valid": np.float32(valid),
        "indices": np.uint32(index % (1 << 32)),
        "failures": failures,
    }


class Batches(Iterator[Batch]):
    """Batches of a grain dataset, and a count of the damaged clips in them.

    damaged: clip number -> one of FAILURES.
    """

    def __init__(self, batches: Iterator[Batch], split: Split, settings: DataSettings) -> None:
        self._batches, self._split, self._limit = batches, split, settings.max_bad_fraction
        self.damaged: dict[int, str] = {}

    def __next__(self) -> Batch:
        batch, failures = self.load()
        self.count(failures)
        return batch

    def load(self) -> tuple[Batch, np.ndarray]:
        """Returns the next batch, and the clips that could not be read for it, for `count`."""
        batch = next(self._batches)
        return batch, batch.pop("failures")

    def count(self, failures: np.ndarray) -> None:
        """Counts clips as damaged: pairs of a clip's number and a place in FAILURES.

        Raises ValueError if there are more of them than the settings allow.
        """
        for number, kind in failures.reshape(-1, 2).tolist():
            if number >= 0 and number not in self.damaged:
                self._count(number, FAILURES[kind])

    def share_damaged(self) -> None:
        """Counts what the other processes of the run found damaged too; all of them call it."""
        own = [[number, FAILURES.index(kind)] for number, kind in self.damaged.items()]
        for found in gather(own):
            self.count(np.array(found, np.int64))

    def close(self) -> None:
        """Ends grain's threads and processes."""
        close = getattr(self._batches, "close", None)
        if close:
            close()

    def _count(self, number: int, kind: str) -> None:
        self.damaged[number] = kind
        name, count, clips = self._split.reader.name(number), len(self.damaged), len(self._split)
        log.warning("%s: %s; %d of %d clips so far", name, kind, count, clips)
        if count > self._limit * clips:
            raise ValueError(
                f"{count} of the {clips} clips of split {self._split.split!r} can't be read, more "
                f"than data.max_bad_fraction={self._limit:g}; the last is {name}: {kind}. "
                "See python -m vivit.data check"
            )


def train_batches(
    settings: DataSettings,
    split: Split,
    *,
    frames: int,
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Batches:
    """Yields endless shuffled batches from step `start` on, each epoch in a new order.

    Each process gets its equal part of a batch. The batches are the same for any number of threads
    and workers.
    """
    keep_freed_memory()
    size = settings.batch_size
    local = _local_size(size, processes)
    if len(split) < size:
        raise ValueError(f"batch_size={size} is larger than the {len(split)} clips of the split")
    loader = TrainLoader(settings, split, frames, seed)
    epochs = ENDLESS // len(split)
    dataset = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat(epochs)
    if settings.repeats > 1:
        dataset = grain.MapDataset.source(_Repeated(dataset, size, settings.repeats))
    batches = dataset.map_with_index(loader).batch(local)[start * processes + process :: processes]
    iterable = batches.to_iter_dataset(_read_options(settings.threads))
    if settings.workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read its absl flags; we parse none
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=settings.workers, per_worker_buffer_size=2
        )
        iterable = iterable.mp_prefetch(options, worker_init_fn=_start_worker)
    return Batches(iter(iterable), split, settings)


@dataclass(frozen=True)
class _Repeated:
    """Numbers of which each is `repeats` times in a batch of `size`: all, then all again, so that
    neighbours, which mixup pairs, are different clips."""

    numbers: Any
    size: int
    repeats: int

    def __len__(self) -> int:
        return len(self.numbers)  # at least ENDLESS clips less one epoch: no run gets so far

    def __getitem__(self, index: int) -> int:
        batch, place = divmod(index, self.size)
        distinct = self.size // self.repeats
        return self.numbers[batch * distinct + place % distinct]


def eval_batches(
    settings: DataSettings, split: Split, *, frames: int, process: int = 0, processes: int = 1
) -> Batches:
    """Yields the split once, in order, with all temporal views of settings.views.

    The last batch is filled up with examples that are not valid.
    """
    size = settings.batch_size
    local, batches = _local_size(size, processes), -(-len(split) // size)
    loader = ViewLoader(settings, split, frames)
    dataset = grain.MapDataset.range(batches * size).map(loader).batch(local)
    part = dataset[process::processes].to_iter_dataset(_read_options(settings.threads))
    return Batches(iter(part), split, settings)


def _read_options(threads: int) -> grain.ReadOptions:
    # A thread makes a whole batch, so a few batches wait at most.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))


def _start_worker(number: int, count: int) -> None:
    keep_freed_memory()


def _local_size(batch_size: int, processes: int) -> int:
    if batch_size % processes:
        raise ValueError(f"{batch_size=} is not a multiple of the {processes} processes")
    return batch_size // processes
