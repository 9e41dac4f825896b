"""python -m vivit.evaluate --workdir=RUN: scores a run's checkpoint on a whole split."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import vivit
from vivit.cli import add_run_arguments, make_parser, run_command, show_log
from vivit.config import as_json
from vivit.data.pipeline import Batches, eval_batches
from vivit.data.split import Split
from vivit.data.views import make_views
from vivit.io import read_json, write_json
from vivit.objective import Sums, means
from vivit.parallel import Parallel, make_parallel_for_inference
from vivit.processes import (
    add_process_arguments,
    agree,
    connected,
    gather,
    on_first,
    require_shared,
)
from vivit.results import (
    ClipScores,
    average_probabilities,
    has_logits,
    parts_by_head,
    read_clips,
    write_clips,
)
from vivit.run import Run, check_batch_size, evaluation_path
from vivit.step import Step, make_eval_step
from vivit.tasks import Task

log = logging.getLogger(__name__)


class Collected(NamedTuple):
    """What a model says of a split's clips. sums: of the metrics, by batch. rows: of each clip that
    could be read, in their order: "indices", "labels", and what the task keeps."""

    sums: list[Sums]
    rows: dict[str, np.ndarray]

    def damaged(self, split: Split) -> int:
        """Returns how many clips could not be read; they count in nothing."""
        return len(split) - len(self.rows["indices"])


class Scores(NamedTuple):
    """metrics: of all clips. clips: what the model says of each clip."""

    metrics: dict[str, float]
    clips: ClipScores


def collect(eval_step: Step, params: Any, batches: Batches, parallel: Parallel) -> Collected:
    """Returns what a model says of the clips of all batches, without padding."""
    results = []
    for batch in batches:
        results.append(eval_step(params, parallel.put(batch)))
        jax.block_until_ready(results[-2:-1])  # so that few batches are on the devices
    batches.share_damaged()
    sums, parts = zip(*jax.device_get(results), strict=True)
    rows = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(rows["indices"])  # a mesh may order the clips of a batch otherwise
    order = order[rows.pop("valid")[order] > 0]
    return Collected(list(sums), {key: rows[key][order] for key in rows})


def validate(
    eval_step: Step, params: Any, batches: Batches, parallel: Parallel, split: Split
) -> dict[str, float]:
    """Returns the metrics of a split, and how many of its clips are "damaged"."""
    found, task = collect(eval_step, params, batches, parallel), split.task
    if isinstance(task, Task):
        metrics = score(found, task).metrics
    else:
        of_clips = means(found.sums)
        metrics = {**of_clips, **task.whole_metrics(found.rows, of_clips)}
    return {**metrics, "damaged": found.damaged(split)}


def score(found: Collected, task: Task) -> Scores:
    """Returns the scores of what a model says of all clips."""
    rows = found.rows
    clips = ClipScores(rows["indices"].astype(np.int64), rows["labels"], rows["logits"], task)
    return Scores({**means(found.sums), **clips.whole_metrics}, clips)


def score_run(run: Run, *, views: str = "") -> Scores:
    """Returns the scores of a run's checkpoint on its split; views: see `evaluate`."""
    (scores,) = score_params(run, [run.params], views=views)
    return scores


def score_params(
    run: Run,
    variants: Iterable[Any],
    *,
    views: str = "",
    change: Callable[[Any], Any] = lambda clips: clips,
) -> Iterator[Scores]:
    """Yields the scores of a run's model with each of these parameters on its split, by one
    compiled step. views: see `evaluate`. change: of the clips [B, F, H, W, 3] that the model gets.
    """
    agree({"config": as_json(run.config), "step": run.step, "split": run.split, "views": views})
    data, (frames, height, width) = with_views(run, views), run.config.model.clip
    of_views = make_views(data.views, run.data, (height, width))
    predict_views = lambda predict, clips, extents: of_views(
        lambda x: predict(change(x)), clips, extents
    )
    model, parallel = model_for_devices(run)
    check_batch_size(data.batch_size, parallel.devices)
    eval_step = parallel.evaluate(make_eval_step(model, run.task, predict_views=predict_views))
    of_process = {"process": parallel.part, "processes": parallel.parts}
    for params in variants:
        with closing(eval_batches(data, run.data, frames=frames, **of_process)) as batches:
            found = collect(eval_step, parallel.place(params), batches, parallel)
        yield score(found, run.task)


def model_for_devices(run: Run) -> tuple[vivit.ViViT, Parallel]:
    """Returns a run's model for the devices that are present, and those devices."""
    parallel, model = make_parallel_for_inference(run.config.parallel), run.model
    if model.config.kernel.over_devices and not parallel.splits_tokens:
        name = model.config.kernel.name
        log.info("too few devices for kernel %r: evaluating with its equal, chunked", name)
        model = model.with_settings(kernel="chunked")
    return model, parallel


def evaluate(
    workdir: str | Path,
    *,
    checkpoint: str = "best",
    split: str = "test",
    views: str = "",
    logits: bool = False,
    data_root: str | None = None,
) -> Path:
    """Scores a checkpoint and writes RUN/eval/SPLIT_STEP_VIEWS.json; returns its path.

    A .parquet file next to it has one row per clip: see `vivit.results.write_clips`.

    views: "4x3" for 4 clips of each video in 3 crops, instead of the config's. logits: whether the
        rows get the logits of all classes. data_root: where the data is, if not where the run had
        it.
    """
    run = Run(workdir, checkpoint, split, data_root)
    scores = score_run(run, views=views)
    return write_scores(run, scores, views=views, logits=logits)


def write_scores(run: Run, scores: Scores, *, views: str = "", logits: bool = False) -> Path:
    """Writes what `evaluate` writes; returns the path of the JSON file."""
    settings, clips = with_views(run, views).views, scores.clips
    parts = {}
    for label, of_head in clips.heads.items():
        parts[label] = {"per_class": of_head.per_class(run.data.classes[label].names)}
        if of_head.confusion is not None:
            parts[label]["confusion"] = of_head.confusion.tolist()
    if len(parts) == 1:
        (part,) = parts.values()
    else:
        part = {"heads": {k: {**clips.head_metrics(k), **v} for k, v in parts.items()}}
    result = {
        "split": run.split,
        "views": settings.name,
        "damaged": len(run.data) - len(clips.labels),
        "step": run.step,
        "checkpoint": f"checkpoints/{run.step}",
        "clips": len(clips.labels),
        **scores.metrics,
        **part,
        "data": run.data.identity,
        "versions": {"vivit": vivit.__version__, "jax": jax.__version__},
        "config": as_json(run.config),
    }
    path = evaluation_path(run.folder, split=run.split, step=run.step, views=settings.name)
    rows = path.with_suffix(".parquet")

    def write():
        kept = logits or has_logits(rows)  # they are not lost
        write_clips(rows, clips, run.data, logits=kept)
        write_json(path, result)  # last: who finds it finds the rows too

    on_first(write)
    require_shared(path)
    return path


def evaluate_ensemble(
    workdirs: list[str],
    *,
    checkpoint: str = "best",
    split: str = "test",
    views: str = "",
    data_root: str | None = None,
) -> dict[str, ClipScores]:
    """Returns the scores of several runs by name, and last those of "ensemble", whose
    probabilities are the mean of the runs'.

    A run is evaluated unless its file of this checkpoint and these views has logits already.
    Raises ValueError if the runs do not have the same data, task, label and classes.
    """
    if len(workdirs) < 2:
        raise ValueError("an ensemble needs two runs or more: --ensemble RUN1 RUN2")
    members, data, tasks = {}, [], []
    for workdir in workdirs:
        run = Run(workdir, checkpoint, split, data_root)
        settings = with_views(run, views).views
        path = evaluation_path(run.folder, split=split, step=run.step, views=settings.name)
        rows = path.with_suffix(".parquet")
        clips = read_clips(rows, run.task) if gather(path.exists())[0] else None
        if clips is None:
            log.info("evaluating %s", workdir)
            scores = score_run(run, views=views)
            write_scores(run, scores, views=views, logits=True)
            clips = scores.clips
        members[str(workdir)] = clips
        data.append(read_json(path)["data"])
        tasks.append(type(run.task))
    same = ("digest", "label", "class_names")
    other = [
        workdir
        for workdir, d, task in zip(workdirs, data, tasks, strict=True)
        if task is not tasks[0] or any(d[k] != data[0][k] for k in same)
    ]
    if other:
        raise ValueError(
            f"{', '.join(other)}: not the data, task, label or classes of {workdirs[0]}"
        )
    return {**members, "ensemble": average_probabilities(list(members.values()))}


def compare(one: ClipScores, other: ClipScores) -> tuple[int, int, float]:
    """Returns how many clips only the one gets right by every head, only the other, and the p-value
    of McNemar's exact test that both are equally good."""
    from scipy.stats import binomtest  # slow to import, and training does not need it

    a, b = one.right, other.right
    only_one, only_other = int((a & ~b).sum()), int((b & ~a).sum())
    total = only_one + only_other
    return only_one, only_other, float(binomtest(only_one, total).pvalue) if total else 1.0


def with_views(run: Run, views: str) -> Any:
    """Returns a run's DataSettings with views such as "4x3", or for "" as they are."""
    data = run.data_settings
    return replace(data, views=replace(data.views, **parse_views(views))) if views else data


def parse_views(text: str) -> dict[str, int]:
    """Returns the fields of ViewsSettings that "4x3" stands for."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise ValueError(f"--views={text} must be like 4x3: 4 clips of each video in 3 crops")
    return {"temporal": int(match[1]), "spatial": int(match[2])}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.evaluate",
        __doc__,
        "python -m vivit.evaluate --workdir=runs/moving_digits",
        "python -m vivit.evaluate --workdir=runs/k400 --views=4x3 --split=validation --logits",
        "python -m vivit.evaluate --ensemble runs/seed0 runs/seed1",
    )
    show_log()
    which = add_run_arguments(parser)
    which.add_argument(
        "--ensemble",
        nargs="+",
        metavar="RUN",
        help="several runs, whose probabilities are averaged",
    )
    parser.add_argument(
        "--views",
        default="",
        help="4x3 for 4 clips of each video in 3 crops; default: the config's",
    )
    parser.add_argument(
        "--logits", action="store_true", help="keep the logits of every clip in the .parquet file"
    )
    add_process_arguments(parser)
    arguments = parser.parse_args(argv)
    common = {
        "checkpoint": arguments.checkpoint,
        "split": arguments.split,
        "views": arguments.views,
        "data_root": arguments.data_root,
    }
    with connected(arguments):
        if arguments.ensemble:
            members = evaluate_ensemble(arguments.ensemble, **common)
            views, count = arguments.views or "the config's", len(members["ensemble"].labels)
            which = f"{views} views, {arguments.checkpoint} checkpoints"
            print(f"{arguments.split}: {count} clips in {which}")
            _show_ensemble(members)
        else:
            path = evaluate(arguments.workdir, logits=arguments.logits, **common)
            task = Run(arguments.workdir).task
            _show(read_json(path), path, task, checkpoint=arguments.checkpoint)


def _show(result: dict[str, Any], path: Path, task: Task, *, checkpoint: str) -> None:
    for label, part in parts_by_head(result).items():
        if len(task.heads) > 1:
            print(f"{label}:")
        _show_classes(part["per_class"])
    which = f"step {result['step']}" + (", best by validation" if checkpoint == "best" else "")
    print(
        f"{result['split']}: {_in_words(result, task)}, loss {result['loss']:.4f} over "
        f"{result['clips']} clips in {result['views']} views ({which}) -> {path}"
    )
    if result["damaged"]:
        print(f"{result['damaged']} clips could not be read and are not counted")


def _show_classes(rows: list[dict[str, Any]]) -> None:
    names = [name for name in rows[0] if name not in ("class", "clips")]
    titles = [name.replace("_", " ") for name in names]
    print(f"{'class':16} {'clips':>6} " + " ".join(f"{title:>9}" for title in titles))
    for row in rows:
        shown = zip(titles, (row[name] for name in names), strict=True)
        cells = ["-" if x is None else f"{x:.1%}" for _, x in shown]
        padded = " ".join(f"{x:>{max(9, len(t))}}" for x, t in zip(cells, titles, strict=True))
        print(f"{row['class']:16} {row['clips']:6} {padded}")


def _in_words(metrics: dict[str, Any], task: Task) -> str:
    """Returns "top-1 97.00%, ..." of those that the metrics have: files of earlier
    versions have fewer."""
    columns = task.columns().items()
    return ", ".join(f"{title} {metrics[k]:.2%}" for k, title in columns if k in metrics)


def _show_ensemble(members: dict[str, ClipScores]) -> None:
    width = max(map(len, members))
    columns = next(iter(members.values())).task.columns()
    heads = [f"{title:>{max(8, len(title))}}" for title in (*columns.values(), "loss")]
    print(f"{'run':{width}} {' '.join(heads)}")
    for name, clips in members.items():
        values = clips.metrics
        cells = [f"{values[k]:.2%}" for k in columns] + [f"{values['loss']:.4f}"]
        padded = [f"{x:>{len(head)}}" for x, head in zip(cells, heads, strict=True)]
        print(f"{name:{width}} {' '.join(padded)}")
    for (one, a), (other, b) in combinations(members.items(), 2):
        only_one, only_other, p = compare(a, b)
        print(
            f"{one} right alone on {only_one}, {other} on {only_other} clips: McNemar p = {p:.3g}"
        )


if __name__ == "__main__":
    run_command(main)
