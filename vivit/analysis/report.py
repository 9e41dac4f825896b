"""python -m vivit.analysis.report --workdir=RUN: one HTML file that shows what a run learned.

Curves, the confusion matrix, sample clips with attention rollout over them, and the attention
between time steps of the layers that mix time. Pictures are inside the file.
"""

import argparse
import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vivit.analysis.capture import AttentionMaps, capture
from vivit.analysis.overlay import heat_on_frames, overlay
from vivit.analysis.rollout import rollout
from vivit.analysis.run import open_run
from vivit.cli import add_run_arguments, run_command, show_log
from vivit.evaluate import evaluate
from vivit.io import read_json, write_atomically

SAMPLES = 8  # clips shown, one of each class while there are enough classes


def write_report(workdir: str | Path, *, checkpoint: str = "best", split: str = "test") -> Path:
    """Writes RUN/report.html, after an evaluation of the checkpoint, and returns its path."""
    run = open_run(workdir, checkpoint=checkpoint, split=split)
    scores = run.scores(step=run.step)
    if scores is None:
        scores = read_json(evaluate(workdir, checkpoint=str(run.step), split=split))
    clips, labels = run.clips(run.one_of_each_class(SAMPLES))
    names = run.data.class_names
    maps = capture(run.model, run.params, clips)
    sections = [
        ("Learning", [picture(draw_curves(columns(run.metrics)))]),
        ("Confusion", [picture(draw_confusion(scores["confusion"], names))]),
        ("Where it looks", _samples(maps, clips, labels, names)),
        ("Between time steps", _over_time(maps)),
    ]
    path = run.folder / "report.html"
    write_atomically(path, _page(scores, _summary(scores, run.folder), sections))
    return path


def columns(rows: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Returns a run's metrics as split -> metric -> values, with training steps as "step"."""
    splits: dict[str, dict[str, np.ndarray]] = {}
    for split in sorted({row["split"] for row in rows}):
        of_split = [row for row in rows if row["split"] == split]
        keys = of_split[0].keys() - {"split"}
        splits[split] = {key: np.array([row[key] for row in of_split]) for key in keys}
    return splits


def draw_curves(metrics: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draws loss, accuracy and learning rate against the training step."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for split, values in metrics.items():
        style = "o-" if split == "validation" else "-"
        axes[0].plot(values["step"], values["loss"], style, label=split, markersize=4)
        axes[1].plot(values["step"], 100 * values["top1"], style, label=split, markersize=4)
    axes[2].plot(metrics["train"]["step"], metrics["train"]["lr"])
    titles = ("loss (nats)", "top-1 accuracy (%)", "learning rate")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0].legend()
    return figure


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Draws counts of labels (rows) against predictions; the colour is the fraction of the row."""
    counts = np.array(confusion)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.6 + 0.55 * len(names)
    figure, axis = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 30:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if fractions[i, j] > 0.5 else "black"
                axis.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="label")
    return figure


def draw_filmstrip(clip: np.ndarray, heat: np.ndarray, steps: int) -> Figure:
    """Draws the middle frame of each tubelet: plain above, with the heat over it below."""
    frames = np.arange(steps) * len(clip) // steps + len(clip) // steps // 2
    covered = overlay(clip, heat)
    figure, axes = plt.subplots(
        2, steps, figsize=(1.2 * steps, 2.5), layout="constrained", squeeze=False
    )
    for column, frame in enumerate(frames):
        axes[0, column].imshow(clip[frame])
        axes[1, column].imshow(covered[frame])
        axes[0, column].set_title(f"frame {frame}", fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def draw_over_time(weights: np.ndarray, title: str) -> Figure:
    """Draws weights [L, h, Tq, Tk], one picture per layer (rows) and head (columns)."""
    layers, heads = weights.shape[:2]
    figure, axes = plt.subplots(
        layers,
        heads,
        figsize=(1.9 * heads + 1, 1.9 * layers + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for (layer, head), axis in np.ndenumerate(axes):
        image = axis.imshow(weights[layer, head], cmap="viridis", vmin=0, vmax=weights.max())
        axis.set(xticks=[], yticks=[], title=f"head {head}" if layer == 0 else "")
        axis.set_ylabel(f"layer {layer}\nquery time step" if head == 0 else "")
        axis.set_xlabel("key time step" if layer == layers - 1 else "")
    figure.colorbar(image, ax=axes, shrink=0.8, label="weight")
    figure.suptitle(title, fontsize=10)
    return figure


def picture(figure: Figure, *, alt: str = "") -> str:
    """Returns a figure as an <img> that contains its PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return _img("png", buffer.getvalue(), alt)


def film(frames: np.ndarray, *, scale: int, alt: str = "") -> str:
    """Returns frames uint8 [F, H, W, 3] as an <img> that plays them in a loop."""
    images = [
        Image.fromarray(frame).resize((frame.shape[1] * scale, frame.shape[0] * scale), 0)
        for frame in frames
    ]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=120, loop=0
    )
    return _img("gif", buffer.getvalue(), alt)


def _img(kind: str, data: bytes, alt: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{encoded}">'


def _samples(
    maps: AttentionMaps, clips: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[str]:
    parts_of_readout = np.asarray(rollout(maps))
    probabilities = np.asarray(jax.nn.softmax(maps.logits))
    text = (
        "<p>Attention rollout from the readout back to the tokens: the brighter, the larger the "
        "part of that tubelet in what the head gets. Scaled by the largest part in each clip.</p>"
    )
    parts = [text]
    for clip, part, probability, label in zip(
        clips, parts_of_readout, probabilities, labels, strict=True
    ):
        guess, label = int(probability.argmax()), int(label)
        verdict = "correct" if guess == label else "wrong"
        heat = heat_on_frames(part, grid=maps.model.config.grid, clip=maps.model.config.clip)
        scale = max(1, 128 // clip.shape[1])
        caption = (
            f"<b>{html.escape(names[label])}</b>: predicted {html.escape(names[guess])} "
            f'({probability[guess]:.0%}), <span class="{verdict}">{verdict}</span>'
        )
        films = film(clip, scale=scale, alt="the clip") + film(
            overlay(clip, heat), scale=scale, alt="the clip with its rollout"
        )
        strip = picture(
            draw_filmstrip(clip, heat, maps.model.config.grid[0]), alt="frames and rollout"
        )
        parts.append(f'<figure>{films}<div class="strip">{strip}</div>'
                     f"<figcaption>{caption}</figcaption></figure>")  # fmt: skip
    return parts


def _over_time(maps: AttentionMaps) -> list[str]:
    kinds = dict.fromkeys((a.stage, a.pattern) for a in maps.attentions)
    timely = [(stage, pattern.label) for stage, pattern in kinds if "t" in pattern.axes]
    if not timely:
        return ["<p>No layer of this model mixes time steps.</p>"]
    parts = [
        "<p>Weight from each time step (row) to each time step (column), averaged over the clips "
        "above and over spatial tokens.</p>"
    ]
    for stage, name in timely:
        weights = np.asarray(maps.over_time(stage=stage, pattern=name)).mean(axis=1)
        parts.append(picture(draw_over_time(weights, f"stage {stage}, {name} attention")))
    return parts


def _summary(scores: dict[str, Any], workdir: Path) -> list[tuple[str, str]]:
    model, data = scores["config"]["model"], scores["data"]
    rows = [
        ("top-1 accuracy", f"{scores['top1']:.2%} of {scores['clips']} {scores['split']} clips"),
        ("views", f"{scores['views']} (clips x crops of each video)"),
        ("loss", f"{scores['loss']:.4f} nats"),
        ("run", f"{workdir.name}, checkpoint of step {scores['step']}"),
        ("family", f"{model['family']}, {model['kernel']} attention, {model['readout']} readout"),
        ("data", f"{data['name']} {data['version']}, label {data['label']}"),
        ("data digest", data["digest"][:16]),
    ]
    cost_path = workdir / "cost.json"
    if cost_path.exists():
        cost = read_json(cost_path)
        rows.insert(5, ("parameters", f"{cost['parameters']:,}"))
        rows.insert(6, ("multiply-adds", f"{cost['multiply_adds'] / 1e6:,.1f} M per clip"))
    return rows


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td { padding: .15rem 1rem .15rem 0; vertical-align: top; }
td:first-child { color: #59636e; } img { max-width: 100%; vertical-align: middle; }
figure { margin: 1.2rem 0; } figure > img { margin-right: .4rem; image-rendering: pixelated; }
.strip { display: inline-block; max-width: calc(100% - 18rem); vertical-align: middle; }
.correct { color: #1a7f37; } .wrong { color: #cf222e; font-weight: 600; }
details pre { background: #f6f8fa; padding: 1rem; overflow: auto; font-size: 12px; }
"""


def _page(
    scores: dict[str, Any], summary: list[tuple[str, str]], sections: list[tuple[str, list[str]]]
) -> str:
    title = f"{scores['data']['name']}: {scores['config']['model']['family']}"
    rows = "".join(
        f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in summary
    )
    body = "".join(f"<h2>{name}</h2>\n" + "\n".join(parts) for name, parts in sections)
    config = html.escape(json.dumps(scores["config"], indent=2))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<table>{rows}</table>{body}<h2>Config</h2><details><summary>all of it</summary>"
        f"<pre>{config}</pre></details></body></html>\n"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vivit.analysis.report", description=__doc__)
    show_log()
    add_run_arguments(parser)
    arguments = parser.parse_args(argv)
    path = write_report(arguments.workdir, checkpoint=arguments.checkpoint, split=arguments.split)
    print(f"open {path}")


if __name__ == "__main__":
    run_command(main)
