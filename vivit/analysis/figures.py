"""python -m vivit.analysis.figures --workdir=RUN --clip=N: figures of a clip for papers.

Writes into a folder, in each of --formats: heads_*.pdf, a map of every head of every layer; and for
each method of attribution METHOD_stack.pdf, the frames with the map over them one behind another,
and METHOD.gif and METHOD.mp4, the clip that plays.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D

from vivit.analysis.attribution import attribute, check_methods
from vivit.analysis.capture import AttentionMaps, capture
from vivit.analysis.kept import identifier
from vivit.analysis.mp4 import Writer
from vivit.analysis.overlay import LIMIT, heat_on_frames, overlay
from vivit.analysis.page import write_gif
from vivit.analysis.run import open_run
from vivit.analysis.viewer import usual_methods
from vivit.cli import add_run_arguments, make_parser, run_command, show_log, split_names
from vivit.run import Run

FORMATS = ("pdf", "svg", "png")
SIDE = 256  # pixels, at least, of the shorter side of films
RATE = 8  # frames per second
SLANT = 0.35  # of a frame's width, by which its other side is shorter in a stack
COLOURS = "autumn"


def head_grid(
    maps: AttentionMaps,
    name: str,
    *,
    query: tuple[int, int, int] | None = None,
) -> Figure:
    """Draws a map of each head (column) of each layer (row) of an attention, for the first clip.

    name: as `Attention.of_layers`, such as "stage 0, space". query: (t, y, x) of the token that
    looks, drawn at its own time step; None for the mean over all tokens and time steps. An
    attention of one place has a row of time steps, or without a query all of these by all.
    Raises ValueError for an attention or a query that is not there.
    """
    drawn = np.asarray(_drawn(maps, name, query), np.float64)
    layers, heads, _, _ = drawn.shape
    figure = Figure(figsize=(0.9 * heads + 1.2, 0.9 * layers + 0.6), layout="constrained")
    axes = figure.subplots(layers, heads, squeeze=False)
    largest = drawn.max()
    for (layer, head), axis in np.ndenumerate(axes):
        image = drawn[layer, head]
        shown = axis.imshow(image, vmin=0, vmax=largest, interpolation="nearest", cmap="magma")
        axis.set_xticks([])
        axis.set_yticks([])
        if layer == 0:
            axis.set_title(f"head {head}", fontsize=8)
        if head == 0:
            axis.set_ylabel(f"layer {layer}", fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="weight")
    return figure


def _drawn(
    maps: AttentionMaps, name: str, query: tuple[int, int, int] | None
) -> Float[Array, "L h rows columns"]:
    """Returns what `head_grid` draws."""
    found = [a for a in maps.attentions if a.of_layers == name]
    if not found:
        known = dict.fromkeys(a.of_layers for a in maps.attentions)
        raise ValueError(f"no attention {name!r}; there are {'; '.join(known)}")
    (steps, places), space = found[0].clip_grid, found[0].layout.space
    if query is None and places == 1:
        return jnp.stack([a.over_time()[0] for a in found])
    if query is None:
        kept = jnp.stack([a.received()[0] for a in found]).mean(axis=2)
    else:
        kept = maps.keep(queries=[query])[name]["rows"][:, 0, :, 0]  # [L, h, T, S]
        if places == 1:
            return kept.reshape(*kept.shape[:2], 1, steps)
        kept = kept[:, :, query[0] if steps > 1 else 0]
    return kept.reshape(*kept.shape[:2], *space)


def space_time_stack(
    clip: UInt8[np.ndarray, "F H W 3"],
    heat: Float[np.ndarray, "F H W"],
    *,
    frames: int = 8,
) -> Figure:
    """Draws frames of a clip with a map over them as a stack in space and time, seen from the side;
    the first one is in front.

    frames: how many, evenly spaced. heat: as `heat_on_frames` makes it.
    """
    chosen = np.unique(np.linspace(0, len(clip) - 1, frames).round().astype(int))
    covered = overlay(clip, heat)
    _, height, width, _ = clip.shape
    figure = Figure(figsize=(1.1 * len(chosen) + 1.6, 3.2), layout="constrained")
    axis = figure.subplots()
    gap, narrow = 0.55 * width, 1 - SLANT
    for place in reversed(range(len(chosen))):
        skew = Affine2D().scale(narrow, 1).skew(0, np.arctan(SLANT)).translate(place * gap, 0)
        shown = axis.imshow(
            covered[chosen[place]],
            extent=(0, width, 0, height),
            interpolation="nearest" if height < 64 else "antialiased",
            zorder=len(chosen) - place,
        )
        shown.set_transform(skew + axis.transData)
        corners = skew.transform([(0, 0), (width, 0), (width, height), (0, height), (0, 0)])
        axis.plot(*corners.T, color="white", linewidth=1, zorder=len(chosen) - place)
        middle = skew.transform((width / 2, 0))
        text = f"{chosen[place]}"
        below: Any = {"ha": "center", "va": "top", "fontsize": 8, "zorder": 2 * len(chosen)}
        axis.text(middle[0], middle[1], text, **below)
    axis.set_xlim(-0.05 * width, (len(chosen) - 1) * gap + narrow * width + 0.05 * width)
    axis.set_ylim(-0.2 * height, (1 + SLANT) * height)
    axis.set_aspect("equal")
    axis.axis("off")
    mappable = ScalarMappable(LogNorm(1, LIMIT), matplotlib.colormaps[COLOURS])
    bar = figure.colorbar(mappable, ax=axis, shrink=0.7, label="times uniform")
    bar.set_ticks([1, 2, 4], labels=["1", "2", "4"])
    bar.minorticks_off()
    return figure


def write_overlay(path: Path, frames: UInt8[np.ndarray, "F H W 3"], *, rate: int = RATE) -> Path:
    """Writes frames as a film, GIF or MP4 by the path's suffix, enlarged to SIDE by a whole number;
    returns the path. Raises ValueError for another suffix."""
    scale = max(1, SIDE // min(frames.shape[1:3]))
    enlarged = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    if path.suffix == ".gif":
        write_gif(path, enlarged, milliseconds=1000 // rate)
        return path
    if path.suffix != ".mp4":
        raise ValueError(f"{path} must end in .gif or .mp4")
    writer = Writer(path, enlarged.shape[1:3], rate=float(rate), crf=16)
    for number, frame in enumerate(enlarged):
        writer.add(frame, number / rate)
    writer.close()
    return path


def write_figures(
    run: Run,
    number: int,
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    query: tuple[int, int, int] | None = None,
    formats: Sequence[str] = ("pdf",),
) -> list[Path]:
    """Writes all figures of a clip of the run's split into a new folder; returns their paths.

    methods: of METHODS, of the predicted class; None for `usual_methods`. query: the token whose
    weights the heads' maps show; None for the mean of all. formats: of FORMATS.
    Raises ValueError for what is not there, and for a folder that exists.
    """
    methods = usual_methods(run.model) if methods is None else methods
    check_methods(methods)
    if wrong := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"no format {wrong[0]!r}; there are {', '.join(FORMATS)}")
    if out.exists():
        raise ValueError(f"{out} exists; choose another --out")
    clips, _ = run.clips([number])
    params, config = run.params_on_device, run.model.config
    maps = capture(run.model, params, clips)
    figures = {
        f"heads_{identifier(name)}": head_grid(maps, name, query=query)
        for name in dict.fromkeys(a.of_layers for a in maps.attentions)
    }
    predicted, films = run.predict(clips).argmax(axis=1), {}
    for method in methods:
        heat = jax.device_get(attribute(method, run.model, params, clips, predicted)[0])
        on_frames = heat_on_frames(np.maximum(heat, 0), grid=config.grid, clip=config.clip)
        figures[f"{identifier(method)}_stack"] = space_time_stack(clips[0], on_frames)
        films[identifier(method)] = overlay(clips[0], on_frames)
    out.mkdir(parents=True)
    written = []
    for name, figure in figures.items():
        for form in formats:
            written.append(out / f"{name}.{form}")
            figure.savefig(written[-1], dpi=200)
    for name, frames in films.items():
        written += [write_overlay(out / f"{name}{suffix}", frames) for suffix in (".gif", ".mp4")]
    return written


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.figures",
        __doc__,
        "python -m vivit.analysis.figures --workdir=runs/moving_digits --clip=3",
        "python -m vivit.analysis.figures --workdir=runs/mine --clip=7 --query=4,7,7 --formats=svg",
    )
    add_run_arguments(parser)
    parser.add_argument("--clip", type=int, default=0, metavar="N", help="of the split (0)")
    parser.add_argument("--methods", help="of attribution, with commas (rollout and others)")
    parser.add_argument(
        "--query", metavar="T,Y,X", help="a token: where it looks (default: the mean of all)"
    )
    parser.add_argument("--formats", default="pdf", help="with commas: pdf, svg, png (pdf)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="a new folder (default: figures_N in the run)"
    )
    arguments = parser.parse_args(argv)
    show_log()
    run = open_run(
        arguments.workdir,
        checkpoint=arguments.checkpoint,
        split=arguments.split,
        data_root=arguments.data_root,
    )
    out = Path(arguments.out or run.folder / f"figures_{arguments.clip}")
    written = write_figures(
        run,
        arguments.clip,
        out,
        methods=split_names(arguments.methods) if arguments.methods else None,
        query=_query(arguments.query),
        formats=split_names(arguments.formats),
    )
    for path in written:
        print(f"wrote {path}")


def _query(text: str | None) -> Any:
    try:
        return None if text is None else tuple(int(place) for place in text.split(","))
    except ValueError:
        raise ValueError(f"--query={text} is to be three numbers, such as 4,7,7") from None


if __name__ == "__main__":
    run_command(main)
