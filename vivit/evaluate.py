"""python -m vivit.evaluate --workdir=RUN: scores a run's checkpoint on a whole split."""

import argparse
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import vivit
from vivit.attention import KERNELS
from vivit.checkpoint import Checkpoints
from vivit.cli import run_command, show_log
from vivit.config import read_workdir
from vivit.data.pipeline import Batch, Batches, Data
from vivit.data.sources import Split
from vivit.data.views import Views
from vivit.io import write_atomically
from vivit.objective import means
from vivit.optim import make_optimizer
from vivit.parallel import Parallel, make_parallel_here
from vivit.step import Step, TrainState, make_eval_step, make_init

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """metrics: means over the clips. confusion: counts [label, predicted class]."""

    metrics: dict[str, float]
    confusion: np.ndarray

    def damaged(self, split: Split) -> int:
        """Clips that could not be read, and count in nothing."""
        return len(split) - int(self.confusion.sum())


def score(eval_step: Step, params: Any, batches: Iterable[Batch], parallel: Parallel) -> Scores:
    """Every clip once: padding has mask 0 and counts nowhere."""
    results = [eval_step(params, parallel.put(batch)) for batch in batches]
    sums, confusions = zip(*jax.device_get(results), strict=True)
    return Scores(means(list(sums)), np.sum(confusions, axis=0).astype(int))


def check_split(split: Split, model_config: Any, data: Data) -> None:
    """ValueError where a model does not fit the data that it is to see."""
    problems = []
    if len(split.class_names) != model_config["classes"]:
        problems.append(
            f"label {split.label!r} needs model.classes={len(split.class_names)}, "
            f"not {model_config['classes']}"
        )
    size = tuple(model_config["clip"][1:])
    if split.smallest < max(size) and not data.enlarge:
        problems.append(
            f"model.clip={tuple(model_config['clip'])} is larger than the smallest frame, whose "
            f"short side is {split.smallest} pixels; lower it, or set data.enlarge=True"
        )
    if data.canvas is not None and min(data.canvas) < max(size):
        problems.append(f"data.canvas={tuple(data.canvas)} is smaller than the crop {size}")
    if problems:
        raise ValueError(f"{split.name}: {'; '.join(problems)}")


def check_batch_size(batch_size: int, devices: int, clips: int | None = None) -> None:
    """ValueError where a batch can't be split over the devices, or is more than there is."""
    if batch_size < 1 or batch_size % devices:
        raise ValueError(f"data.batch_size={batch_size} is not a multiple of the {devices} devices")
    if clips is not None and batch_size > clips:
        raise ValueError(f"data.batch_size={batch_size} is larger than the {clips} training clips")


def local_batches(split: Split, data: Data, *, frames: int, views: int = 1) -> Batches:
    """This process's part of every batch of a split."""
    process, processes = jax.process_index(), jax.process_count()
    return data.evaluate(split, frames=frames, views=views, process=process, processes=processes)


def build_here(model_config: Any) -> vivit.ViViT:
    """The model of a trained run; where its kernel can't run, with the equal "chunked"."""
    kernel = KERNELS[model_config.kernel]
    try:
        return vivit.build(model_config)
    except ValueError as error:
        if kernel.name == "dense" or not kernel.softmax:
            raise
        model = vivit.build({**model_config, "kernel": "chunked"})
        log.info('evaluating with kernel "chunked", which is equal: %s', error)
        return model


def restore(
    workdir: Path, config: Any, *, checkpoint: str
) -> tuple[vivit.ViViT, TrainState, Parallel]:
    """The model of a run's folder and its state at "best", "latest" or a step."""
    model = build_here(config.model)
    parallel = make_parallel_here(**config.parallel)
    check_batch_size(config.data.batch_size, parallel.devices)
    if KERNELS[model.kernel].over_devices and not parallel.splits_tokens:
        log.info("too few devices for kernel %r: evaluating with its equal, chunked", model.kernel)
        model = model.clone(kernel="chunked")
    optimizer, _ = make_optimizer(steps=config.train.steps, **config.optim)
    init = make_init(model, optimizer, average_decay=config.train.average_decay)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.resolve(checkpoint)
        state, _ = checkpoints.restore(step, parallel.abstract(init, config.seed))
    return model, state, parallel


def evaluate(
    workdir: str | Path, *, checkpoint: str = "best", split: str = "test", views: str = ""
) -> Path:
    """Scores a checkpoint and writes RUN/eval/SPLIT_STEP.json; returns its path.

    views: "4x3" for 4 clips of each video in 3 crops, instead of the config's; then in a file
    whose name says so.
    """
    workdir = Path(workdir)
    config = read_workdir(workdir)
    source = Data(**config.data)
    seen = Views(**source.views)
    if views:
        seen = replace(seen, **parse_views(views))
    data = source.open(split)
    check_split(data, config.model, source)
    frames, *size = config.model.clip
    through = seen.build(data, tuple(size))
    model, state, parallel = restore(workdir, config, checkpoint=checkpoint)
    eval_step = parallel.evaluate(make_eval_step(model, classes=model.classes, through=through))
    batches = local_batches(data, source, frames=frames, views=seen.temporal)
    scores = score(eval_step, state.eval_params, batches, parallel)
    step = int(state.step)
    result = {
        "split": split,
        "views": f"{seen.temporal}x{seen.spatial}",
        "damaged": scores.damaged(data),
        "step": step,
        "checkpoint": f"checkpoints/{step}",
        "clips": int(scores.confusion.sum()),
        **scores.metrics,
        "per_class": per_class(scores.confusion, data.class_names),
        "confusion": scores.confusion.tolist(),
        "data": {
            key: getattr(data, key) for key in ("name", "version", "digest", "label", "class_names")
        },
        "versions": {"vivit": vivit.__version__, "jax": jax.__version__},
        "config": json.loads(config.to_json()),
    }
    path = evaluation_path(workdir, split=split, step=step, views=views)
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    return path


def parse_views(text: str) -> dict[str, int]:
    """The fields of Views that "4x3" stands for."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise ValueError(f"--views={text} is no TxS, such as 4x3: clips of a video x crops of each")
    return {"temporal": int(match[1]), "spatial": int(match[2])}


def evaluation_path(workdir: Path, *, split: str, step: int, views: str = "") -> Path:
    """Where the scores of a checkpoint on a split are kept."""
    return workdir / "eval" / f"{split}_{step:08d}{'_' if views else ''}{views}.json"


def per_class(confusion: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Clips, recall and precision of each class; None where there is nothing to divide by."""

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


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """--workdir, --checkpoint and --split: which parameters, and on which clips."""
    parser.add_argument("--workdir", required=True, help="the folder of a run")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest or a step")
    parser.add_argument("--split", default="test")


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
    result = json.loads(path.read_text())
    print(f"{'class':16} {'clips':>6} {'recall':>8} {'precision':>9}")
    for row in result["per_class"]:
        recall, precision = (
            "-" if row[key] is None else f"{row[key]:.1%}" for key in ("recall", "precision")
        )
        print(f"{row['class']:16} {row['clips']:6} {recall:>8} {precision:>9}")
    print(
        f"{result['split']}: top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}, "
        f"loss {result['loss']:.4f} over {result['clips']} clips in {result['views']} views "
        f"(step {result['step']}) -> {path}"
    )
    if result["damaged"]:
        print(f"{result['damaged']} clips could not be read and are not counted")


if __name__ == "__main__":
    run_command(main)
