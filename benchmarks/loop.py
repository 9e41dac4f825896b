"""python -m benchmarks.loop: what the training loop costs beyond its compiled step.

Trains on small moving digits, made in a temporary folder. The loop costs what a step takes in a
run, the median over its log steps, less what it takes alone. "tiny" computes on the CPU, where
loading data and the step take turns on the cores; the other cases wait instead of computing, which
leaves the CPU to the loop, as an accelerator does. "slow loader" has a loader that takes longer.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vivit.cli import make_parser, run_command
from vivit.config import read_config
from vivit.data import moving_digits
from vivit.data.pipeline import Batches
from vivit.dataprep.prepare import prepare_registered
from vivit.parallel import MODES, JitParallel
from vivit.train import train

CONFIG = Path(__file__).parents[1] / "configs/moving_digits.py"
WINDOW = 50  # steps between two log steps
MODEL = ("family=factorised_encoder(1)", "width=16", "depth=1", "heads=2", "mlp_dim=16",
         "tubelet=(4,16,16)")  # fmt: skip
# Seconds that a step waits, None for one that computes, and those that a batch takes to load.
CASES = {"tiny": (None, 0.0), "5 ms": (0.005, 0.0), "100 ms": (0.1, 0.0),
         "slow loader": (0.01, 0.02)}  # fmt: skip


class Step:
    """A run's step, which may wait instead of computing; keeps itself and its first batch."""

    seconds: float | None = None
    seen: "Step"

    def __init__(self, jitted: Any) -> None:
        self._jitted = jitted

    def lower(self, state: Any, batch: Any) -> "Step":
        Step.seen, self.batch, self.state = self, batch, state
        self._lowered = self._jitted.lower(state, batch)
        return self

    def compile(self) -> "Step":
        self._compiled = self._lowered.compile()
        self.memory_analysis = self._compiled.memory_analysis
        if self.seconds is not None:
            self.result = self._compiled(self.state, self.batch)
        return self

    def __call__(self, state: Any, batch: Any) -> Any:
        if self.seconds is None:
            return self._compiled(state, batch)
        time.sleep(self.seconds)
        return self.result


@MODES.register("watched")
class Watched(JitParallel):
    def train(self, step: Callable[..., Any], state: Any) -> Any:
        return Step(super().train(step, state))


def measure(seconds: float | None, load_seconds: float, root: str, *, steps: int) -> dict:
    flags = [
        f"--config.data.root={root}",
        "--config.data.batch_size=8",
        "--config.parallel.mode=watched",
        f"--config.train.steps={steps}",
        f"--config.train.log_every={WINDOW}",
        f"--config.train.eval_every={steps}",
        f"--config.train.checkpoint_every={steps}",
        *(f"--config.model.{text}" for text in MODEL),
    ]
    Step.seconds, load = seconds, Batches.load

    def slow_load(self):
        time.sleep(load_seconds)
        return load(self)

    Batches.load = slow_load
    with tempfile.TemporaryDirectory() as folder:
        state = train(read_config(str(CONFIG), flags), folder)
        rows = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        windows = [row for row in rows if row["split"] == "train"][1:]
    Batches.load = load
    alone, step = [], Step.seen
    for _ in windows:
        start = time.perf_counter()
        for _ in range(WINDOW):
            state, sums = step(state, step.batch)
            jax.block_until_ready(sums)
        alone.append((time.perf_counter() - start) / WINDOW)
    return {
        "run_ms": 1e3 * statistics.median(8 / row["clips_per_second"] for row in windows),
        "step_ms": 1e3 * statistics.median(alone),
        "waiting": statistics.median(row["waiting"] for row in windows),
    }


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "benchmarks.loop",
        __doc__,
        "python -m benchmarks.loop",
        "python -m benchmarks.loop --only tiny --steps 2000",
    )
    parser.add_argument("--steps", type=int, default=500, help="of each run (500)")
    parser.add_argument("--only", choices=CASES, help="one of the cases")
    arguments = parser.parse_args(argv)
    moving_digits.SPLITS = {"train": 256, "validation": 16, "test": 16}
    print(
        "| step | in a run, ms | alone, ms | loop, ms | waiting for data |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as root:
        prepare_registered("moving_digits", root)
        for name in [arguments.only] if arguments.only else CASES:
            x = measure(*CASES[name], root, steps=arguments.steps)
            loop = x["run_ms"] - x["step_ms"]
            print(
                f"| {name} | {x['run_ms']:.2f} | {x['step_ms']:.2f} | {loop:.2f} | "
                f"{x['waiting']:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    run_command(main)
