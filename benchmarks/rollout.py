"""python -m benchmarks.rollout: what attention rollout costs against a forward pass.

Both for one clip, in one run: CPU time, and the temporaries of the compiled programs.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from vivit.analysis import capture, rollout
from vivit.cli import make_parser, run_command
from vivit.config import read_config
from vivit.cost import count_tokens
from vivit.model import build


def measure(config_path: str, *, rounds: int) -> dict[str, dict[str, float]]:
    """Returns "forward" and "rollout", which has the forward pass in it -> seconds of CPU time, the
    median over rounds in which both take turns, seconds until the result, and temporary bytes."""
    model = build(read_config(config_path).model)
    clip = np.random.default_rng(0).integers(0, 256, (1, *model.config.clip, 3))
    clips = jnp.asarray(clip, jnp.uint8)
    params = jax.jit(model.init)(jax.random.key(0), *model.example())["params"]
    passes = {
        "forward": lambda params, clips: model.apply({"params": params}, clips),
        "rollout": lambda params, clips: rollout(capture(model, params, clips)),
    }
    compiled = {name: jax.jit(f).lower(params, clips).compile() for name, f in passes.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in compiled}
    for turn in range(rounds + 1):
        for name, call in compiled.items():
            start = time.process_time(), time.perf_counter()
            jax.block_until_ready(call(params, clips))
            if turn:  # the first one warms up
                end = time.process_time(), time.perf_counter()
                times[name].append((end[0] - start[0], end[1] - start[1]))
    found = {}
    for name, taken in times.items():
        cpu, wall = (statistics.median(x) for x in zip(*taken, strict=True))
        memory = compiled[name].memory_analysis().temp_size_in_bytes
        found[name] = {"cpu": cpu, "wall": wall, "temporary_bytes": memory}
    print(f"{config_path}: {count_tokens(model)} tokens, kernel {model.config.kernel.name}")
    return found


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "benchmarks.rollout",
        __doc__,
        "python -m benchmarks.rollout",
        "python -m benchmarks.rollout --configs configs/moving_digits.py --rounds=20",
    )
    default = ["configs/moving_digits.py", "configs/vivit_b_k400.py"]
    parser.add_argument(
        "--configs", nargs="+", default=default, help=f"of models (default: {' '.join(default)})"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken (5)")
    arguments = parser.parse_args(argv)
    for path in arguments.configs:
        found = measure(path, rounds=arguments.rounds)
        for name, values in found.items():
            part = values["cpu"] / found["forward"]["cpu"]
            print(
                f"  {name:9}{1000 * values['cpu']:12,.1f} ms of CPU time ({part:.2f} of a forward "
                f"pass), {1000 * values['wall']:,.1f} ms, "
                f"{values['temporary_bytes'] / 1e6:,.0f} MB of temporaries"
            )


if __name__ == "__main__":
    run_command(main)
