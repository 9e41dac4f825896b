"""python -m vivit.analysis.film --workdir=RUN --video=FILE: what a run looks at in a film.

Writes the whole film in its own resolution and frame rate, with its sound: attention rollout over
the part of the frame that the model sees, and below it the three most probable classes.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vivit.analysis.capture import capture
from vivit.analysis.mp4 import Writer
from vivit.analysis.overlay import blend_weights
from vivit.analysis.rollout import rollout
from vivit.analysis.run import Run, open_run
from vivit.analysis.windows import Box, Window, open_film, read_windows, seen_box, windows
from vivit.cli import add_film_arguments, make_parser, run_command, show_log
from vivit.data.video import ClipReadError, VideoReader
from vivit.results import best_of_heads

TOP = 3  # classes shown


class Seen(NamedTuple):
    """What the model says of a window. heat: rollout on the grid, 1 for a uniform map."""

    window: Window
    heat: Float[np.ndarray, "T Y X"]
    best: list[tuple[str, float]]


def write_film(
    workdir: str | Path,
    video: str | Path,
    out: str | Path,
    *,
    checkpoint: str = "best",
    side_by_side: bool = False,
    data_root: str | None = None,
) -> Path:
    """Writes an MP4 of a video with attention rollout over it; returns its path.

    The clips have the stride of the run's sampling and follow each other over the whole film, each
    seen in its centre crop, which is outlined. side_by_side: the plain film is next to it.
    Raises ValueError if the video cannot be read.
    """
    if Path(out).suffix.lower() != ".mp4":
        raise ValueError(f"--out={out} must end in .mp4")
    run, out = open_run(workdir, checkpoint=checkpoint, data_root=data_root), Path(out)
    try:
        _write(run, Path(video), out, side_by_side=side_by_side)
    except ClipReadError as error:
        out.unlink(missing_ok=True)
        raise ValueError(f"{video}: {error}") from error
    return out


def _write(run: Run, path: Path, out: Path, *, side_by_side: bool) -> None:
    film, writer = open_film(path, run.config.data), None
    seen = list_seen(run, film.video)
    current = next(seen)
    following = next(seen, None)
    for number, plain in enumerate(film.frames()):
        if following is not None and number >= following.window.begin:
            current, following = following, next(seen, None)
        box = seen_box(run, plain.shape[:2])
        made = _draw(plain, current, number, box=box, side_by_side=side_by_side)
        if writer is None:
            rate, zero = film.rate, film.times[0]
            writer = Writer(out, made.shape[:2], rate=rate, source=path, zero=zero)
        writer.add(made, film.times[number])
    assert writer is not None
    writer.close()


def list_seen(run: Run, video: VideoReader) -> Iterator[Seen]:
    """Yields what the model says of each window of a film."""
    data, (frames, height, width) = run.config.data, run.model.config.clip
    parts = windows(video, data.sampling, frames)
    for batch, clips in read_windows(video, parts, data.views, (height, width)):
        maps = capture(run.model, run.params, clips)
        heats = np.asarray(rollout(maps)).reshape(len(clips), *run.model.config.grid)
        probabilities = np.asarray(run.task.probabilities(maps.logits))
        best = best_of_heads(run.task, probabilities, run.class_names, k=TOP)
        for window, heat, of_heads in zip(batch, heats, best, strict=False):
            classes = [
                (f"{label}: {name}" if len(of_heads) > 1 else name, p)
                for label, found in of_heads.items()
                for name, p in found
            ]
            yield Seen(window, heat * heat.size, classes)


def _draw(
    plain: UInt8[np.ndarray, "H W 3"], seen: Seen, number: int, *, box: Box, side_by_side: bool
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Returns a frame of the new film."""
    top, left, height, width = box
    at = int(np.searchsorted(seen.window.frames, number, side="right")) - 1
    steps = len(seen.heat)
    step = min(max(at, 0), len(seen.window.frames) - 1) * steps // len(seen.window.frames)
    gain, add = _weights(seen.heat[step].tobytes(), seen.heat.shape[1:], (height, width))
    covered = plain.copy()
    part = covered[top : top + height, left : left + width]
    part[:] = np.clip(part * gain + add, 0, 255)
    outline = np.array([255, 255, 255], np.uint8)
    part[:1], part[-1:], part[:, :1], part[:, -1:] = outline, outline, outline, outline
    frame = np.concatenate([plain, covered], axis=1) if side_by_side else covered
    panel = _panel(tuple(seen.best), frame.shape[1], max(16, plain.shape[0] // 24))
    return np.concatenate([frame, panel])


@lru_cache(maxsize=4)
def _weights(heat: bytes, grid: tuple[int, int], size: tuple[int, int]):
    """What the pixels of the seen part are multiplied with, and what is added."""
    small = np.frombuffer(heat, np.float32).reshape(grid)
    return blend_weights(np.asarray(jax.image.resize(small, size, "linear")), mean=1.0)


@lru_cache(maxsize=4)
def _panel(best: tuple[tuple[str, float], ...], width: int, line: int) -> np.ndarray:
    """Returns a picture of the classes with a bar for each probability."""
    image = Image.new("RGB", (width, line * len(best) + line // 2), "#16191d")
    draw, texts = ImageDraw.Draw(image), [f"{p:6.1%}  {name}" for name, p in best]
    for size in range(max(int(line * 0.7), 7), 5, -1):  # the names leave a third for the bars
        font = ImageFont.load_default(size=size)
        middle = 20 + int(max(draw.textlength(text, font) for text in texts))
        if middle < 0.67 * width:
            break
    middle = min(middle, int(0.67 * width))
    for k, (text, (_, p)) in enumerate(zip(texts, best, strict=True)):
        y = line // 4 + k * line
        draw.rectangle((middle, y + 3, middle + int((width - middle - 8) * p), y + line - 3),
                       "#e8590c" if k == 0 else "#868e96")  # fmt: skip
        draw.text((8, y + line / 2), text, "white", font, anchor="lm")
    return np.asarray(image)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.film",
        __doc__,
        "python -m vivit.analysis.film --workdir=runs/mine --video=holiday.mp4",
        "python -m vivit.analysis.film --workdir=runs/mine --video=a.mkv --side-by-side",
    )
    add_film_arguments(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="an .mp4 file (default: VIDEO_overlay.mp4 in the run)"
    )
    parser.add_argument(
        "--side-by-side", action="store_true", help="the plain film next to the overlay"
    )
    show_log()
    arguments = parser.parse_args(argv)
    out = arguments.out or f"{arguments.workdir}/{Path(arguments.video).stem}_overlay.mp4"
    written = write_film(
        arguments.workdir,
        arguments.video,
        out,
        checkpoint=arguments.checkpoint,
        side_by_side=arguments.side_by_side,
        data_root=arguments.data_root,
    )
    print(f"wrote {written}")


if __name__ == "__main__":
    run_command(main)
