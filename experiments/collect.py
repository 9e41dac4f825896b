"""python -m experiments.collect FOLDER ...: the runs below some folders, as a table and a picture.

Runs that differ in nothing but the seed share a row. Writes table.md, table.json and
accuracy.png into the first folder, and prints the table.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vivit.cli import make_parser, run_command
from vivit.config import as_json
from vivit.io import read_json
from vivit.run import Run

COSTS = (
    ("parameters", "parameters (M)"),
    ("multiply_adds", "multiply-adds (M)"),
    ("step_ms", "step time (ms)"),
    ("temporary_bytes", "temporary memory (MB)"),
)


def read_run(folder: Path) -> dict[str, Any]:
    """Returns the figures of a run, or {"problem": ...} if it did not finish."""
    run = Run(folder)
    config, cost = as_json(run.config), folder / "cost.json"
    if not cost.exists() or not run.metrics:
        return {"config": config, "problem": "not trained"}
    best, titles = run.task.best, run.task.columns()
    validations = [(x[best], x["step"]) for x in run.metrics if x["split"] == "validation"]
    scores = run.scores(step=max(validations, default=(0, 0))[1])
    if scores is None:
        return {"config": config, "problem": "its best checkpoint was not evaluated on test"}
    if not run.finished:
        return {"config": config, "problem": "not trained to the end"}
    costs = read_json(cost)
    rates = [line["clips_per_second"] for line in run.metrics if line["split"] == "train"]
    return {
        "config": config,
        "views": run.config.data.views.name,
        "scores": {title: 100 * scores[k] for k, title in titles.items() if k in scores},
        "parameters": costs["parameters"] / 1e6,
        "multiply_adds": costs["multiply_adds"] / 1e6,
        "temporary_bytes": costs["temporary_bytes"] / 1e6,
        "step_ms": 1000 * costs["batch_size"] / statistics.median(rates),
    }


def _try_to_read(folder: Path) -> dict[str, Any]:
    try:
        return read_run(folder)
    except ValueError as error:  # such as a missing module of config.imports
        return {"problem": str(error)}


def collect(folders: list[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns rows, one per config with its seeds together, and lines about the runs left out."""
    paths = sorted({path.parent for folder in folders for path in folder.rglob("config.json")})
    if not paths:
        raise ValueError(
            f"no runs in {', '.join(map(str, folders))}: no folder there has a config.json"
        )
    runs = {path: _try_to_read(path) for path in paths}
    problems = [f"{path}: {run['problem']}" for path, run in runs.items() if "problem" in run]
    done = {}
    for path, run in runs.items():  # two sweeps may share a run
        if "problem" not in run and all(
            run["config"] != other["config"] for other in done.values()
        ):
            done[path] = run
    flat = {path: _flatten(run["config"]) for path, run in done.items()}
    varied = _varied(list(flat.values()))
    groups = defaultdict(list)
    for path in done:
        groups[tuple(flat[path].get(key) for key in varied)].append(path)
    rows = []
    for values, members in groups.items():
        figures = {key: [done[path][key] for path in members] for key, _ in COSTS}
        of_members = [done[path]["scores"] for path in members]
        titles = [title for title in of_members[0] if all(title in x for x in of_members)]
        scores = {title: [x[title] for x in of_members] for title in titles}
        name = ", ".join(_short(k, v) for k, v in zip(varied, values, strict=True)) or "base"
        views = sorted({done[path]["views"] for path in members})
        named = {"name": name, "seeds": len(members), "views": views}
        rows.append({**named, "scores": scores, **figures})
    rows.sort(key=lambda row: -statistics.mean(_first(row)))
    return rows, problems


def _first(row: dict[str, Any]) -> list[float]:
    """Returns the score by which runs are compared, of each seed."""
    return next(iter(row["scores"].values()))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table: scores as mean ± standard deviation (lowest to highest) over the
    seeds, medians of the rest; and below it what the scores are of."""
    titles = list(dict.fromkeys(title for row in rows for title in row["scores"]))
    shown = [f"test {title} (%)" for title in titles]
    head = ["run", "seeds", *shown, *(title for _, title in COSTS)]
    lines = [table_row(head), table_row(["---"] + ["---:"] * (len(head) - 1))]
    for row in rows:
        scores = row["scores"]
        cells = [row["name"], str(row["seeds"])]
        cells += [mean_and_spread(scores[t]) if t in scores else "-" for t in titles]
        for key, _ in COSTS:
            value = statistics.median(row[key])
            cells.append(f"{value:.3f}" if key == "parameters" else f"{value:.1f}")
        lines.append(table_row(cells))
    views = sorted({views for row in rows for views in row["views"]})
    lines.append(
        f"\nTest split, best checkpoint by validation, {', '.join(views)} views (clips x crops)."
    )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the first score against multiply-adds, one point per row; bars span its seeds."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        score = _first(row)
        cost, mean = statistics.median(row["multiply_adds"]), statistics.mean(score)
        spread = [[mean - min(score)], [max(score) - mean]]
        axis.errorbar(cost, mean, yerr=spread, fmt="o", capsize=3, label=row["name"])
    title = f"test {next(iter(rows[0]['scores']))} (%)"
    axis.set(xlabel="multiply-adds per clip (M)", ylabel=title, xscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _flatten(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {at: json.dumps(value)}
    items = [_flatten(v, f"{at}.{k}" if at else k) for k, v in value.items()]
    return {key: leaf for item in items for key, leaf in item.items()}


def _varied(configs: list[dict[str, str]]) -> list[str]:
    keys = sorted({key for config in configs for key in config} - {"seed"})
    return [key for key in keys if len({config.get(key) for config in configs}) > 1]


def _short(key: str, value: str | None) -> str:
    value = "" if value is None else json.loads(value)
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if key in ("model.family", "model.kernel") else f"{key.rsplit('.', 1)[-1]} {text}"


def mean_and_spread(values: list[float]) -> str:
    """Returns "mean ± standard deviation (lowest to highest)" of the seeds of a row."""
    mean = f"{statistics.mean(values):.2f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "experiments.collect",
        __doc__,
        "python -m experiments.collect runs/ablate_attention/family",
        "python -m experiments.collect runs/sweep_a runs/sweep_b",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders with runs below them")
    folders = parser.parse_args(argv).folders
    rows, problems = collect(folders)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not rows:
        raise ValueError("none of the runs has finished")
    print(markdown(rows), end="")
    (folders[0] / "table.md").write_text(markdown(rows))
    (folders[0] / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, folders[0] / "accuracy.png")


if __name__ == "__main__":
    run_command(main)
