"""python -m vivit.analysis.report --workdir=RUN: one HTML file that shows what a run learned.

Scores of all evaluations, mistakes, classes, confusion, learning curves, sample clips with
attention rollout over them, and the attention between time steps. Pictures are inside the file.
"""

import json
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

from vivit.analysis.capture import AttentionMaps, capture
from vivit.analysis.overlay import colour_bar, relative_entropy
from vivit.analysis.page import cards, image, page, percent, picture, table, text
from vivit.analysis.parts import config_details, cost_cards, rollout_films
from vivit.analysis.pretraining_report import write_pretraining_report
from vivit.analysis.rollout import rollout
from vivit.analysis.run import open_run
from vivit.cli import add_run_arguments, make_parser, run_command, show_log
from vivit.evaluate import evaluate
from vivit.io import read_json, write_atomically
from vivit.processes import add_process_arguments, connected, gather, is_first
from vivit.results import ClipScores, best_of_heads, parts_by_head, read_rows
from vivit.run import Run, evaluation_path
from vivit.tasks import Head, Task

SAMPLES = 8  # clips shown, one of each class while there are enough classes
MISTAKES = 12  # clips shown
PAIRS = 15  # confused pairs listed
SMALL = 30  # classes, up to which the confusion is a table of numbers
FRAMES = 4  # of each mistake


def write_report(
    workdir: str | Path,
    *,
    checkpoint: str = "best",
    split: str = "test",
    views: str = "",
    data_root: str | None = None,
) -> Path:
    """Writes RUN/report_SPLIT.html, after an evaluation of the checkpoint; returns its path. The
    report of a run that predicts no labels is about what it learned from clips alone.

    views: "4x3" for other views than the config's. data_root: see `vivit.run.Run`.
    """
    run = open_run(workdir, checkpoint=checkpoint, split=split, data_root=data_root)
    if not isinstance(run.objective, Task):
        return write_pretraining_report(run, views=views)
    name = views or run.config.data.views.name
    path = evaluation_path(run.folder, split=split, step=run.step, views=name)
    rows = path.with_suffix(".parquet")
    if not gather(path.exists() and rows.exists())[0]:
        evaluate(workdir, checkpoint=str(run.step), split=split, views=views, data_root=data_root)
    params, out = run.params, run.folder / f"report_{split}.html"  # read by all processes together
    if not is_first():
        return out
    scores, clip_rows = read_json(path), read_rows(rows)
    images, labels = run.clips(run.one_of_each_class(SAMPLES))
    maps = capture(run.model, params, images)
    sections = [("Evaluations", _evaluations(run, scores))]
    for head in run.task.heads:
        part = parts_by_head(scores)[head.label]
        of = f" of {head.label}" if len(run.task.heads) > 1 else ""
        sections += [
            (f"Mistakes{of}", _mistakes(run, _rows_of_head(run.task, head, clip_rows))),
            (f"Classes{of}", _classes(part)),
        ]
        if "confusion" in part:
            names = run.data.classes[head.label].names
            drawn = draw_confusion(np.array(part["confusion"]), names)
            sections.append((f"Confusion{of}", drawn))
    curves = draw_curves(columns(run.metrics), run.task)
    sections += [
        ("Learning", picture(curves, alt="learning curves")),
        ("Where it looks", _samples(run, maps, images, labels)),
        ("Between time steps", _over_time(maps)),
        ("Config", config_details(scores["config"])),
    ]
    model = scores["config"]["model"]
    title = f"{scores['data']['name']}: {model['family']}"
    write_atomically(out, page(title, _header(scores, run), sections))
    plt.close("all")
    return out


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


def draw_over_time(weights: Float[np.ndarray, "L h Tq Tk"], title: str) -> Figure:
    """Draws weights as one picture: a square per layer (row of squares) and head (column)."""
    layers, heads, queries, keys = weights.shape
    gap = max(1, keys // 8)
    canvas = np.full((layers * (queries + gap) - gap, heads * (keys + gap) - gap), np.nan)
    for layer, head in np.ndindex(layers, heads):
        y, x = layer * (queries + gap), head * (keys + gap)
        canvas[y : y + queries, x : x + keys] = weights[layer, head]
    size = (min(1.4 * heads + 1.6, 12), min(1.4 * layers + 0.8, 14))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    drawn = axis.imshow(canvas, vmin=0, vmax=np.nanmax(canvas), interpolation="nearest")
    middle = lambda count, size: np.arange(count) * (size + gap) + (size - 1) / 2
    axis.set_xticks(middle(heads, keys), [f"head {i}" for i in range(heads)], fontsize=8)
    axis.set_yticks(middle(layers, queries), [f"layer {i}" for i in range(layers)], fontsize=8)
    axis.tick_params(length=0)
    axis.set_title(title, fontsize=10)
    axis.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="weight")
    return figure


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> str:
    """Returns counts of labels (rows) against predictions as HTML; the colour is the fraction of
    the row.

    Many classes are a picture in which classes that are confused stand next to each other.
    """
    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    about = "<p>Labels are rows, predictions columns; the colour is the part of the row.</p>"
    if len(names) <= SMALL:
        head = "".join(f"<th>{text(name)}</th>" for name in names)
        lines = [
            f"<tr><th>{text(name)}</th>" + "".join(map(_matrix_cell, row, parts)) + "</tr>"
            for name, row, parts in zip(names, confusion, fractions, strict=True)
        ]
        return (
            f'{about}<table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table>"
        )
    order = similar_first(fractions)
    shown = fractions[np.ix_(order, order)]
    colours = (matplotlib.colormaps["Blues"](shown**0.5)[..., :3] * 255).astype(np.uint8)
    counts = confusion[np.ix_(order, order)]
    cells = {f"{i},{j}": int(counts[i, j]) for i, j in np.argwhere(counts)}
    data = json.dumps({"names": [names[i] for i in order], "counts": cells}).replace("<", "\\u003c")
    return (
        f"{about}<p>Classes that are confused stand next to each other. Point at a place to see "
        f'which it is: <span id="hover" class="quiet"></span></p>'
        f"{image(colours, alt='confusion of all classes', id='confusion-map')}"
        f'<script type="application/json" id="confusion-data">{data}</script>'
    )


def similar_first(fractions: Float[np.ndarray, "classes classes"]) -> list[int]:
    """Returns an order of the classes in which those that are confused are neighbours."""
    both = fractions + fractions.T
    distance = 1 - both / max(float(both.max()), 1e-12)
    upper = distance[np.triu_indices(len(both), 1)]
    return leaves_list(linkage(upper, "average")).tolist()


def _matrix_cell(count: int | np.integer, part: float | np.floating) -> str:
    red, green, blue = (int(255 * x) for x in matplotlib.colormaps["Blues"](0.9 * part)[:3])
    ink = "#fff" if part > 0.5 else "#1b1f24"
    shown = count if count else ""
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{shown}</td>'


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


def _mistakes(run: Run, rows: list[dict[str, Any]]) -> str:
    wrong = [row for row in rows if row["classes"][0] not in row["label"]]
    if not wrong:
        return f"<p>None: all {len(rows)} clips are right.</p>"
    wrong.sort(key=lambda row: -row["probabilities"][0])
    pairs: dict[tuple[str, str], int] = {}
    clips_of: dict[str, int] = {}
    for row in rows:
        clips_of[_title(row)] = clips_of.get(_title(row), 0) + 1
    for row in wrong:
        pair = _title(row), row["classes"][0]
        pairs[pair] = pairs.get(pair, 0) + 1
    listed = sorted(pairs.items(), key=lambda item: -item[1])[:PAIRS]
    cells = [(a, b, n, percent(n / clips_of[a])) for (a, b), n in listed]
    images, _ = run.clips([row["index"] for row in wrong[:MISTAKES]])
    figures = "".join(map(_mistake, wrong[:MISTAKES], images))
    return (
        f"<p>{len(wrong)} of {len(rows)} clips are wrong; the most confident first.</p>"
        f'<div class="grid">{figures}</div><h3>Most confused</h3>'
        f"{table(('label', 'predicted', 'clips', 'of the label'), cells)}"
    )


def _title(row: dict[str, Any]) -> str:
    return ", ".join(row["label"]) or "none"


def _mistake(row: dict[str, Any], clip: np.ndarray) -> str:
    chosen = np.linspace(0, len(clip) - 1, FRAMES).round().astype(int)
    strip = np.concatenate(list(clip[chosen]), axis=1)
    small = clip.shape[1] < 64
    shown = image(strip, alt="frames of the clip", scale=2 if small else 1, crisp=small)
    kind = {row["classes"][0]: "wrong", **dict.fromkeys(row["label"], "correct")}
    best = ", ".join(
        f'<span class="{kind.get(name, "")}">{text(name)} {p:.1%}</span>'
        for name, p in zip(row["classes"][:3], row["probabilities"], strict=False)
    )
    return (
        f"<figure>{shown}<figcaption><b>{text(_title(row))}</b>, predicted "
        f"{best}, loss {row['loss']:.2f}<br>"
        f'<span class="quiet">{text(row["path"])} {text(row["segment"])}</span>'
        f"</figcaption></figure>"
    )


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


def _samples(run: Run, maps: AttentionMaps, clips: np.ndarray, labels: np.ndarray) -> str:
    parts, config = np.asarray(rollout(maps)), maps.model.config
    logits = np.asarray(maps.logits)
    scores = ClipScores(np.arange(len(clips)), labels, logits, run.task)
    best = best_of_heads(run.task, run.task.probabilities(logits), run.data.class_names, k=1)
    about = (
        "<p>Attention rollout from the readout back to the tokens, against a uniform map (1/N for "
        "each of N tokens): plain where a token has as much, coloured where it has more, dark "
        "where it has less. Entropy 100% is a uniform map.</p><p>1/4 of uniform "
        f"{image(colour_bar(), alt='colours from a quarter of uniform to 4 times', crisp=False)} "
        "4 times uniform</p>"
    )
    figures = []
    shown = zip(clips, parts, run.titles(labels), best, scores.right, strict=True)
    for clip, part, title, of_heads, right in shown:
        guess = ", ".join(f"{text(name)} ({p:.0%})" for ((name, p),) in of_heads.values())
        verdict = "correct" if right else "wrong"
        films, covered = rollout_films(clip, part, config)
        figures.append(
            f"<figure>{films}"
            f"{_filmstrip(clip, covered, config.grid[0])}<figcaption>"
            f"<b>{text(title)}</b>: predicted {guess}, "
            f'<span class="{verdict}">{verdict}</span>; '
            f"entropy {relative_entropy(part):.1%}</figcaption></figure>"
        )
    return f'{about}<div class="grid">{"".join(figures)}</div>'


def _filmstrip(clip: np.ndarray, covered: np.ndarray, steps: int) -> str:
    """Returns the middle frame of each tubelet: plain above, with the rollout below."""
    frames = np.arange(steps) * len(clip) // steps + len(clip) // steps // 2
    lines = [np.concatenate(list(x[frames]), axis=1) for x in (clip, covered)]
    small = clip.shape[1] < 64
    strip = np.concatenate(lines)
    return image(strip, alt="frames and rollout", scale=2 if small else 1, crisp=small)


def _over_time(maps: AttentionMaps) -> str:
    kinds = dict.fromkeys((a.stage, a.pattern) for a in maps.attentions)
    timely = [(stage, pattern.label) for stage, pattern in kinds if "t" in pattern.axes]
    if not timely:
        return "<p>No layer of this model mixes time steps.</p>"
    parts = [
        "<p>Weight from each time step (row of a square) to each time step (column), averaged over "
        "the clips above and over spatial tokens.</p>"
    ]
    for stage, name in timely:
        weights = np.asarray(maps.over_time(stage=stage, pattern=name)).mean(axis=1)
        title = f"stage {stage}, {name} attention"
        parts.append(picture(draw_over_time(weights, title), alt=title))
    return "".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.report",
        __doc__,
        "python -m vivit.analysis.report --workdir=runs/moving_digits",
        "python -m vivit.analysis.report --workdir=runs/mine --split=validation --views=4x3",
    )
    show_log()
    add_run_arguments(parser)
    parser.add_argument("--views", default="", help="4x3 for 4 clips of each video in 3 crops")
    add_process_arguments(parser)
    arguments = parser.parse_args(argv)
    with connected(arguments):
        path = write_report(
            arguments.workdir,
            checkpoint=arguments.checkpoint,
            split=arguments.split,
            views=arguments.views,
            data_root=arguments.data_root,
        )
        print(f"open {path}")


if __name__ == "__main__":
    run_command(main)
