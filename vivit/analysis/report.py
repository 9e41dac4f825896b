"""The page of a run, one HTML file: a viewer of clips and attention, and what was evaluated."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from vivit.analysis.attribution import check_methods
from vivit.analysis.page import cards, image, page, percent, picture, table, text
from vivit.analysis.parts import config_details, cost_cards
from vivit.analysis.pretraining_report import write_pretraining_report
from vivit.analysis.run import open_run
from vivit.analysis.viewer import ViewedClip, viewer
from vivit.analysis.windows import clips_of_video
from vivit.evaluate import evaluate
from vivit.io import read_json, write_atomically
from vivit.processes import gather, is_first
from vivit.results import parts_by_head, read_rows
from vivit.run import Run, evaluation_path
from vivit.tasks import Head, Task

SHOWN = 16  # clips in the viewer
LISTED = 100  # mistakes
PAIRS = 15  # confused pairs listed
SMALL = 30  # classes, up to which the confusion is a table of numbers


def write_report(
    workdirs: Sequence[str | Path],
    *,
    checkpoint: str = "best",
    split: str = "test",
    views: str = "",
    data_root: str | None = None,
    clips: Sequence[int] | None = None,
    video: str | Path | None = None,
    methods: Sequence[str] | None = None,
    out: str | Path | None = None,
) -> Path:
    """Writes a page of one or two runs, and returns its path.

    It has a viewer of clips of the split, for both runs, and scores and confusion of the first one,
    whose checkpoint is evaluated if that was not done. Of a run that predicts no labels it is about
    what was learned from clips alone.

    views: "4x3" for other views than the config's. data_root: see `vivit.run.Run`. clips: numbers
    of clips of the split; None for SHOWN that are wrong and right. video: a file to view instead,
    without scores. methods: of attribution; None for `usual_methods`. out: None for
    report_SPLIT.html, or VIDEO.html, in the first run.

    Raises ValueError for runs, clips or a video that do not fit together.
    """
    runs = [
        open_run(workdir, checkpoint=checkpoint, split=split, data_root=data_root)
        for workdir in workdirs
    ]
    run = runs[0]
    without = [of.folder for of in runs if not isinstance(of.objective, Task)]
    if without and (len(runs) > 1 or not (clips is video is methods is out is None)):
        raise ValueError(f"{without[0]} predicts no labels: its page is of this run alone")
    if without:
        return write_pretraining_report(run, views=views)
    check_methods(methods or ())
    if video is not None:
        path = Path(out or run.folder / f"{Path(video).stem}.html")
        _ = [of.params for of in runs]  # read by all processes together
        if is_first():
            title = f"{Path(video).name}: {run.folder.resolve().name}"
            viewed = viewer(runs, *_of_video(runs, Path(video)), methods=methods)
            write_atomically(path, page(title, "", [("", viewed)]))
        return path
    run.check_indices(clips or ())
    _check_same_clips(runs)
    scores, rows = _evaluated(run, views)
    _ = [(of.params, of.data) for of in runs]  # read by all processes together
    path = Path(out or run.folder / f"report_{split}.html")
    if is_first():
        numbers = choose_clips(run, rows) if clips is None else list(clips)
        viewed = viewer(runs, *_of_split(runs, numbers), methods=methods)
        model = scores["config"]["model"]
        title = f"{scores['data']['name']}: {model['family']}"
        sections = [("", viewed), *_results(run, scores, rows, numbers)]
        write_atomically(path, page(title, _header(scores, run), sections))
        plt.close("all")
    return path


def _evaluated(run: Run, views: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the scores of a checkpoint and those of each clip, after an evaluation if need be."""
    name = views or run.config.data.views.name
    path = evaluation_path(run.folder, split=run.split, step=run.step, views=name)
    rows = path.with_suffix(".parquet")
    if not gather(path.exists() and rows.exists())[0]:
        evaluate(
            run.workdir,
            checkpoint=str(run.step),
            split=run.split,
            views=views,
            data_root=run.data_root,
        )
    return read_json(path), read_rows(rows)


def choose_clips(run: Run, rows: list[dict[str, Any]], *, count: int = SHOWN) -> list[int]:
    """Returns numbers of clips to show: up to half of them wrong ones, the most confident first,
    and one of each class."""
    wrong = [
        row["index"]
        for head in run.task.heads
        for row in _wrong(_rows_of_head(run.task, head, rows))
    ]
    mistakes = list(dict.fromkeys(wrong))[: count // 2]
    others = [i for i in run.one_of_each_class(count) if i not in mistakes]
    return (mistakes + others)[:count]


def _of_split(runs: Sequence[Run], numbers: list[int]) -> tuple[list[np.ndarray], list[ViewedClip]]:
    """Returns the clips of these numbers as each run gets them, and what the page says of them."""
    data, about = runs[0].data, []
    found = [run.clips(numbers) for run in runs]
    for i, title in zip(numbers, runs[0].titles(found[0][1]), strict=True):
        label = {
            of: [data.classes[of].names[k] for k in np.ravel(x).tolist()]
            for of, x in data.labels_of(i).items()
        }
        about.append(ViewedClip(f"{i}: {title}", label))
    return [clips for clips, _ in found], about


def _check_same_clips(runs: Sequence[Run]) -> None:
    """Raises ValueError for a run that reads other clips than the first one."""
    first = runs[0]
    for run in runs[1:]:
        if (run.data.digest, run.task.labels) != (first.data.digest, first.task.labels):
            raise ValueError(
                f"{run.folder} reads other clips, or predicts other labels, than {first.folder}"
            )


def _of_video(runs: Sequence[Run], path: Path) -> tuple[list[np.ndarray], list[ViewedClip]]:
    """Returns windows of a video as each run gets them, at most SHOWN from its whole length."""
    found = [clips_of_video(path, run.model, run.config.data, clips=SHOWN) for run in runs]
    clips = [x for x, _ in found]
    about = [[ViewedClip(f"{at:.1f} s") for at in begins] for _, begins in found]
    if any(x != about[0] for x in about):
        raise ValueError(
            "the runs cut the video into different clips; give one run, or runs of one sampling"
        )
    return clips, about[0]


def _results(
    run: Run, scores: dict[str, Any], rows: list[dict[str, Any]], shown: list[int]
) -> list[tuple[str, str]]:
    """Returns the sections of a page about an evaluation."""
    sections = [("Evaluations", _evaluations(run, scores))]
    for head in run.task.heads:
        part = parts_by_head(scores)[head.label]
        of = f" of {head.label}" if len(run.task.heads) > 1 else ""
        of_head = _rows_of_head(run.task, head, rows)
        sections += [
            (f"Mistakes{of}", _mistakes(of_head, shown)),
            (f"Classes{of}", _classes(part)),
        ]
        if "confusion" in part:
            names = run.data.classes[head.label].names
            drawn = draw_confusion(np.array(part["confusion"]), names, head=head.label)
            sections.append((f"Confusion{of}", drawn))
    curves = draw_curves(columns(run.metrics), run.task)
    return [
        *sections,
        ("Learning", picture(curves, alt="learning curves")),
        ("Config", config_details(scores["config"])),
    ]


def columns(rows: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Returns a run's metrics as split -> metric -> values, with training steps as "step"."""
    splits: dict[str, dict[str, np.ndarray]] = {}
    for split in sorted({row["split"] for row in rows}):
        of_split = [row for row in rows if row["split"] == split]
        keys = of_split[0].keys() - {"split"}
        splits[split] = {key: np.array([row[key] for row in of_split]) for key in keys}
    return splits


def draw_curves(metrics: dict[str, dict[str, np.ndarray]], task: Task) -> Figure:
    """Draws loss, the metric that checkpoints are compared by, and learning rate against the
    training step."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    best = task.best
    for split, values in metrics.items():
        style = "o-" if split == "validation" else "-"
        axes[0].plot(values["step"], values["loss"], style, label=split, markersize=4)
        if best in values:
            axes[1].plot(values["step"], 100 * values[best], style, label=split, markersize=4)
    axes[2].plot(metrics["train"]["step"], metrics["train"]["lr"])
    titles = ("loss (nats)", f"{task.columns()[best]} (%)", "learning rate")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0].legend()
    return figure


def draw_confusion(confusion: np.ndarray, names: Sequence[str], *, head: str = "") -> str:
    """Returns counts of labels (rows) against predictions of a head as HTML; the colour is the
    fraction of the row.

    Many classes are a picture in which classes that are confused stand next to each other.
    """
    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    about = (
        "<p>Labels are rows, predictions columns; the colour is the part of the row. A click shows "
        "the clips of a cell that are on this page.</p>"
    )
    if len(names) <= SMALL:
        titles = "".join(f"<th>{text(name)}</th>" for name in names)
        lines = [
            f"<tr><th>{text(name)}</th>{_matrix_row(head, name, names, *of_label)}</tr>"
            for name, *of_label in zip(names, confusion, fractions, strict=True)
        ]
        return (
            f'{about}<table class="matrix"><thead><tr><th></th>{titles}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table>"
        )
    order = similar_first(fractions)
    shown = fractions[np.ix_(order, order)]
    colours = (matplotlib.colormaps["Blues"](shown**0.5)[..., :3] * 255).astype(np.uint8)
    counts = confusion[np.ix_(order, order)]
    cells = {f"{i},{j}": int(counts[i, j]) for i, j in np.argwhere(counts)}
    data = {"head": head, "names": [names[i] for i in order], "counts": cells}
    written = json.dumps(data).replace("<", "\\u003c")
    return (
        f'<div class="confusion">{about}<p>Classes that are confused stand next to each other. '
        'Point at a place to see which it is: <span class="hover quiet"></span></p>'
        f"{image(colours, alt='confusion of all classes', kind='confusion-map')}"
        f'<script type="application/json">{written}</script></div>'
    )


def similar_first(fractions: Float[np.ndarray, "classes classes"]) -> list[int]:
    """Returns an order of the classes in which those that are confused are neighbours."""
    both = fractions + fractions.T
    distance = 1 - both / max(float(both.max()), 1e-12)
    upper = distance[np.triu_indices(len(both), 1)]
    return leaves_list(linkage(upper, "average")).tolist()


def _matrix_row(
    head: str, label: str, names: Sequence[str], counts: np.ndarray, parts: np.ndarray
) -> str:
    cells = []
    for predicted, count, part in zip(names, counts, parts, strict=True):
        red, green, blue = (int(255 * x) for x in matplotlib.colormaps["Blues"](0.9 * part)[:3])
        ink = "#fff" if part > 0.5 else "#1b1f24"
        of = f'data-head="{text(head)}" data-label="{text(label)}"'
        of = f'{of} data-predicted="{text(predicted)}"' if count else ""
        style = f"background:rgb({red},{green},{blue});color:{ink}"
        cells.append(f'<td {of} style="{style}">{count or ""}</td>')
    return "".join(cells)


def _header(scores: dict[str, Any], run: Run) -> str:
    model, data = scores["config"]["model"], scores["data"]
    shown = {title: scores[k] for k, title in run.task.columns().items() if k in scores}
    values = [(title, f"{value:.2%}") for title, value in shown.items()]
    values += [("loss (nats)", f"{scores['loss']:.4f}")]
    values += [(f"{scores['split']} clips", f"{scores['clips']:,}")]
    if scores["damaged"]:
        values.append(("clips that could not be read", str(scores["damaged"])))
    return (
        f'<p class="quiet">Run {text(run.folder.resolve().name)}, checkpoint of step '
        f"{scores['step']}. Split {text(scores['split'])} in {scores['views']} views (clips x "
        f"crops of each video). Data {text(data['name'])} {data['version']}, label "
        f"<i>{text(data['label'])}</i>, digest {data['digest'][:16]}. {model['kernel']} attention, "
        f"{model['readout']} readout.</p>"
        f"{cards([*values, *cost_cards(run)])}"
    )


def _evaluations(run: Run, scores: dict[str, Any]) -> str:
    key = lambda x: (x["split"], x["step"], x["views"])
    found, columns = run.evaluations(), run.task.columns()
    rows = [
        (
            *(x["split"], x["step"], x["views"], x["clips"]),
            *(percent(x.get(k), digits=2) for k in columns),
            (x["loss"], f"{x['loss']:.4f}"),
        )
        for x in found
    ]
    head = ("split", "step", "views", "clips", *columns.values(), "loss")
    now = [i for i, x in enumerate(found) if key(x) == key(scores)]
    about = "<p>All evaluations of this run; the rest of the page is of the one in colour.</p>"
    return about + table(head, rows, marked=now)


def _rows_of_head(task: Task, head: Head, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows of a head: "label" has the names of all classes of a clip."""
    made = []
    for row in rows:
        of_head = {k: row[task.key(head, k)] for k in ("label", "classes", "probabilities")}
        label = of_head["label"]
        made.append({**row, **of_head, "label": label if task.several else [label]})
    return made


def _wrong(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of a head's mistakes, the most confident first."""
    wrong = [row for row in rows if row["classes"][0] not in row["label"]]
    return sorted(wrong, key=lambda row: -row["probabilities"][0])


def _mistakes(rows: list[dict[str, Any]], shown: list[int]) -> str:
    wrong = _wrong(rows)
    if not wrong:
        return f"<p>None: all {len(rows)} clips are right.</p>"
    pairs = Counter((_title(row), row["classes"][0]) for row in wrong)
    clips_of = Counter(map(_title, rows))
    most = [(a, b, n, percent(n / clips_of[a])) for (a, b), n in pairs.most_common(PAIRS)]
    listed = [
        (
            row["index"],
            _title(row),
            row["classes"][0],
            percent(row["probabilities"][0]),
            (row["loss"], f"{row['loss']:.2f}"),
            f"{row['path']} {row['segment']}",
            "above" if row["index"] in shown else "",
        )
        for row in wrong[:LISTED]
    ]
    head = ("clip", "label", "predicted", "probability", "loss", "file", "shown")
    return (
        f"<p>{len(wrong)} of {len(rows)} clips are wrong; the most confident first. --clips shows "
        f'others.</p><div class="scroll">{table(head, listed)}</div><h3>Most confused</h3>'
        f"{table(('label', 'predicted', 'clips', 'of the label'), most)}"
    )


def _title(row: dict[str, Any]) -> str:
    return ", ".join(row["label"]) or "none"


def _classes(part: dict[str, Any]) -> str:
    rates = [name for name in part["per_class"][0] if name not in ("class", "clips")]
    head = ["class", "clips", *(name.replace("_", " ") for name in rates)]
    rows = [
        [row["class"], row["clips"], *(percent(row[name]) for name in rates)]
        for row in part["per_class"]
    ]
    if "confusion" in part:
        head.append("most often taken for")
        confusion = np.array(part["confusion"])
        others = confusion - np.diag(np.diag(confusion))
        for row, counts in zip(rows, others, strict=True):
            other = int(counts.argmax())
            count, name = int(counts[other]), part["per_class"][other]["class"]
            row.append((count, f"{name} ({count})" if count else ""))
    return f'<p>Click a head to sort.</p><div class="scroll">{table(head, rows)}</div>'
