"""python -m benchmarks.rollout: what attention rollout costs against a forward pass.

Both for one clip, in one run: CPU time, and the temporaries of the compiled programs.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import take_turns
from vivit.analysis import capture, rollout
from vivit.cli import make_parser, run_command
from vivit.config import read_config
from vivit.cost import count_tokens
from vivit.model import ViViT, build


def measure(model: ViViT, *, rounds: int) -> dict[str, dict[str, float]]:
    """Returns "forward" and "rollout", which has the forward pass in it -> seconds of CPU time, the
    median over rounds in which both take turns, seconds until the result, and temporary bytes."""
    clip = np.random.default_rng(0).integers(0, 256, (1, *model.config.clip, 3))
    clips = jnp.asarray(clip, jnp.uint8)
    params = jax.jit(model.init)(jax.random.key(0), *model.example())["params"]
    passes = {
        "forward": lambda params, clips: model.apply({"params": params}, clips),
        "rollout": lambda params, clips: rollout(capture(model, params, clips)),
    }
    compiled = {name: jax.jit(f).lower(params, clips).compile() for name, f in passes.items()}
    calls = {name: lambda call=call: call(params, clips) for name, call in compiled.items()}
    memory = lambda name: compiled[name].memory_analysis().temp_size_in_bytes
    times = take_turns(calls, rounds=rounds)
    return {name: {**x._asdict(), "temporary_bytes": memory(name)} for name, x in times.items()}


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
        model = build(read_config(path).model)
        print(f"{path}: {count_tokens(model)} tokens, kernel {model.config.kernel.name}")
        found = measure(model, rounds=arguments.rounds)
        for name, values in found.items():
            part = values["cpu"] / found["forward"]["cpu"]
            print(
                f"  {name:9}{1000 * values['cpu']:12,.1f} ms of CPU time ({part:.2f} of a forward "
                f"pass), {1000 * values['wall']:,.1f} ms, "
                f"{values['temporary_bytes'] / 1e6:,.0f} MB of temporaries"
            )


if __name__ == "__main__":
    run_command(main)
