"""python -m vivit.train --config=FILE --workdir=RUN: trains a model, or resumes its training.

A run that is started again in its folder resumes from its newest checkpoint and ends with the same
parameters, to the bit, as one that was never interrupted.
"""

import logging
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vivit
from vivit.checkpoint import Checkpoints
from vivit.cli import make_parser, run_command, show_log
from vivit.config import (
    IMPORTS,
    as_config,
    as_json,
    claim_workdir,
    copy_modules,
    import_modules,
    parse,
    read_workdir,
)
from vivit.cost import abstract_params, count_training
from vivit.data.augment import make_augmentation
from vivit.data.pipeline import eval_batches, train_batches
from vivit.data.prefetch import Prefetched
from vivit.data.sources import open_split
from vivit.data.split import Split
from vivit.data.views import make_views
from vivit.evaluate import validate
from vivit.io import locked, write_atomically
from vivit.metrics_log import MetricsLog, NoLog, Pace, introduce, write_cost
from vivit.objective import means
from vivit.optim import make_optimizer
from vivit.parallel import Parallel, make_parallel
from vivit.preemption import stop_signals
from vivit.pretrained.start import load_for_run, state_of_run, take_model
from vivit.processes import (
    add_process_arguments,
    agree,
    connected,
    is_first,
    on_first,
    require_shared,
)
from vivit.profiling import Profile, parse_profile
from vivit.quicktest import quicktest, with_films, write_films
from vivit.run import check_batch_size, check_split, record_data
from vivit.schema import show
from vivit.settings import Config
from vivit.step import (
    TrainState,
    make_eval_step,
    make_init,
    make_train_step,
    resume_optimizer,
    start_from,
)
from vivit.tasks import make_objective

logger = logging.getLogger(__name__)


def train(
    config: Any, workdir: str | Path, *, profile: tuple[int, int] | None = None
) -> TrainState:
    """Trains the model of a config in a folder of its own, and returns the last state.

    config: a vivit.settings.Config, or a ConfigDict with its keys. profile: the first and the last
        training step of a trace, in RUN/profile.

    The folder gets config.json, cost.json, metrics.jsonl, TensorBoard events and checkpoints.
    Raises ValueError for a user's mistake, most before anything is written.
    """
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(locked(workdir)))
        config = as_config(config)
        agree({"config": as_json(config)})

        # Devices, model and data.
        import_modules(config.imports, copies=Path(workdir) / IMPORTS)
        config = take_model(config, workdir)
        parallel = make_parallel(config.parallel)
        with parallel.ambient():
            model = vivit.build(config.model)
        frames, height, width = config.model.clip
        task = make_objective(config.task.name, config.heads)
        network = task.network(model)
        train_split = open_split(config.data, config.data.splits[0], task.for_training())
        train_split = train_split.some(config.data.train_clips)
        held_out = open_split(config.data, config.data.splits[1], task)
        for split in (train_split, held_out):
            check_split(split, config.model, config.data)
        size = config.data.batch_size
        config = replace(config, train=config.train.with_steps(size, clips=len(train_split)))
        augment = make_augmentation(
            config.augment, train_split, (height, width), canvas=config.data.canvas
        )
        one_view = replace(config.data, views=config.data.views.centre())  # for validation
        predict_views = make_views(one_view.views, held_out, (height, width))

        # Optimiser and the two steps.
        check_batch_size(
            size,
            parallel.devices,
            accumulate=config.train.accumulate,
            clips=len(train_split),
        )
        _check_tokens_split(model, parallel)
        config, loaded = load_for_run(config, model, workdir)
        optimizer, learning_rate = make_optimizer(
            config.optim, steps=config.train.steps, batch_size=size
        )
        make_state = make_init(network, optimizer, average_decay=config.train.average_decay)
        train_step = make_train_step(network, optimizer, task, config.train, augment=augment)
        eval_step = parallel.evaluate(make_eval_step(network, task, predict_views=predict_views))

        counts, splits = count_training(network, task), (train_split, held_out)
        logger.info("%s", introduce(config, network, counts, splits, parallel, Path(workdir)))

        # The state: random, from other weights, or that of an interrupted run.
        state = parallel.init(make_state, config.seed)
        if loaded is not None:
            state = start_from(state, task.start(state.params, loaded.params, loaded.around))
            if config.init.optimizer:
                state = resume_optimizer(state, state_of_run(config.init, state))
        folder = Path(workdir)
        report = "" if loaded is None else str(loaded.report)
        on_first(partial(_claim, folder, config, train_split, init_report=report))
        require_shared(folder / "config.json")
        has_weights = loaded is not None or not config.init.path
        del loaded  # frees its memory
        stop = stack.enter_context(stop_signals())  # first, so that a last save is not killed
        checkpoints = stack.enter_context(
            Checkpoints(folder / "checkpoints", keep=config.train.keep_checkpoints, best=task.best)
        )
        newest = checkpoints.latest()
        if newest is not None:
            state, saved = checkpoints.restore(newest, state)
            if saved["digest"] != train_split.digest:
                raise ValueError(
                    f"the data in {config.data.root!r} is not what {workdir} was started with"
                )
        assert has_weights or newest is not None, "neither a checkpoint nor weights to start from"

        # The loop. A batch is a function of (seed, step), so the step is the data's position.
        start, steps = int(state.step), config.train.steps
        of_process = {"process": parallel.part, "processes": parallel.parts}
        log = NoLog()
        if is_first():
            log = MetricsLog(folder, steps=steps, resumed_at=start, task=task)
        stack.enter_context(closing(log))
        if newest is not None:
            logger.info("resuming from training step %d", start)
        if start == steps:
            return state
        if profile is not None and not start < profile[0] <= profile[1] <= steps:
            first, last = profile
            raise ValueError(f"--profile={first}:{last} is not in the steps {start + 1} .. {steps}")
        loaded_batches = train_batches(
            config.data, train_split, frames=frames, seed=config.seed, start=start, **of_process
        )
        batches = Prefetched(loaded_batches, parallel.put, depth=config.data.prefetch)
        stack.enter_context(closing(batches))
        batch = batches.get(finish=lambda: None)
        logger.info("compiling the training step ...")
        compiling = time.perf_counter()
        run_step = parallel.train(train_step, state).lower(state, batch).compile()
        logger.info("compiled in %.1f s", time.perf_counter() - compiling)
        if is_first():
            write_cost(folder, counts, run_step, batch_size=size)
        tracer = Profile(folder, profile)
        stack.enter_context(closing(tracer))

        def validation(params: Any) -> dict[str, float]:
            batches = eval_batches(one_view, held_out, frames=frames, **of_process)
            with closing(batches):
                return validate(eval_step, params, batches, parallel, held_out)

        pending, pace = [], Pace(config, counts, waited=batches.waited)

        for step in range(start + 1, steps + 1):
            tracer.before(step)
            state, sums = run_step(state, batch)
            pending.append(sums)
            jax.block_until_ready(pending[-2:-1])  # one step ahead: few batches are on the devices
            tracer.after(step, sums)
            last = stop(step) or step == steps
            if not last:
                batch = batches.get(finish=partial(jax.block_until_ready, sums))

            if step % config.train.log_every == 0 or last:
                values = means(jax.device_get(pending))
                loaded_batches.share_damaged()
                values["damaged"] = len(loaded_batches.damaged)
                values |= pace.restart(steps=len(pending), waited=batches.waited)
                values["lr"] = float(learning_rate(step - 1))
                log.write(step, "train", values)
                _require_finite(values, step)
                pending = []

            validated = None
            if step % config.train.eval_every == 0 or step == steps:
                jax.block_until_ready(state)
                with pace.paused():
                    validated = validation(state.eval_params)
                    if state.averaged is not None:
                        raw = validation(state.params)
                        validated |= {f"raw_{name}": value for name, value in raw.items()}
                log.write(step, "validation", validated)

            if validated or step % config.train.checkpoint_every == 0 or last:
                if pending:
                    _require_finite(means(jax.device_get(pending)), step)
                data = {"step": step, "seed": config.seed, "digest": train_split.digest}
                checkpoints.save(step, state, data=data, config=as_json(config), metrics=validated)
            if last:
                break
    return state


def _claim(folder: Path, config: Config, split: Split, *, init_report: str) -> None:
    """Makes a folder that of a run, with what it records before it trains."""
    claim_workdir(folder, config)
    record_data(folder, config.data, split)
    copy_modules(config.imports, folder / IMPORTS)
    if init_report:
        write_atomically(folder / "init.txt", f"{init_report}\n")


def _check_tokens_split(model: vivit.ViViT, parallel: Parallel) -> None:
    """Raises ValueError if a kernel cannot split the model's sets of tokens over the devices."""
    if model.config.kernel.over_devices:
        clips = jax.ShapeDtypeStruct((parallel.devices, *model.config.clip, 3), jnp.uint8)
        params = abstract_params(model)
        jax.eval_shape(parallel.within(lambda p, x: model.apply({"params": p}, x)), params, clips)


def _require_finite(values: dict[str, float], step: int) -> None:
    """Raises ValueError for a loss or gradient that is not finite, so that no checkpoint of NaNs is
    written: they come with the gradient of the step before it."""
    for name in ("loss", "grad_norm"):
        if not np.isfinite(values[name]):
            raise ValueError(
                f"the {name} is {values[name]} at step {step}; the checkpoints before it are kept. "
                "In another --workdir try a lower optim.lr, more warmup_steps or less clip_norm"
            )


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.train",
        __doc__,
        "python -m vivit.train --config=configs/moving_digits.py --workdir=runs/moving_digits",
        "python -m vivit.train --config=configs/moving_digits.py --show --config.optim.lr=1e-3",
        "python -m vivit.train --config=configs/moving_digits.py --workdir=runs/quick --quicktest",
    )
    parser.add_argument("--workdir", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--profile", metavar="FIRST:LAST", help="trace these training steps into RUN/profile"
    )
    parser.add_argument(
        "--quicktest",
        action="store_true",
        help="two steps of a small model with the config's parts, on films made in RUN/.quicktest",
    )
    add_process_arguments(parser)
    parser.add_argument(
        "--show", action="store_true", help="print the config with what its keys mean, and stop"
    )
    show_log()
    arguments, config = parse(parser, argv)
    if config is None:
        parser.error("--config=FILE is needed, such as configs/moving_digits.py")
    if arguments.show:
        print(show(config))
        return
    if arguments.workdir is None:
        parser.error("--workdir=RUN is needed: a folder for the run")
    profile = arguments.profile and parse_profile(arguments.profile)
    with connected(arguments):
        if arguments.quicktest:
            config = quicktest(config)
            films = Path(arguments.workdir) / ".quicktest"
            on_first(partial(write_films, config, films))
            config = with_films(config, films)
        step = int(train(config, arguments.workdir, profile=profile).step)
        if step < read_workdir(arguments.workdir).train.steps:
            sys.exit(f"stopped at step {step}, which is saved; the same command resumes from it")
        then = "evaluate" if config.heads else "probe"
        print(f"trained to step {step}; python -m vivit.{then} --workdir={arguments.workdir}")


if __name__ == "__main__":
    run_command(main)
