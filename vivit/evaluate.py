"""python -m vivit.evaluate --workdir=RUN: scores a run's checkpoint on a whole split."""

import argparse
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import vivit
from vivit.cli import add_run_arguments, run_command, show_log
from vivit.config import as_json
from vivit.data.pipeline import Batch, eval_batches
from vivit.data.split import Split
from vivit.data.views import make_views
from vivit.io import read_json, write_json
from vivit.objective import means
from vivit.parallel import Parallel, make_parallel_for_inference
from vivit.run import Run, check_batch_size, evaluation_path
from vivit.step import Step, make_eval_step

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """metrics: means over the clips. confusion: counts [label, predicted class]."""

    metrics: dict[str, float]
    confusion: np.ndarray

    def damaged(self, split: Split) -> int:
        """Returns how many clips could not be read; they count in nothing."""
        return len(split) - int(self.confusion.sum())


def score(eval_step: Step, params: Any, batches: Iterable[Batch], parallel: Parallel) -> Scores:
    """Returns the scores over all batches; padding counts nowhere."""
    results = [eval_step(params, parallel.put(batch)) for batch in batches]
    sums, confusions = zip(*jax.device_get(results), strict=True)
    return Scores(means(list(sums)), np.sum(confusions, axis=0).astype(int))


def evaluate(
    workdir: str | Path, *, checkpoint: str = "best", split: str = "test", views: str = ""
) -> Path:
    """Scores a checkpoint and writes RUN/eval/SPLIT_STEP.json; returns its path.

    views: "4x3" for 4 clips of each video in 3 crops, instead of the config's; the file's name then
        says so.
    """
    run = Run(workdir, checkpoint, split)
    data, (frames, height, width) = run.config.data, run.config.model.clip
    if views:
        data = replace(data, views=replace(data.views, **parse_views(views)))
    predict_views = make_views(data.views, run.data, (height, width))
    parallel = make_parallel_for_inference(run.config.parallel)
    check_batch_size(data.batch_size, parallel.devices)
    model = run.model
    if model.config.kernel.over_devices and not parallel.splits_tokens:
        name = model.config.kernel.name
        log.info("too few devices for kernel %r: evaluating with its equal, chunked", name)
        model = model.with_settings(kernel="chunked")
    eval_step = parallel.evaluate(make_eval_step(model, predict_views=predict_views))
    batches = eval_batches(
        data,
        run.data,
        frames=frames,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    scores = score(eval_step, parallel.place(run.params), batches, parallel)
    result = {
        "split": split,
        "views": f"{data.views.temporal}x{data.views.spatial}",
        "damaged": scores.damaged(run.data),
        "step": run.step,
        "checkpoint": f"checkpoints/{run.step}",
        "clips": int(scores.confusion.sum()),
        **scores.metrics,
        "per_class": per_class(scores.confusion, run.data.class_names),
        "confusion": scores.confusion.tolist(),
        "data": {
            key: getattr(run.data, key)
            for key in ("name", "version", "digest", "label", "class_names")
        },
        "versions": {"vivit": vivit.__version__, "jax": jax.__version__},
        "config": as_json(run.config),
    }
    path = evaluation_path(run.folder, split=split, step=run.step, views=views)
    write_json(path, result)
    return path


def parse_views(text: str) -> dict[str, int]:
    """Returns the fields of ViewsSettings that "4x3" stands for."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise ValueError(f"--views={text} must be like 4x3: 4 clips of each video in 3 crops")
    return {"temporal": int(match[1]), "spatial": int(match[2])}


def per_class(confusion: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns clips, recall and precision of each class; None for a ratio to zero clips."""

    def ratio(hits, total):
        return float(hits / total) if total else None

    return [
        {
            "class": name,
            "clips": int(confusion[i].sum()),
            "recall": ratio(confusion[i, i], confusion[i].sum()),
            "precision": ratio(confusion[i, i], confusion[:, i].sum()),
        }
        for i, name in enumerate(names)
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vivit.evaluate", description=__doc__)
    show_log()
    add_run_arguments(parser)
    parser.add_argument("--views", default="", help="clips x crops of each video, such as 4x3")
    arguments = parser.parse_args(argv)
    path = evaluate(
        arguments.workdir,
        checkpoint=arguments.checkpoint,
        split=arguments.split,
        views=arguments.views,
    )
    _show(read_json(path), path)


def _show(result: dict[str, Any], path: Path) -> None:
    percent = lambda value: "-" if value is None else f"{value:.1%}"
    print(f"{'class':16} {'clips':>6} {'recall':>8} {'precision':>9}")
    for row in result["per_class"]:
        recall, precision = percent(row["recall"]), percent(row["precision"])
        print(f"{row['class']:16} {row['clips']:6} {recall:>8} {precision:>9}")
    top5 = f", top-5 {result['top5']:.2%}" if len(result["per_class"]) > 5 else ""
    print(
        f"{result['split']}: top-1 {result['top1']:.2%}{top5}, "
        f"loss {result['loss']:.4f} over {result['clips']} clips in {result['views']} views "
        f"(step {result['step']}) -> {path}"
    )
    if result["damaged"]:
        print(f"{result['damaged']} clips could not be read and are not counted")


if __name__ == "__main__":
    run_command(main)
