"""python -m experiments.steps_to_accuracy FOLDER --accuracy 0.5 0.9: how soon runs reach a level.

The step at which the validation accuracy of a sweep's runs first reaches each level, and their
test accuracy at the end. Runs that start from the same kind of weights at the same learning rate
share a row, whatever else differs: give the folder of one sweep.
"""

import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from experiments.collect import mean_and_spread, table_row
from vivit.cli import make_parser, run_command
from vivit.io import read_json
from vivit.run import Run


def read_run(folder: Path, levels: list[float]) -> dict[str, Any] | None:
    """Returns the steps at which a run reached the levels (None for never) and its test score, or
    None if it was not evaluated."""
    run = Run(folder)
    evaluations = sorted(folder.glob("eval/test_*.json"))
    if not evaluations:
        return None
    best = run.task.best
    curve = [(x["step"], x[best]) for x in run.metrics if x["split"] == "validation"]
    init = run.config.init
    start = init.inflation if init.path else "from scratch"
    reached = [next((step for step, score in curve if score >= level), None) for level in levels]
    return {
        "name": f"{start}, lr {run.config.optim.lr:g}",
        "seed": run.config.seed,
        "reached": reached,
        "test": 100 * read_json(evaluations[-1])[best],
        "title": run.task.columns()[best],
    }


def table(runs: list[dict[str, Any]], levels: list[float]) -> str:
    """Returns a Markdown table: medians over the seeds, with each seed's step in brackets."""
    groups = defaultdict(list)
    for run in runs:
        groups[run["name"]].append(run)
    reached = [f"steps to {level:.0%}" for level in levels]
    head = ["start", "seeds", *reached, f"test {runs[0]['title']} (%)"]
    lines = [table_row(head), table_row(["---"] + ["---:"] * (len(head) - 1))]
    for name, members in groups.items():
        members.sort(key=lambda run: run["seed"])
        cells = [name, str(len(members))]
        cells += [_steps([run["reached"][i] for run in members]) for i in range(len(levels))]
        lines.append(table_row([*cells, mean_and_spread([run["test"] for run in members])]))
    return "\n".join(lines) + "\n"


def _steps(reached: list[int | None]) -> str:
    """Returns the median step and all steps; a run that never got there counts as the latest."""
    middle = statistics.median_high(step if step is not None else sys.maxsize for step in reached)
    each = ", ".join("never" if step is None else str(step) for step in reached)
    return f"{'never' if middle == sys.maxsize else middle} ({each})"


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "experiments.steps_to_accuracy",
        __doc__,
        "python -m experiments.steps_to_accuracy runs/transfer_digits/start",
        "python -m experiments.steps_to_accuracy runs/transfer_digits/start --accuracy 0.5 0.99",
    )
    parser.add_argument("folder", type=Path, help="of a sweep's runs")
    parser.add_argument(
        "--accuracy",
        type=float,
        nargs="+",
        metavar="A",
        default=[0.5, 0.9],
        help="levels of validation accuracy in 0 .. 1 (default: 0.5 0.9)",
    )
    arguments = parser.parse_args(argv)
    folders = sorted(path.parent for path in arguments.folder.rglob("metrics.jsonl"))
    runs = [read_run(folder, arguments.accuracy) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if run is None:
            print(f"left out: {folder}: not evaluated on test", file=sys.stderr)
    done = [run for run in runs if run is not None]
    if not done:
        raise ValueError(f"no finished runs in {arguments.folder}")
    print(table(done, arguments.accuracy), end="")


if __name__ == "__main__":
    run_command(main)
