"""The interactive part of a page: clips, attention and attributions, as data for viewer.js.

All weights of a large model do not fit into a page, so they are kept between boxes of tokens: of
single tokens where these fit into `BYTES` of a clip, else of as small ones as do. The mean of the
heads has smaller boxes than each head alone.
"""

import base64
import gzip
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from tqdm import tqdm

from vivit.analysis.attribution import attribute, check_methods
from vivit.analysis.capture import capture
from vivit.analysis.kept import Kept
from vivit.analysis.overlay import colour_bar
from vivit.analysis.page import image, static
from vivit.analysis.summaries import boxes_of
from vivit.model import ViViT
from vivit.results import best_of_heads
from vivit.run import Run

BYTES = 500_000  # of the heads' weights between boxes in a clip, and of the means of all heads
USUAL = ("rollout", "relevance", "grad_cam")
STATISTICS = ("distance", "sinks")
NUMBERS = ("distance_in_space", "distance_in_time", "sinks")  # their arrays
ACROSS = 8  # frames next to each other in the picture that holds those of a clip
GUESSES = 5  # classes
SMALL = 64  # pixels, below which frames are kept without loss


@dataclass(frozen=True)
class ViewedClip:
    """A clip on the page. title: what its button says. label: head -> the names of its classes; {}
    for a clip without a label."""

    title: str
    label: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Boxes(NamedTuple):
    """Into how many boxes the clip's axes are cut, for each head and for the means over heads."""

    each_head: tuple[int, int, int]
    mean: tuple[int, int, int]


def usual_methods(model: ViViT) -> list[str]:
    """Returns the methods of USUAL that a model has."""
    patterns = [pattern for stage in model.config.stages for pattern in stage.attentions]
    if any(pattern.follows_values for pattern in patterns):
        return [name for name in USUAL if name != "relevance"]
    return list(USUAL)


def viewer(
    runs: Sequence[Run],
    clips: Sequence[UInt8[np.ndarray, "B F H W 3"]],
    about: Sequence[ViewedClip],
    *,
    methods: Sequence[str] | None = None,
) -> str:
    """Returns the HTML of a viewer of clips, as each of the runs gets them.

    methods: of METHODS; None for `usual_methods`. Raises ValueError for unknown ones.
    """
    parts = [_run_data(run, x, about, methods) for run, x in zip(runs, clips, strict=True)]
    thumbs = [_picture(clip[len(clip) // 2 : len(clip) // 2 + 1]) for clip in clips[0]]
    data = {
        "runs": [of_run for of_run, _ in parts],
        "clips": [
            {
                "title": clip.title,
                "label": clip.label,
                "thumb": thumb,
                "runs": [of_clips[i] for _, of_clips in parts],
            }
            for i, (clip, thumb) in enumerate(zip(about, thumbs, strict=True))
        ],
    }
    colours = image(colour_bar(), alt="colours from a quarter of uniform to 4 times", crisp=False)
    written = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return (
        f"<style>{static('viewer.css')}</style>"
        '<div id="viewer"><noscript>This part needs JavaScript.</noscript></div>'
        f'<p class="quiet">1/4 of a uniform map {colours} 4 times uniform</p>'
        f'<script type="application/json" id="viewer-data">{written}</script>'
        f"<script>addEventListener('DOMContentLoaded', () => {{{static('viewer.js')}}});</script>"
    )


def _run_data(
    run: Run, clips: np.ndarray, about: Sequence[ViewedClip], methods: Sequence[str] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns what the page says of a run, and of each clip."""
    methods = usual_methods(run.model) if methods is None else list(methods)
    check_methods(methods)
    boxes = Boxes(*(choose_boxes(run.model, each_head=each) for each in (True, False)))
    arrays, of_clips, kept = {}, [], []
    bar = tqdm(zip(clips, about, strict=True), total=len(about), desc=run.folder.name, leave=False)
    for clip, shown in bar:
        probabilities = run.predict(clip[None])
        arrays, found = _arrays(run, clip[None], probabilities, methods, boxes)
        packed = gzip.compress(b"".join(x.tobytes() for x in arrays.values()), mtime=0)
        of_clips.append(
            {
                "frames": _picture(clip),
                "arrays": base64.b64encode(packed).decode(),
                **_predictions(run, probabilities, shown),
            }
        )
        kept.append(found)
    of_run = {
        "name": run.folder.resolve().name,
        "grid": run.model.config.grid,
        "clip": clips.shape[1:4],
        "across": min(ACROSS, clips.shape[1]),
        "methods": methods,
        # All clips have arrays of these types and shapes.
        "arrays": [
            {"name": name, "type": x.dtype.str[1:], "shape": x.shape} for name, x in arrays.items()
        ],
        "attentions": [_attention(run.model, of, kept, boxes) for of in kept[0].grids],
    }
    return of_run, of_clips


def _predictions(
    run: Run, probabilities: Float[np.ndarray, "1 classes"], shown: ViewedClip
) -> dict[str, Any]:
    """Returns the most probable classes of all heads, and the best of each head.

    Raises ValueError for a run that predicts no numbers.
    """
    names = run.class_names
    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"{run.folder} predicts {probabilities[0, 0]}: choose another --checkpoint"
        )
    (of_heads,) = best_of_heads(run.task, probabilities, names, k=GUESSES)
    top = {head: best[0][0] for head, best in of_heads.items()}
    several = len(of_heads) > 1
    guesses = [
        {
            "name": f"{head}: {name}" if several else name,
            "p": round(p, 4),
            "right": name in shown.label.get(head, ()),
        }
        for head, best in of_heads.items()
        for name, p in best
    ]
    right = all(top[head] in names for head, names in shown.label.items())
    return {
        "top": top,
        "right": right if shown.label else None,
        "guesses": guesses,
        "explained": names[int(probabilities[0].argmax())],
    }


def _arrays(
    run: Run,
    clip: np.ndarray,
    probabilities: Float[np.ndarray, "1 classes"],
    methods: Sequence[str],
    boxes: Boxes,
) -> tuple[dict[str, np.ndarray], Kept]:
    """Returns what the page keeps of a clip, by name, and the summaries of its attention."""
    params = run.params_on_device
    number = probabilities.argmax(axis=1)
    heats = [attribute(name, run.model, params, clip, number)[0] for name in methods]
    arrays = {"methods": np.asarray(heats, np.float32)}
    maps = capture(run.model, params, clip)
    kept = maps.keep("over_time", "of_extra", _between(boxes.each_head), *STATISTICS)
    mean = maps.keep(_between(boxes.mean))
    for i, (of, grid) in enumerate(kept.grids.items()):
        found = {name: np.asarray(x[:, 0]) for name, x in kept[of].items()}
        number_of = boxes_of(grid, boxes.each_head)
        to_boxes = np.eye(number_of.max() + 1)[number_of.ravel()]
        of_extra = found["of_extra"]
        of_extra = of_extra.reshape(*of_extra.shape[:3], number_of.size) @ to_boxes
        for name, weights in {
            "over_time": found["over_time"],
            "between": found["between"],
            "extra": of_extra,
            "mean": np.asarray(mean[of]["between"][:, 0]).mean(axis=1, keepdims=True),
        }.items():
            arrays[f"{i}/{name}"], arrays[f"{i}/{name}/largest"] = to_bytes(weights)
    return arrays, kept


def _attention(model: ViViT, of: str, kept: Sequence[Kept], boxes: Boxes) -> dict[str, Any]:
    """Returns what the page says of an attention, from the summaries of all clips."""
    grid, arrays = kept[0].grids[of], kept[0][of]
    layers, _, heads, extra = arrays["of_extra"].shape[:4]
    registers = max(stage.layout.registers for stage in model.config.stages)
    names = ["class token"] * (extra > registers) + [f"register {i}" for i in range(registers)]
    statistics = {}
    for name in NUMBERS:
        of_clips = np.concatenate([np.asarray(x[of][name]) for x in kept], axis=1)
        mean = of_clips.mean(axis=(1, *range(3, of_clips.ndim)))  # over clips and queries
        statistics[name] = mean.astype(float).tolist()
    return {
        "name": of,
        "layers": layers,
        "heads": heads,
        "extra": names[:extra],
        "grid": grid,
        "boxes": np.minimum(boxes.each_head, grid).tolist(),
        "fine": np.minimum(boxes.mean, grid).tolist(),
        "statistics": statistics,
    }


def choose_boxes(model: ViViT, *, each_head: bool) -> tuple[int, int, int]:
    """Returns into how many boxes the axes are cut, so that the weights between all boxes fit
    into BYTES: of each head, or of the means over heads."""
    steps, rows, columns = model.config.grid
    maps = sum(
        stage.depth * len(stage.attentions) * (stage.heads if each_head else 1)
        for stage in model.config.stages
    )
    while maps * (steps * rows * columns) ** 2 > BYTES and max(steps, rows, columns) > 1:
        if steps >= max(rows, columns):
            steps -= 1
        else:
            rows, columns = max(rows - 1, 1), max(columns - 1, 1)
    return steps, rows, columns


def _between(boxes: tuple[int, int, int]) -> str:
    return "between(steps={}, rows={}, columns={})".format(*boxes)


def to_bytes(
    weights: Float[np.ndarray, "L h ..."],
) -> tuple[UInt8[np.ndarray, "L h ..."], Float[np.ndarray, "L h"]]:
    """Returns the square roots of weights as bytes, as parts of that of the largest weight of a
    head, which is returned too."""
    flat = weights.reshape(*weights.shape[:2], math.prod(weights.shape[2:]))
    largest = flat.max(axis=2, initial=0).astype(np.float32)
    parts = np.sqrt(np.maximum(flat, 0) / np.maximum(largest, 1e-30)[..., None])
    return (255 * parts).round().astype(np.uint8).reshape(weights.shape), largest


def _picture(clip: UInt8[np.ndarray, "F H W 3"]) -> str:
    """Returns frames as one picture for `src`, ACROSS of them next to each other."""
    frames, height, width, _ = clip.shape
    across = min(ACROSS, frames)
    lines = -(-frames // across)
    filled = np.concatenate([clip, np.zeros((lines * across - frames, *clip.shape[1:]), np.uint8)])
    grid = filled.reshape(lines, across, height, width, 3).swapaxes(1, 2)
    image = Image.fromarray(grid.reshape(lines * height, across * width, 3))
    kind, options = ("png", {}) if height < SMALL else ("jpeg", {"quality": 75})
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
