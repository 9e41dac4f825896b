"""What a training run logs: metrics.jsonl, TensorBoard, a progress bar, and cost.json."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from vivit.chips import chip_of
from vivit.data.split import Split
from vivit.io import write_atomically, write_json
from vivit.model.network import Network
from vivit.optim import peak_rate
from vivit.parallel import Parallel
from vivit.settings import Config
from vivit.tasks import Objective

WAITING = 0.02  # share of the time from which a line of progress shows it


class MetricsLog:
    """The metrics of a run of `steps` training steps, in its folder.

    A terminal shows a progress bar; elsewhere standard error gets one line per log step. The lines
    that an interrupted run wrote after step `resumed_at` are removed, as the run repeats them.
    """

    def __init__(self, folder: Path, *, steps: int, resumed_at: int, task: Objective) -> None:
        self._key, self._title = task.best, task.columns()[task.best]
        self._plain = not sys.stderr.isatty()
        self._first: tuple[int, float] | None = None  # a training step, and when it was logged
        self._validation = ""
        self._bar = tqdm(total=steps, initial=resumed_at, unit="step", disable=self._plain)
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= resumed_at]
        write_atomically(path, "".join(kept))
        self._file = open(path, "a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Logs the metrics of a split ("train", "validation") at a training step."""
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        shown = f"loss {values['loss']:.3f}"
        if self._key in values:  # means of a step's clips have no mAP
            shown += f", {self._title} {values[self._key]:.1%}"
        if split == "validation":
            self._validation = f", validation {values[self._key]:.1%}"
            self._say(f"step {step}: validation {shown}")
            return
        shown += f", {values['clips_per_second']:.0f} clips/s"
        if "mfu" in values:
            shown += f", MFU {values['mfu']:.1%}"
        if values["waiting"] > WAITING:
            shown += f", {values['waiting']:.0%} waiting for data"
        self._bar.set_postfix_str(f"{shown}{self._validation}", refresh=False)
        self._bar.update(step - self._bar.n)
        self._say(f"step {step}/{self._bar.total}: {shown}{self._left(step)}")

    def _left(self, step: int) -> str:
        """Returns the time left, by the pace since the first log step; the bar has its own."""
        if self._first is None:
            self._first = step, time.perf_counter()
            return ""
        first, since = self._first
        seconds = (time.perf_counter() - since) / (step - first) * (self._bar.total - step)
        return f", {as_clock(seconds)} left"

    def _say(self, line: str) -> None:
        if self._plain:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()


class Pace:
    """How fast a run trains, between two log steps.

    Model FLOPs are those of the products of a training step, whatever a kernel or remat computes
    beyond them (2204.02311, appendix B). MFU is
    their share of the devices' peak, on chips that `vivit.chips` has.

    waited: as in `restart`, at the first step.
    """

    def __init__(self, config: Config, counts: Mapping[str, int], *, waited: float) -> None:
        self._clips = config.data.batch_size
        self._flops = 2 * counts["training_multiply_adds"]
        chip = chip_of(jax.devices()[0].device_kind)
        self._peak = chip and chip.flops[config.model.dtype] * jax.device_count()
        self._since, self._waited = time.perf_counter(), waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is done within, such as a validation."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def restart(self, *, steps: int, waited: float) -> dict[str, float]:
        """Returns the pace of the `steps` since the last call.

        waited: seconds since the start of the run that devices had to wait for data.
        """
        now = time.perf_counter()
        seconds = now - self._since
        clips = steps * self._clips / seconds
        values = {
            "clips_per_second": clips,
            "waiting": (waited - self._waited) / seconds,
            "model_flops_per_second": clips * self._flops,
        }
        if self._peak:
            values["mfu"] = clips * self._flops / self._peak
        self._since, self._waited = now, waited
        return values


class NoLog:
    """What the other processes of a run have for a log."""

    def write(self, step: int, split: str, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def as_clock(seconds: float) -> str:
    """Returns "1:02:03", or "2:03" below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def introduce(
    config: Config,
    model: Network,
    counts: Mapping[str, int],
    splits: Sequence[Split],
    parallel: Parallel,
    folder: Path,
) -> str:
    """Returns what a run is about to do, one line per part. counts: of `vivit.cost.count`."""
    train, held_out = splits
    settings, steps, size = config.model, config.train.steps, config.data.batch_size
    name = " ".join(filter(None, (settings.family, settings.size)))
    scaled = f"{peak_rate(config.optim, size):.3g}"
    if config.optim.lr_batch_size:
        scaled += f" = {config.optim.lr:g} * {size} / {config.optim.lr_batch_size} (batch size)"
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    lines = {
        "model": f"{name}, {counts['parameters']:,} parameters, {counts['tokens']:,} tokens "
        f"and {counts['multiply_adds'] / 1e6:,.1f} M multiply-adds per clip of "
        f"{'x'.join(map(str, settings.clip))}",
        "data": f"{' '.join(filter(None, (train.name, train.version)))} in {config.data.root}: "
        f"{len(train):,} clips of "
        f"{train.split}, {len(held_out):,} of {held_out.split}; "
        + (
            ", ".join(f"label {head.label}, {head.classes} classes" for head in train.task.heads)
            or f"no labels, {config.task.name}"
        ),
        "devices": f"{count} x {kind}, {parallel}; {settings.dtype}, "
        f"{model.config.kernel.name} kernel",
        "training": f"{steps:,} steps of {size} clips, {steps * size / len(train):.1f} epochs",
        "optimiser": f"{config.optim.name}, {config.optim.schedule} from lr {scaled}",
        "folder": str(folder),
    }
    return "\n".join(f"{key:10}{text}" for key, text in lines.items())


def write_cost(
    folder: Path, counts: Mapping[str, int], compiled_step: Any, *, batch_size: int
) -> None:
    """Writes cost.json: counts of the model, and the memory of its compiled training step."""
    memory = compiled_step.memory_analysis()
    cost = {
        **counts,
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        "batch_size": batch_size,
        "devices": jax.device_count(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    write_json(folder / "cost.json", cost)
