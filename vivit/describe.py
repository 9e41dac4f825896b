"""python -m vivit.describe: what a model costs, before it is trained.

Tokens, parameters, multiply-adds of a forward pass and the peak memory of a training step.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

import vivit
from vivit.cli import run_command, three_sizes
from vivit.config import import_modules, parse
from vivit.cost import abstract_params, count_multiply_adds, count_parameters, count_tokens
from vivit.model import ViViT
from vivit.model.settings import FAMILIES, SIZES, ModelSettings
from vivit.optim import make_optimizer
from vivit.settings import Config, OptimSettings, TrainSettings
from vivit.step import make_init, make_train_step

MODEL = ModelSettings(clip=(32, 224, 224), classes=400, family="joint", size="B/16x2")
FLAGS = ("family", "size", "clip", "classes", "readout", "kernel", "remat", "scan")


def describe(
    model: ViViT, *, batch: int = 1, optim: OptimSettings = OptimSettings()
) -> dict[str, int]:
    """Returns counts of a model, and bytes of a training step of `batch` clips on one device.

    multiply_adds: of one clip's forward pass, all matrix products by their shapes.
    xla_multiply_adds: half the operations that XLA counts, which include norms, softmax and gelu.
    temporary_bytes: what the compiled step allocates besides its arguments; peak_bytes: both.
    """
    memory = compile_train_step(model, batch=batch, optim=optim).memory_analysis()
    temporary = memory.temp_size_in_bytes
    return {
        "tokens": count_tokens(model),
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model),
        "xla_multiply_adds": xla_multiply_adds(model),
        "batch": batch,
        "temporary_bytes": temporary,
        "peak_bytes": temporary + memory.argument_size_in_bytes,
    }


def compile_train_step(model: ViViT, *, batch: int, optim: OptimSettings = OptimSettings()) -> Any:
    """Returns the compiled training step, with a donated state; nothing is run."""
    init, step, shapes = train_step(model, batch=batch, optim=optim)
    state = jax.eval_shape(init, 0)
    return jax.jit(step, donate_argnums=0).lower(state, shapes).compile()


def train_step(
    model: ViViT, *, batch: int, optim: OptimSettings = OptimSettings()
) -> tuple[Callable, Callable, dict[str, jax.ShapeDtypeStruct]]:
    """Returns seed -> state, the pure training step, and the shapes of a batch of `batch` clips."""
    update, _ = make_optimizer(replace(optim, warmup_steps=0), steps=1)
    init = make_init(model, update, average_decay=None)
    step = make_train_step(model, update, TrainSettings())
    shapes = {
        "clips": jax.ShapeDtypeStruct((batch, *model.config.clip, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "valid": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    return init, step, shapes


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
    batch = f"training step, batch {counts['batch']}"
    rows = [
        ("tokens", f"{counts['tokens']:,}"),
        ("parameters", f"{counts['parameters'] / 1e6:.2f} M"),
        ("multiply-adds per clip", f"{counts['multiply_adds'] / 1e9:,.2f} G"),
        ("  as XLA counts", f"{counts['xla_multiply_adds'] / 1e9:,.2f} G"),
        (f"peak memory, {batch}", f"{counts['peak_bytes'] / 1e9:,.2f} GB"),
        ("  of it temporary", f"{counts['temporary_bytes'] / 1e9:,.2f} GB"),
    ]
    return "\n".join([title, *(f"  {name:38} {value:>12}" for name, value in rows)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vivit.describe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(FAMILIES)
    parser.add_argument("--family", help=f"{known}, or a pattern ({MODEL.family})")
    parser.add_argument("--size", help=f"{', '.join(SIZES)}, or with a tubelet ({MODEL.size})")
    parser.add_argument("--clip", type=three_sizes, help="frames x height x width (32x224x224)")
    parser.add_argument("--classes", type=int, help=f"({MODEL.classes})")
    parser.add_argument("--readout", help=f"such as cls, mean or max ({MODEL.readout})")
    parser.add_argument("--kernel", help=f"({MODEL.kernel})")
    parser.add_argument("--remat", help=f"({MODEL.remat})")
    parser.add_argument("--scan", action="store_const", const=True, help="scan over the layers")
    parser.add_argument("--batch", type=int, default=1, help="clips in the training step")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments, config = parse(parser, argv)
    given = {name: getattr(arguments, name) for name in FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    if config is None:
        config = Config(model=replace(MODEL, **given))
    elif given:
        parser.error(f"with --config say --config.model.{next(iter(given))}=...")
    import_modules(config.imports)
    model = vivit.build(config.model)
    counts = describe(model, batch=arguments.batch, optim=config.optim)
    if arguments.json:
        print(json.dumps(counts, indent=1))
    else:
        settings = model.config.settings
        size = "x".join(map(str, settings.clip))
        title = f"{settings.family} {settings.size} on {size}, {settings.kernel} kernel"
        print(table(counts, title=title))


if __name__ == "__main__":
    run_command(main)
