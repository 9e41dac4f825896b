"""The report of a run that learned from clips alone."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from vivit.analysis.capture import capture
from vivit.analysis.page import cards, film, page, picture, table, text
from vivit.analysis.parts import config_details, cost_cards, film_scale, rollout_films
from vivit.analysis.rollout import rollout
from vivit.config import as_json
from vivit.io import write_atomically
from vivit.pretraining.objective import Pretraining
from vivit.processes import is_first
from vivit.run import Run

# What is drawn against the training step, with a title each.
WATCHED = {
    "probe": "linear probe (%)",
    "explained": "explained (%)",
    "feature_rank": "effective rank of features",
    "feature_cosine": "mean cosine of features",
    "token_spread": "deviation over clips",
}
SHARES = ("probe", "explained")
SAMPLES = 8  # clips shown


def write_pretraining_report(run: Run, *, views: str = "") -> Path:
    """Writes RUN/report_SPLIT.html; returns its path. Raises ValueError for `views`."""
    if views:
        raise ValueError(f"--views={views}: a run without labels is not evaluated in views")
    out, _ = run.folder / f"report_{run.split}.html", run.network_params  # read by all processes
    if is_first():
        indices = list(range(min(SAMPLES, len(run.data))))
        clips, _ = run.clips(indices)
        write_atomically(out, pretraining_page(run, clips, indices))
        plt.close("all")
    return out


def pretraining_page(run: Run, clips: np.ndarray, indices: list[int]) -> str:
    """Returns the page of a run for some clips of its split."""
    task, config = run.objective, run.config
    assert isinstance(task, Pretraining)
    rows = [row for row in run.metrics if row["split"] == "validation"]
    sections = [
        ("Learning", picture(draw_curves(run.metrics, task), alt="learning curves")),
        ("Collapse", _collapse(rows)),
        ("Clips", _clips(run, task, clips, indices)),
        ("Where it looks", _rollouts(run, clips)),
        ("Config", config_details(as_json(config))),
    ]
    return page(f"{config.data.name}: {config.task.name}", _header(run, task, rows), sections)


def _header(run: Run, task: Pretraining, rows: list[dict[str, Any]]) -> str:
    (row,) = [row for row in rows if row["step"] == run.step] or [{}]
    values = [(title, f"{row[k]:.2%}") for k, title in task.columns().items() if k in row]
    values += [("loss", f"{row['loss']:.4f}")] if row else []
    return (
        f'<p class="quiet">Run {text(run.folder.resolve().name)}, checkpoint of step {run.step}. '
        f"Clips of split {text(run.split)} of {text(run.data.name)}.</p>"
        f"{cards([*values, *cost_cards(run)])}"
    )


def draw_curves(metrics: list[dict[str, Any]], task: Pretraining) -> Figure:
    """Draws the loss, the learning rate and what is watched against the training step; dashed for
    parameters that are not averaged, where others are."""
    held_out = [row for row in metrics if row["split"] == "validation"]
    known = [name for name in WATCHED if held_out and name in held_out[0]]
    figure, axes = plt.subplots(
        2, (len(known) + 3) // 2, figsize=(12, 5.6), layout="constrained", squeeze=False
    )
    flat = axes.ravel()
    for split, style in (("train", "-"), ("validation", "o-")):
        of_split = [row for row in metrics if row["split"] == split]
        steps, loss = [row["step"] for row in of_split], [row["loss"] for row in of_split]
        flat[0].plot(steps, loss, style, label=split, markersize=4)
    flat[0].set_title("loss")
    flat[0].legend()
    train = [row for row in metrics if row["split"] == "train"]
    flat[1].plot([row["step"] for row in train], [row["lr"] for row in train])
    flat[1].set_title("learning rate")
    for axis, name in zip(flat[2:], known, strict=False):
        scale = 100 if name in SHARES else 1
        for key, style in ((name, "o-"), (f"raw_{name}", "--")):
            if key in held_out[0]:
                values = [scale * row[key] for row in held_out]
                axis.plot([row["step"] for row in held_out], values, style, markersize=4)
        axis.set_title(WATCHED[name])
    for axis in flat[: 2 + len(known)]:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    for axis in flat[2 + len(known) :]:
        axis.set_visible(False)
    return figure


def _collapse(rows: list[dict[str, Any]]) -> str:
    names = {"step": "step", "loss": "loss", **WATCHED}
    if rows and "error" in rows[0]:  # of features, as the constant prediction's
        names = {"step": "step", "error": "error", "constant_error": "of a constant", **WATCHED}
    known = [name for name in names if rows and name in rows[0]]
    about = (
        "<p>Of the validation clips. Features have collapsed where their rank or the deviation of "
        "a token over clips falls towards 0, or where the loss falls no faster than that of a "
        "constant prediction. A falling loss alone says nothing; a probe decides.</p>"
    )
    cells = []
    for row in rows:
        shown = [row[name] * (100 if name in SHARES else 1) for name in known]
        cells.append([(x, f"{x:.0f}" if n == "step" else f"{x:.4g}")
                      for n, x in zip(known, shown, strict=True)])  # fmt: skip
    return f"{about}{table([names[name] for name in known], cells)}"


def _clips(run: Run, task: Pretraining, clips: np.ndarray, indices: list[int]) -> str:
    network = task.network(run.model)
    batch = {
        "clips": jnp.asarray(clips),
        "indices": jnp.asarray(indices, jnp.uint32),
        "valid": jnp.ones(len(clips)),
    }
    batch = task.prepare(network, batch, jax.random.key(0))  # the masks of an evaluation
    made = {"clip": clips, **task.pictures(network, run.network_params, batch)}
    scale = film_scale(clips[0])
    figures = []
    for i, index in enumerate(indices):
        films = "".join(
            f"<div>{film(of_kind[i], scale=scale, alt=title)}"
            f'<div class="quiet">{text(title)}</div></div>'
            for title, of_kind in made.items()
        )
        name = text(run.data.reader.name(index))
        style = f"grid-template-columns: repeat({len(made)}, 1fr)"
        figures.append(
            f'<figure><div class="side" style="{style}">{films}</div>'
            f"<figcaption>{name}</figcaption></figure>"
        )
    return f'<div class="grid">{"".join(figures)}</div>'


def _rollouts(run: Run, clips: np.ndarray) -> str:
    config = run.model.config
    parts = np.asarray(rollout(capture(run.model, run.params, clips)))
    about = (
        "<p>Attention rollout from the mean of the encoder's tokens back to the tokens of whole "
        "clips, against a uniform map: coloured where a token has more, dark where it has "
        "less.</p>"
    )
    pairs = zip(clips, parts, strict=True)
    figures = [f"<figure>{rollout_films(*pair, config)[0]}</figure>" for pair in pairs]
    return f'{about}<div class="grid">{"".join(figures)}</div>'
