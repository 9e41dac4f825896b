"""python -m vivit.probe --workdir=RUN --label=LABEL: what frozen features say of a label.

Probes are fitted on the features of training clips, their options are chosen on the validation
split, and the accuracy is that on the test split, once. The same model with random parameters
is probed too, as a baseline.
"""

import argparse
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from vivit.cli import add_checkpoint_argument, make_parser, run_command, show_log
from vivit.data.pipeline import eval_batches
from vivit.data.sources import open_split
from vivit.data.split import Split
from vivit.data.views import make_views
from vivit.evaluate import collect, model_for_devices
from vivit.io import write_json
from vivit.objective import Sums
from vivit.parallel import Parallel
from vivit.pretraining.probes import PROBES, Features, Probe, fit
from vivit.run import Run
from vivit.step import make_eval_step
from vivit.tasks import Classify


class Reading(Classify):
    """Reads features: nothing is predicted of the clips."""

    def losses(self, outputs: Any, batch: Any, *, label_smoothing: Any = 0.0) -> list[Array]:
        return []

    def sums(self, losses: Any, outputs: Any, batch: Any) -> Sums:
        return {}

    def kept(self, outputs: Any) -> dict[str, Array]:
        return {"features": outputs}


def probe(
    run: Run, *, label: str, clips: int = 0, random_seed: int = 0
) -> dict[str, dict[str, Probe]]:
    """Returns "trained" and "random" -> name of a probe -> its accuracies.

    clips: how many labelled clips of the training split the probes get, 0 for all. random_seed: of
    the random parameters. Raises ValueError for a label that the data lack.
    """
    data = replace(run.data_settings, label=label)
    data = replace(data, views=data.views.centre())
    names = (*data.splits[:2], "test")
    splits = [open_split(data, name) for name in names]
    if any(split.classes[label].several for split in splits):
        raise ValueError(f"a clip may have several classes of {label!r}; probe a label with one")
    splits[0] = splits[0].some(clips)
    model, parallel = model_for_devices(run)
    model = model.with_settings(classes=0)
    drawn = model.init(jax.random.key(random_seed), *model.example())["params"]
    trained = {name: run.params[name] for name in drawn}  # without a head
    tables: dict[str, dict[str, Probe]] = {}
    for name, params in (("trained", trained), ("random", jax.device_get(drawn))):
        placed = parallel.place(params)
        features = [_read(model, placed, parallel, split, data) for split in splits]
        tables[name] = {kind: fit(kind, *features) for kind in PROBES}
    return tables


def _read(model: Any, params: Any, parallel: Parallel, split: Split, data: Any) -> Features:
    reading = Reading({label: 1 for label in split.task.labels})
    frames, *size = model.config.clip
    step = make_eval_step(model, reading, predict_views=make_views(data.views, split, tuple(size)))
    of_process = {"process": parallel.part, "processes": parallel.parts}
    with closing(eval_batches(data, split, frames=frames, **of_process)) as batches:
        rows = collect(parallel.evaluate(step), params, batches, parallel).rows
    return Features(rows["features"].astype(np.float64), rows["labels"])


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.probe",
        __doc__,
        "python -m vivit.probe --workdir=runs/mae_digits --label=motion",
        "python -m vivit.probe --workdir=runs/mae_digits --label=motion --clips=80",
    )
    parser.add_argument("--workdir", metavar="RUN", required=True, help="the folder of a run")
    parser.add_argument("--label", required=True, help="what the probes predict")
    parser.add_argument(
        "--clips", type=int, default=0, help="labelled clips that the probes get (default: all)"
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, help="of the model with random parameters (0)"
    )
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data sets are now")
    add_checkpoint_argument(parser)
    show_log()
    arguments = parser.parse_args(argv)
    run = Run(arguments.workdir, arguments.checkpoint, data_root=arguments.data_root)
    tables = probe(
        run, label=arguments.label, clips=arguments.clips, random_seed=arguments.random_seed
    )
    show(tables)
    path = write(run, tables, arguments)
    print(f"-> {path}")


def show(tables: dict[str, dict[str, Probe]]) -> None:
    """Prints the accuracies on the test split."""
    print(f"{'encoder':10}" + "".join(f"{kind:>22}" for kind in PROBES))
    for name, probes in tables.items():
        cells = [f"{x.test:.2%} (option {x.option:g})" for x in probes.values()]
        print(f"{name:10}" + "".join(f"{cell:>22}" for cell in cells))


def write(run: Run, tables: dict[str, dict[str, Probe]], arguments: argparse.Namespace) -> Path:
    """Writes RUN/probe/LABEL_STEP_CLIPS.json; returns its path."""
    which = arguments.clips or "all"
    path = run.folder / "probe" / f"{arguments.label}_{run.step:08d}_{which}.json"
    found = {name: {k: x._asdict() for k, x in probes.items()} for name, probes in tables.items()}
    options = {key: getattr(arguments, key) for key in ("label", "clips", "random_seed")}
    write_json(path, {**options, "step": run.step, **found}, indent=2)
    return path


if __name__ == "__main__":
    run_command(main)
