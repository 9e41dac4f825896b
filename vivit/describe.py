"""python -m vivit.describe: what a model costs, before it is trained.

Tokens, parameters, multiply-adds of a forward pass and the peak memory of a training step.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import vivit
from vivit.cli import run_command
from vivit.config import import_modules, parse
from vivit.cost import abstract_params, count_multiply_adds, count_parameters, count_tokens
from vivit.model import SIZES, ViViT
from vivit.optim import make_optimizer
from vivit.plan import FAMILIES
from vivit.step import make_init, make_train_step

MODEL: dict[str, Any] = {  # what is described where nothing is said
    "family": "joint",
    "size": "B/16x2",
    "clip": "32x224x224",
    "classes": 400,
    "readout": "mean",
    "kernel": "dense",
    "remat": "none",
    "scan": False,
}
OPTIMIZER = {
    "name": "adamw",
    "lr": 1e-3,
    "lr_floor": 0.0,
    "warmup_steps": 0,
    "clip_norm": 1.0,
    "b1": 0.9,
    "b2": 0.999,
    "momentum": 0.9,
    "weight_decay": 0.05,
}


def describe(
    model: ViViT, *, batch: int = 1, optimizer: dict[str, Any] | None = None
) -> dict[str, int]:
    """Counts of a model, and bytes of a training step of `batch` clips on one device.

    multiply_adds: of one clip's forward pass, all matrix products by their shapes.
    xla_multiply_adds: half the operations that XLA counts, which include norms, softmax and gelu.
    temporary_bytes: what the compiled step allocates beside its arguments; peak_bytes: with them.
    """
    memory = compile_train_step(model, batch=batch, optimizer=optimizer).memory_analysis()
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


def compile_train_step(model: ViViT, *, batch: int, optimizer: dict[str, Any] | None = None) -> Any:
    """The compiled training step, AdamW unless given, with a donated state; nothing is run."""
    init, step, shapes = train_step(model, batch=batch, optimizer=optimizer)
    state = jax.eval_shape(init, 0)
    return jax.jit(step, donate_argnums=0).lower(state, shapes).compile()


def train_step(
    model: ViViT, *, batch: int, optimizer: dict[str, Any] | None = None
) -> tuple[Callable, Callable, dict[str, jax.ShapeDtypeStruct]]:
    """seed -> state, the pure training step, and the shapes of a batch of `batch` clips."""
    update, _ = make_optimizer(steps=1, **{**(optimizer or OPTIMIZER), "warmup_steps": 0})
    init = make_init(model, update, average_decay=None)
    step = make_train_step(model, update, label_smoothing=0.0, average_decay=None)
    shapes = {
        "clips": jax.ShapeDtypeStruct((batch, *model.clip, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    return init, step, shapes


def xla_multiply_adds(model: ViViT) -> int:
    """Half of XLA's count of a clip's forward pass; layers unrolled, as it counts a scan's once."""
    model = model.clone(scan=False, kernel="dense", remat="none")
    clips = jax.ShapeDtypeStruct((1, *model.clip, 3), jnp.float32)
    forward = jax.jit(lambda params, x: model.apply({"params": params}, x))
    analysis = forward.lower(abstract_params(model), clips).cost_analysis()
    return int(analysis["flops"] / 2)


def table(counts: dict[str, int], *, title: str) -> str:
    """The counts as lines for people."""
    batch = f"training step, batch {counts['batch']}"
    rows = [
        ("tokens", f"{counts['tokens']:,}"),
        ("parameters", f"{counts['parameters'] / 1e6:.2f} M"),
        ("multiply-adds a clip", f"{counts['multiply_adds'] / 1e9:,.2f} G"),
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
    parser.add_argument("--family", help=f"{', '.join(FAMILIES)}, or a pattern (joint)")
    parser.add_argument("--size", help=f"{', '.join(SIZES)}, or with a tubelet (B/16x2)")
    parser.add_argument("--clip", help="frames x height x width (32x224x224)")
    parser.add_argument("--classes", type=int, help="(400)")
    parser.add_argument("--readout", help="cls, mean or max (mean)")
    parser.add_argument("--kernel", help="(dense)")
    parser.add_argument("--remat", help="(none)")
    parser.add_argument("--scan", action="store_const", const=True, help="scan over the layers")
    parser.add_argument("--batch", type=int, default=1, help="clips in the training step")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments, config = parse(parser, argv)
    given = {
        name: getattr(arguments, name) for name in MODEL if getattr(arguments, name) is not None
    }
    if config is not None:
        if given:
            parser.error(f"with --config say --config.model.{next(iter(given))}=...")
        import_modules(config)
        model, optimizer = vivit.build(config.model), dict(config.optim)
    else:
        fields = {**MODEL, **given}
        model, optimizer = vivit.build({**fields, "clip": _clip(fields["clip"])}), None
    counts = describe(model, batch=arguments.batch, optimizer=optimizer)
    if arguments.json:
        print(json.dumps(counts, indent=1))
    else:
        size = "x".join(map(str, model.clip))
        print(table(counts, title=f"{model.family} {model.size} on {size}, {model.kernel} kernel"))


def _clip(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--clip={text} is not like 32x224x224: frames x height x width")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    run_command(main)
