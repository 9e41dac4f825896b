"""python -m vivit.train --config=FILE --workdir=RUN: trains a model, or goes on with it.

A run that is started again in its folder goes on from its newest checkpoint and ends with the
same parameters, to the bit, as one that was never interrupted.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

import vivit
from vivit.attention import KERNELS
from vivit.checkpoint import Checkpoints
from vivit.cli import run_command, show_log
from vivit.config import claim_workdir, import_modules, parse
from vivit.cost import abstract_params, count_multiply_adds, count_parameters, count_tokens
from vivit.data.augment import Augment
from vivit.data.pipeline import Data
from vivit.data.views import Views
from vivit.evaluate import check_batch_size, check_split, local_batches, score
from vivit.io import locked, write_atomically
from vivit.objective import means
from vivit.optim import make_optimizer
from vivit.parallel import Parallel, make_parallel
from vivit.pretrained.start import load_for_run
from vivit.step import TrainState, make_eval_step, make_init, make_train_step, start_from


def train(config: Any, workdir: str | Path) -> TrainState:
    """Trains the model of a config in a folder of its own, and returns the last state.

    Leaves there config.json, cost.json, metrics.jsonl, TensorBoard events and checkpoints.
    """
    with locked(workdir):
        # What a user can get wrong is found out before anything is written.
        import_modules(config)
        model = vivit.build(config.model)
        data = Data(**config.data)
        splits = [data.open(name) for name in data.splits]
        for split in splits:
            check_split(split, config.model, data)
        size = tuple(config.model.clip[1:])
        augment = Augment(**config.augment).build(splits[0], size, canvas=data.canvas)
        views = Views(**data.views).centre().build(splits[1], size)
        config, loaded = load_for_run(config, model, workdir)
        parallel = make_parallel(**config.parallel)
        check_batch_size(config.data.batch_size, parallel.devices, len(splits[0]))
        for name in ("steps", "log_every", "eval_every", "checkpoint_every"):
            if config.train[name] < 1:
                raise ValueError(f"train.{name}={config.train[name]} must be at least 1")
        optimizer, schedule = make_optimizer(steps=config.train.steps, **config.optim)
        average_decay = config.train.average_decay
        init = make_init(model, optimizer, average_decay=average_decay)
        step_fn = make_train_step(
            model,
            optimizer,
            label_smoothing=config.train.label_smoothing,
            average_decay=average_decay,
            augment=augment,
        )
        eval_fn = make_eval_step(model, classes=model.classes, through=views)
        _check_tokens_split(model, parallel)
        state = parallel.init(init, config.seed)
        folder = claim_workdir(workdir, config)
        if loaded is not None:
            state = start_from(state, loaded.params)
            write_atomically(folder / "init.txt", f"{loaded.report}\n")
        started, loaded = loaded is not None or not config.init.path, None  # frees the weights

        with (
            stop_signals() as stop,  # first, so that the last save ends before signals kill again
            Checkpoints(folder / "checkpoints", keep=config.train.keep_checkpoints) as checkpoints,
            closing(Log(folder, steps=config.train.steps)) as log,
        ):
            if (newest := checkpoints.latest()) is not None:
                state, position = checkpoints.restore(newest, state)
                if position["digest"] != splits[0].digest:
                    raise ValueError(
                        f"the data in {config.data.root!r} is not what {workdir} began with"
                    )
            assert started or newest is not None, "neither weights nor a checkpoint to start from"
            log.begin(after=int(state.step))
            return _loop(
                config, model, data, splits, parallel, (step_fn, eval_fn), schedule, state,
                checkpoints, log, stop,
            )  # fmt: skip


def _loop(config, model, data, splits, parallel, steps_of, schedule, state, checkpoints, log, stop):
    start, steps = int(state.step), config.train.steps
    frames = config.model.clip[0]
    batches = data.train(
        splits[0],
        frames=frames,
        seed=config.seed,
        start=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    train_step = parallel.train(steps_of[0], state)
    eval_step = parallel.evaluate(steps_of[1])
    batch = parallel.put(next(batches)) if start < steps else None
    if batch is not None:
        train_step = train_step.lower(state, batch).compile()
        log.cost(model, train_step, config.data.batch_size)
    pending, since = [], time.perf_counter()

    for step in range(start + 1, steps + 1):
        state, sums = train_step(state, batch)
        pending.append(sums)
        last = step == steps or stop.requested
        if not last:
            batch = parallel.put(next(batches))  # while the devices work

        if step % config.train.log_every == 0 or last:
            values = means(jax.device_get(pending))
            clips = len(pending) * config.data.batch_size
            values["damaged"] = len(batches.damaged)
            values["clips_per_second"] = clips / (time.perf_counter() - since)
            values["lr"] = float(schedule(step - 1))
            log.write(step, "train", values)
            _require_finite(values, step)
            pending, since = [], time.perf_counter()

        validated = None
        if step % config.train.eval_every == 0 or step == steps:
            jax.block_until_ready(state)
            begun = time.perf_counter()
            held_out = local_batches(splits[1], data, frames=frames)
            scores = score(eval_step, state.eval_params, held_out, parallel)
            held_out.close()
            validated = {**scores.metrics, "damaged": scores.damaged(splits[1])}
            log.write(step, "validation", validated)
            since += time.perf_counter() - begun

        if validated or step % config.train.checkpoint_every == 0 or last:
            if pending:
                _require_finite(means(jax.device_get(pending)), step)
            position = {"step": step, "seed": config.seed, "digest": splits[0].digest}
            checkpoints.save(
                step, state, data=position, config=json.loads(config.to_json()), metrics=validated
            )
        if last:
            break
    return state


def _check_tokens_split(model: vivit.ViViT, parallel: Parallel) -> None:
    """ValueError where a kernel can't split the model's sets of tokens over the devices."""
    if KERNELS[model.kernel].over_devices:
        clips = jax.ShapeDtypeStruct((parallel.devices, *model.clip, 3), jnp.uint8)
        params = abstract_params(model)
        jax.eval_shape(parallel.within(lambda p, x: model.apply({"params": p}, x)), params, clips)


def _require_finite(values: dict[str, float], step: int) -> None:
    """A checkpoint of NaNs is never written: they come with the gradient of the step before it."""
    for name in ("loss", "grad_norm"):
        if not np.isfinite(values[name]):
            raise ValueError(
                f"the {name} is {values[name]} at step {step}; the checkpoints before it are kept. "
                "In another --workdir try a lower optim.lr, more warmup_steps or less clip_norm"
            )


class Log:
    """metrics.jsonl, TensorBoard, and a progress bar, or plain lines where there is no terminal."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        self.folder = folder
        self.active = jax.process_index() == 0
        self.plain = not sys.stderr.isatty()
        self.validation = ""
        self.bar = tqdm(total=steps, unit="step", disable=self.plain or not self.active)

    def begin(self, *, after: int) -> None:
        """Opens the files, without the lines that an interrupted run wrote after step `after`."""
        if not self.active:
            return
        self.bar.update(after)
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= after]
        write_atomically(path, "".join(kept))
        self.file = open(path, "a")
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=after + 1)

    def cost(self, model: vivit.ViViT, step: Any, batch_size: int) -> None:
        memory = step.memory_analysis()
        cost = {
            "parameters": count_parameters(model),
            "multiply_adds": count_multiply_adds(model),
            "tokens": count_tokens(model),
            "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
            "batch_size": batch_size,
            "devices": jax.device_count(),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        }
        if self.active:
            write_atomically(self.folder / "cost.json", json.dumps(cost, indent=1) + "\n")

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        if not self.active:
            return
        self.file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)
        shown = f"loss {values['loss']:.3f}, accuracy {values['top1']:.1%}"
        if split == "validation":
            self.validation = f", validation {values['top1']:.1%}"
            if self.plain:
                print(f"step {step}: validation {shown}", file=sys.stderr, flush=True)
            return
        rate = values["clips_per_second"]
        self.bar.set_postfix_str(f"{shown}, {rate:.0f} clips/s{self.validation}", refresh=False)
        self.bar.update(step - self.bar.n)
        if self.plain:
            line = f"step {step}/{self.bar.total}: {shown}, {rate:.0f} clips/s"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()
        if hasattr(self, "file"):
            self.board.close()
            self.file.close()


class _Stop:
    requested = False


@contextmanager
def stop_signals() -> Iterator[_Stop]:
    """Lets the first SIGINT or SIGTERM end the loop after a step and a checkpoint."""
    stop = _Stop()

    def request(number, _):
        stop.requested = True
        for name, handler in before.items():  # a second signal does what it always does
            signal.signal(name, handler)

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in before:
        signal.signal(name, request)
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vivit.train", description=__doc__)
    parser.add_argument("--workdir", required=True, help="the run's folder")
    show_log()
    arguments, config = parse(parser, argv)
    if config is None:
        parser.error("--config=FILE is needed: configs/moving_digits.py, for one")
    step = int(train(config, arguments.workdir).step)
    if step < config.train.steps:
        sys.exit(f"stopped at step {step}, which is saved; the same command goes on from there")


if __name__ == "__main__":
    run_command(main)
