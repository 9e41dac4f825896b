"""python -m vivit.compile --config=FILE --target=v5e:4x4: compiles a config for devices elsewhere.

The training and the evaluation step are compiled as training would, with its mesh and sharding
rules, for TPUs or GPUs that this machine does not have. The table says whether they fit, what they
send between chips, and bounds of the time of a step: no step can be faster.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import vivit
from vivit.chips import CHIPS
from vivit.cli import make_parser, run_command, show_log
from vivit.collectives import sent_by_kind
from vivit.config import import_modules, parse
from vivit.cost import bytes_per_device, count_training
from vivit.data.augment import make_augmentation
from vivit.data.classes import Classes
from vivit.data.split import Split
from vivit.data.video import VideoReader
from vivit.data.views import make_views
from vivit.describe import batch_shapes, parse_mesh, units
from vivit.model.network import Network
from vivit.optim import make_optimizer
from vivit.parallel import Parallel, make_parallel
from vivit.run import check_batch_size
from vivit.settings import Config
from vivit.step import make_eval_step, make_init, make_train_step
from vivit.targets import Target, make_target, only_compile, quiet
from vivit.tasks import Objective, make_objective

# Without a GPU to measure on, XLA chooses tiles of Triton's products that it cannot compile for
# some lengths; with one, it would choose cuBLAS for them.
COMPILER_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


class NoClips:
    """The clips of a split of which only sizes and classes are known."""

    def __len__(self) -> int:
        return 0

    def open(self, i: int) -> VideoReader:
        raise IndexError(i)

    def label(self, i: int, label: str) -> int:
        raise IndexError(i)

    def name(self, i: int) -> str:
        raise IndexError(i)

    def id(self, i: int) -> str:
        raise IndexError(i)


class StepToCompile(NamedTuple):
    """A step, and the shapes and shardings of its arguments by what they are."""

    lower: Callable[[], Any]
    arguments: dict[str, Any]
    options: dict[str, Any] | None

    def compile(self) -> Any:
        """Returns the step compiled; it raises JaxRuntimeError where it cannot be."""
        with quiet():
            return self.lower().compile(self.options)


@dataclass(frozen=True)
class Steps:
    """The steps of a config for a target, as training would make them."""

    target: Target
    batch_size: int
    network: Network
    task: Objective
    parallel: Parallel
    train: StepToCompile
    evaluate: StepToCompile

    @cached_property
    def trained(self) -> dict[str, Any]:
        """What compiling the training step finds out; compiled once."""
        return _measure(self.train, self.target.chip.memory)


def make_steps(
    config: Config, target: Target, *, batch_size: int, frame: tuple[int, int] | None = None
) -> Steps:
    """Returns the steps of a config for a target; nothing is compiled yet.

    frame: height and width of the frames that are read, if they are not the model's.
    Raises ValueError for what training refuses, in its words.
    """
    import_modules(config.imports)
    parallel = make_parallel(config.parallel, target.devices)
    check_batch_size(batch_size, parallel.devices, accumulate=config.train.accumulate)
    with parallel.ambient():
        model = vivit.build(config.model)
    frames, height, width = model.config.clip
    size = height, width
    frame = frame or config.data.canvas or size
    task = make_objective(config.task.name, config.heads)
    network = task.network(model)
    classes = {head.label: Classes(tuple(map(str, range(head.classes)))) for head in task.heads}
    split = Split(NoClips(), classes, frame, min(frame), "", "", "", "", task=task)
    augment = make_augmentation(config.augment, split, size, canvas=config.data.canvas)
    predict_views = make_views(config.data.views, split, size)
    optimizer, _ = make_optimizer(
        config.optim, steps=config.train.with_steps(batch_size).steps, batch_size=batch_size
    )
    make_state = make_init(network, optimizer, average_decay=config.train.average_decay)
    state = parallel.abstract(make_state, config.seed)
    canvas = config.data.canvas or frame
    step = make_train_step(network, optimizer, task, config.train, augment=augment)
    train = parallel.train(step, state)
    batch = parallel.abstract_batch(_read_shapes(task, batch_size, (frames, *canvas)))
    evaluate = parallel.evaluate(make_eval_step(network, task, predict_views=predict_views))
    views = (config.data.views.temporal, frames, *frame)
    of_views = parallel.abstract_batch(_read_shapes(task, batch_size, views))
    options = COMPILER_OPTIONS.get(parallel.mesh.devices.flat[0].platform)
    parameters = {"parameters": state.params, "batch": of_views}
    whole = {
        "parameters": state.params,
        "optimiser": (state.opt_state, state.averaged),
        "batch": batch,
    }
    return Steps(
        target,
        batch_size,
        network,
        task,
        parallel,
        StepToCompile(lambda: train.lower(state, batch), whole, options),
        StepToCompile(lambda: evaluate.lower(state.eval_params, of_views), parameters, options),
    )


def _read_shapes(
    task: Objective, size: int, clip: tuple[int, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch as it is read."""
    return {
        **batch_shapes(task, size, clip),
        "extents": jax.ShapeDtypeStruct((size, 2), jnp.int32),
        "indices": jax.ShapeDtypeStruct((size,), jnp.uint32),
    }


def compile_for(steps: Steps) -> dict[str, Any]:
    """Returns what compiling the steps of a config for a target finds out.

    "train" and "evaluate" have bytes per chip, or the reason in "error" where a step does not
    compile; "bounds" are seconds, and the largest share of the peak (MFU).
    """
    counts, target = count_training(steps.network, steps.task), steps.target
    flops = 2 * counts["training_multiply_adds"] * steps.batch_size
    peak = target.chip.flops[steps.network.config.dtype] * len(target.devices)
    return {
        "target": target.name,
        "devices": len(target.devices),
        "chip_bytes": target.chip.memory,
        "mesh": str(steps.parallel),
        "batch": steps.batch_size,
        **counts,
        "flops_per_step": flops,
        "train": steps.trained,
        "evaluate": _measure(steps.evaluate, target.chip.memory),
        "bounds": _bounds(steps.trained, compute=flops / peak, target=target),
    }


def _measure(step: StepToCompile, memory: int) -> dict[str, Any]:
    """Returns bytes per chip and the collectives of a step, or why it does not compile."""
    found: dict[str, Any] = {
        f"{name}_bytes": bytes_per_device(tree) for name, tree in step.arguments.items()
    }
    try:
        compiled = step.compile()
    except jax.errors.JaxRuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if "Used " in line), lines[0])
        return {**found, "fits": False, "error": reason}
    analysis: Any = compiled.memory_analysis()
    arguments_bytes = analysis.argument_size_in_bytes
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    peak = arguments_bytes + new + analysis.temp_size_in_bytes + code
    return {
        **found,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "peak_bytes": peak,
        "moved_bytes": arguments_bytes + analysis.output_size_in_bytes,
        "fits": peak <= memory,
        "collectives": sent_by_kind(compiled.as_text()),
    }


def _bounds(trained: dict[str, Any], *, compute: float, target: Target) -> dict[str, float]:
    """Returns lower bounds of a step's seconds, and the upper bound of MFU that they leave.

    memory: arguments and results pass through memory once, and temporaries twice.
    """
    if "peak_bytes" not in trained:
        return {"compute_seconds": compute}
    sent = sum(kind["bytes"] for kind in trained["collectives"].values())
    moved = trained["moved_bytes"] + 2 * trained["temporary_bytes"]
    seconds = {
        "compute_seconds": compute,
        "memory_seconds": moved / target.chip.bandwidth,
        "interconnect_seconds": sent / target.chip.interconnect,
    }
    slowest = max(seconds.values())
    return {**seconds, "step_seconds": slowest, "mfu": compute / slowest}


def largest_batch(peak: Callable[[int], float], memory: float, unit: int) -> int:
    """Returns the largest multiple of `unit` whose step fits; 0 if none does.

    peak: batch size -> the bytes per chip of its step, which grow with the batch; infinity for a
    step that does not compile. Each call costs a compilation, and the bytes are nearly linear, so
    this is a bisection that tries the batch at which the line through the last two ends.
    """
    fitting: list[tuple[int, float]] = [(0, 0.0)]  # batches in units, and their bytes
    too_large = None
    while too_large is None or too_large - fitting[-1][0] > 1:
        (low, used), guess = fitting[-1], 2 * fitting[-1][0] or 1
        if len(fitting) > 2:
            before, used_before = fitting[-2]
            guess = low + int((memory - used) * (low - before) / max(used - used_before, 1))
        if too_large is not None:  # a line that ends beyond it says nothing
            guess = min(guess, (low + too_large) // 2)
        guess = max(guess, low + 1)
        used = peak(guess * unit)
        if used <= memory:
            fitting.append((guess, used))
        else:
            too_large = guess
    return fitting[-1][0] * unit


def largest_steps(
    config: Config, target: Target, *, frame: tuple[int, int] | None = None
) -> Steps | None:
    """Returns the steps of a config with the largest batch whose training step fits a target, or
    None if no batch does. frame: see `make_steps`."""
    make = cache(lambda size: make_steps(config, target, batch_size=size, frame=frame))
    unit = make_parallel(config.parallel, target.devices).devices * config.train.accumulate

    def peak(size: int) -> float:
        trained = make(size).trained
        print(f"batch {size}: {'fits' if trained['fits'] else 'too large'}", file=sys.stderr)
        return trained.get("peak_bytes", math.inf)

    batch = largest_batch(peak, target.chip.memory, unit)
    return make(batch) if batch else None


def table(found: dict[str, Any]) -> str:
    """Returns what `compile_for` found, as lines of text."""
    lines = [
        f"{found['devices']} devices of {found['target']}, {found['mesh']}; batch {found['batch']}"
    ]
    add = lambda name, value: lines.append(f"  {name:44} {value:>14}")
    add("parameters", units(found["parameters"]))
    add("multiply-adds per clip, forward", units(found["multiply_adds"]))
    add("multiply-adds per clip, training step", units(found["training_multiply_adds"]))
    for name, title in (("train", "training step"), ("evaluate", "evaluation step")):
        step = found[name]
        lines.append(f"{title}, bytes per chip of {units(found['chip_bytes'])}B")
        if "error" in step:
            lines.append(f"  does not compile: {step['error']}")
        for key in ("parameters", "optimiser", "batch", "temporary", "peak"):
            if f"{key}_bytes" in step:
                add(key, f"{units(step[f'{key}_bytes'])}B")
        if "error" not in step:
            add("fits", "yes" if step["fits"] else "no")
        for kind, sent in step.get("collectives", {}).items():
            add(f"{int(sent['count'])} x {kind}, sent", f"{units(sent['bytes'])}B")
    lines.append("a training step cannot be faster than (bounds, not predictions)")
    for key, value in found["bounds"].items():
        if key != "mfu":
            add(key.removesuffix("_seconds"), f"{1000 * value:.3g} ms")
    if "mfu" in found["bounds"]:
        add("MFU at most", f"{found['bounds']['mfu']:.1%}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.compile",
        __doc__,
        "python -m vivit.compile --config=configs/moving_digits.py --target=v5e:2x2",
        "python -m vivit.compile --config=configs/moving_digits.py --target=h100:8 --mesh=fsdp=8 "
        "--largest-batch",
    )
    parser.add_argument(
        "--target",
        required=True,
        help=f"a chip and how many, of {', '.join(CHIPS)}: v5e:4x4, v5p:2x2x4, h100:8",
    )
    parser.add_argument("--mesh", default="", help="data=8,fsdp=2 instead of the config's mesh")
    parser.add_argument("--batch", type=int, metavar="N", help="instead of data.batch_size")
    parser.add_argument(
        "--frame", metavar="HxW", help="of the videos that are read (default: the model's)"
    )
    parser.add_argument(
        "--largest-batch", action="store_true", help="find the largest batch that fits"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    show_log()
    arguments, config = parse(parser, argv)
    if config is None:
        parser.error("--config=FILE is needed, such as configs/moving_digits.py")
    frame = None
    if arguments.frame:
        height, _, width = arguments.frame.partition("x")
        if not (height.isdigit() and width.isdigit()):
            parser.error(f"--frame={arguments.frame} is not like 256x340: height and width")
        frame = int(height), int(width)
    only_compile()
    target = make_target(arguments.target)
    if arguments.mesh:
        config = replace(config, parallel=replace(config.parallel, **parse_mesh(arguments.mesh)))
    if arguments.largest_batch:
        steps = largest_steps(config, target, frame=frame)
        if steps is None:
            raise ValueError(f"not even the smallest batch of this mesh fits {target.name}")
    else:
        batch = arguments.batch or config.data.batch_size
        steps = make_steps(config, target, batch_size=batch, frame=frame)
    found = compile_for(steps)
    print(json.dumps(found, indent=1) if arguments.json else table(found))


if __name__ == "__main__":
    run_command(main)
