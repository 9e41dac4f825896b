"""python -m benchmarks.pretraining: what masked autoencoding costs against the full encoder.

A forward and backward pass of each, and the drawing of masks, in one run.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import take_turns
from vivit.cli import make_parser, run_command
from vivit.config import read_config
from vivit.model import build
from vivit.tasks import make_objective


def measure(config_path: str, *, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns "full encoder", "mae" and "masks" -> seconds of CPU time and temporary bytes; the
    times are medians over rounds in which all take turns."""
    config = read_config(config_path, [f"--config.data.batch_size={batch}"])
    settings = {"dtype": "float32", "scan": False, "remat": "none", "kernel": "dense"}
    task = make_objective(config.task.name, {})
    network = task.network(build(config.model)).with_settings(**settings)
    clips = np.random.default_rng(0).integers(0, 256, (batch, *network.config.clip, 3))
    given = {
        "clips": jnp.asarray(clips, jnp.uint8),
        "indices": jnp.arange(batch, dtype=jnp.uint32),
        "valid": jnp.ones(batch),
    }
    params = jax.jit(network.init)(jax.random.key(0), *network.example())["params"]
    prepare = jax.jit(lambda x: task.prepare(network, x, jax.random.key(0)))

    def of_mae(params: Any, x: Any) -> Any:
        x = task.prepare(network, x, jax.random.key(0))
        return task.losses(task.outputs(network, params, x, teacher=params), x)[0].mean()

    def of_encoder(params: Any, x: Any) -> Any:
        tokens: Any = network.apply({"params": params}, x["clips"], method="encode")
        return (tokens**2).mean()

    steps = {"full encoder": jax.grad(of_encoder), "mae": jax.grad(of_mae)}
    compiled = {name: jax.jit(step).lower(params, given).compile() for name, step in steps.items()}
    calls = {name: lambda c=c: c(params, given) for name, c in compiled.items()}
    calls["masks"] = lambda: prepare(given)
    times = take_turns(calls, rounds=rounds)
    found: dict[str, dict[str, float]] = {name: {"seconds": x.cpu} for name, x in times.items()}
    for name, step in compiled.items():
        found[name]["temporary_bytes"] = step.memory_analysis().temp_size_in_bytes
    return found


def main(argv: list[str] | None = None) -> None:
    parser: argparse.ArgumentParser = make_parser(
        "benchmarks.pretraining",
        __doc__,
        "python -m benchmarks.pretraining",
        "python -m benchmarks.pretraining --config=configs/videomae_pretrain_b_ssv2.py --batch=2",
    )
    default = "configs/videomae_pretrain_b_k400.py"
    parser.add_argument("--config", default=default, help=f"of task mae (default: {default})")
    parser.add_argument("--batch", type=int, default=1, help="clips (1)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken (3)")
    arguments = parser.parse_args(argv)
    found = measure(arguments.config, batch=arguments.batch, rounds=arguments.rounds)
    full = found["full encoder"]
    for name, values in found.items():
        memory = values.get("temporary_bytes")
        shown = f", {memory / 1e9:.2f} GB of temporaries" if memory else ""
        part = values["seconds"] / full["seconds"]
        print(f"{name:13}{values['seconds']:8.3f} s of CPU time ({part:.3f} of full){shown}")
    print(f"masks: {found['masks']['seconds'] / found['mae']['seconds']:.2%} of a step of mae")


if __name__ == "__main__":
    run_command(main)
