"""python -m vivit.describe: what a model costs, before it is trained.

Tokens, parameters and multiply-adds of a forward pass; with --memory the peak memory of a training
step; with --mesh the bytes on each device.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

import vivit
from vivit.attention import KERNELS
from vivit.cli import make_parser, run_command, three_sizes
from vivit.config import import_modules, parse
from vivit.cost import abstract_params, bytes_per_device, count
from vivit.mesh import MESH_AXES
from vivit.model import ViViT
from vivit.model.settings import FAMILIES, SIZES, ModelSettings
from vivit.model.stage import REMAT
from vivit.optim import make_optimizer
from vivit.parallel import shard_by_rules, with_shardings
from vivit.settings import Config, OptimSettings, TrainSettings
from vivit.step import make_init, make_train_step
from vivit.tasks import Classify, Objective

MODEL = ModelSettings(clip=(32, 224, 224), classes=400, family="joint", size="B/16x2")
FLAGS = ("family", "size", "clip", "classes", "readout", "kernel", "remat", "scan")


def describe(
    model: ViViT, *, batch: int = 1, optim: OptimSettings = OptimSettings(), memory: bool = True
) -> dict[str, int]:
    """Returns counts of a model, and bytes of a training step of `batch` clips on one device.

    memory: whether the training step is compiled, which takes seconds to minutes; without it there
        are no bytes.
    multiply_adds: of one clip's forward pass, all matrix products by their shapes.
    xla_multiply_adds: half the operations that XLA counts, which include norms, softmax and gelu.
    temporary_bytes: what the compiled step allocates besides its arguments; peak_bytes: both.
    """
    counts = {
        **count(model),
        "xla_multiply_adds": xla_multiply_adds(model),
        "batch": batch,
    }
    if memory:
        found = compile_train_step(model, batch=batch, optim=optim).memory_analysis()
        counts["temporary_bytes"] = found.temp_size_in_bytes
        counts["peak_bytes"] = found.temp_size_in_bytes + found.argument_size_in_bytes
    return counts


def compile_train_step(model: ViViT, *, batch: int, optim: OptimSettings = OptimSettings()) -> Any:
    """Returns the compiled training step, with a donated state; nothing is run."""
    init, step, shapes = train_step(model, batch=batch, optim=optim)
    state = jax.eval_shape(init, 0)
    return jax.jit(step, donate_argnums=0).lower(state, shapes).compile()


def train_step(
    model: ViViT, *, batch: int, optim: OptimSettings = OptimSettings()
) -> tuple[Callable, Callable, dict[str, jax.ShapeDtypeStruct]]:
    """Returns seed -> state, the pure training step, and the shapes of a batch of `batch` clips."""
    update, _ = make_optimizer(replace(optim, warmup_steps=0), steps=1, batch_size=batch)
    init = make_init(model, update, average_decay=None)
    config = model.config  # without a head the logits are the features
    task = Classify({"label": config.classes or config.pre_logits or config.width})
    step = make_train_step(model, update, task, TrainSettings())
    return init, step, batch_shapes(task, batch, config.clip)


def batch_shapes(
    task: Objective, size: int, clip: tuple[int, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch that is neither augmented nor cut into views."""
    labels = task.encode(task.no_classes)
    return {
        "clips": jax.ShapeDtypeStruct((size, *clip, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((size, *labels.shape), labels.dtype),
        "valid": jax.ShapeDtypeStruct((size,), jnp.float32),
    }


def bytes_on_mesh(config: Config, model: ViViT) -> dict[str, int]:
    """Returns the bytes of parameters and optimiser state on each device of the config's mesh,
    which need not be present, and the devices.

    Raises ValueError for rules that do not fit, and axes that do not divide.
    """
    sizes = {axis: getattr(config.parallel, axis) for axis in MESH_AXES}
    if min(sizes.values()) < 1:
        raise ValueError(f"the mesh {sizes} needs sizes of 1 or more")
    types = (AxisType.Auto,) * len(MESH_AXES)
    mesh = AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=types)
    update, _ = make_optimizer(
        config.optim,
        steps=config.train.with_steps(config.data.batch_size).steps,
        batch_size=config.data.batch_size,
    )
    init = make_init(model, update, average_decay=config.train.average_decay)
    shapes = jax.eval_shape(init, config.seed)
    state = with_shardings(shapes, shard_by_rules(shapes, mesh, config.parallel.rules))
    return {
        "devices": math.prod(sizes.values()),
        "parameters_bytes": bytes_per_device(state.params),
        "optimiser_bytes": bytes_per_device((state.opt_state, state.averaged)),
    }


def xla_multiply_adds(model: ViViT) -> int:
    """Returns half of XLA's count of a clip's forward pass, with layers unrolled, as XLA counts the
    body of a scan once."""
    model = model.with_settings(scan=False, kernel="dense", remat="none")
    clips = jax.ShapeDtypeStruct((1, *model.config.clip, 3), jnp.float32)
    forward = jax.jit(lambda params, x: model.apply({"params": params}, x))
    analysis: Any = forward.lower(abstract_params(model), clips).cost_analysis()
    return int(analysis["flops"] / 2)


def table(counts: dict[str, int], *, title: str) -> str:
    """Returns the counts as lines of text."""
    rows = [
        ("tokens", f"{counts['tokens']:,}"),
        ("parameters", units(counts["parameters"])),
        ("multiply-adds per clip", units(counts["multiply_adds"])),
        ("  as XLA counts", units(counts["xla_multiply_adds"])),
    ]
    if "peak_bytes" in counts:
        batch = f"training step, batch {counts['batch']}"
        rows.append((f"peak memory, {batch}", f"{units(counts['peak_bytes'])}B"))
        rows.append(("  of it temporary", f"{units(counts['temporary_bytes'])}B"))
    if "devices" in counts:
        rows.append(
            (
                f"parameters on each of {counts['devices']} devices",
                f"{units(counts['parameters_bytes'])}B",
            )
        )
        rows.append(("optimiser state on each", f"{units(counts['optimiser_bytes'])}B"))
    return "\n".join([title, *(f"  {name:38} {value:>12}" for name, value in rows)])


def units(value: int | float) -> str:
    """Returns a number with three digits and the prefix of its size: "45.2 M"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {prefix}"
    return f"{value:g} "


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the fields of ParallelSettings that "data=8,fsdp=2" stands for.

    Raises ValueError for unknown axes.
    """
    parts = [part.partition("=") for part in text.split(",") if part]
    sizes = {axis: size for axis, _, size in parts}
    wrong = [f"{k}={v}" for k, v in sizes.items() if k not in MESH_AXES or not v.isdigit()]
    if wrong:
        raise ValueError(f"--mesh={text}: {', '.join(wrong)}; axes are {', '.join(MESH_AXES)}")
    return {axis: int(n) for axis, n in sizes.items()}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.describe",
        __doc__,
        "python -m vivit.describe --family=joint --size=B/16x2 --clip=32x224x224 --classes=400",
        "python -m vivit.describe --config=configs/moving_digits.py --memory --batch=64",
        "python -m vivit.describe --family=joint --size=L/16x2 --mesh=data=4,fsdp=8",
    )
    known = ", ".join(FAMILIES)
    parser.add_argument("--family", help=f"{known}, or a pattern (default: {MODEL.family})")
    parser.add_argument(
        "--size",
        help=f"{', '.join(SIZES)}, of tubelets 16x2, or such as L/16x4 (default: {MODEL.size})",
    )
    parser.add_argument(
        "--clip", type=three_sizes, metavar="FxHxW", help="frames, height, width (32x224x224)"
    )
    parser.add_argument("--classes", type=int, metavar="N", help=f"default: {MODEL.classes}")
    parser.add_argument("--readout", help=f"such as cls, mean or max (default: {MODEL.readout})")
    parser.add_argument("--kernel", help=f"{', '.join(KERNELS)} (default: {MODEL.kernel})")
    parser.add_argument("--remat", help=f"{', '.join(REMAT)} (default: {MODEL.remat})")
    parser.add_argument("--scan", action="store_const", const=True, help="scan over the layers")
    parser.add_argument(
        "--memory", action="store_true", help="compile the training step for its peak memory"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", default=1, help="clips in that step (default: 1)"
    )
    parser.add_argument(
        "--mesh", default="", help="data=8,fsdp=2: bytes on each device of such a mesh"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments, config = parse(parser, argv)
    given = {name: getattr(arguments, name) for name in FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("size", "").isalpha():
        given["size"] += "/16x2"  # ViViT's tubelet
    if config is None:
        config = Config(model=replace(MODEL, **given))
    elif given:
        parser.error(f"with --config say --config.model.{next(iter(given))}=...")
    import_modules(config.imports)
    model = vivit.build(config.model)
    counts = describe(model, batch=arguments.batch, optim=config.optim, memory=arguments.memory)
    if arguments.mesh:
        mesh = {**dict.fromkeys(MESH_AXES, 1), **parse_mesh(arguments.mesh)}
        on_mesh = replace(config, parallel=replace(config.parallel, **mesh))
        counts |= bytes_on_mesh(on_mesh, model)
    if arguments.json:
        print(json.dumps(counts, indent=1))
    else:
        settings = model.config.settings
        size = "x".join(map(str, settings.clip))
        name = " ".join(filter(None, (settings.family, settings.size)))
        title = f"{name} on {size}, {settings.kernel} kernel"
        print(table(counts, title=title))


if __name__ == "__main__":
    run_command(main)
