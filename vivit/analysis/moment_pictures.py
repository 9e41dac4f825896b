"""Pictures of the moments of a film: a contact sheet, and the film with its regions outlined."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from vivit.analysis.mp4 import Writer
from vivit.analysis.windows import Film

SHOWN = 5  # frames of a moment on the sheet
COLOURS = ("#e8590c", "#1c7ed6", "#2f9e44", "#9c36b5", "#f08c00")  # of moments, again and again
DARK = "#16191d"


def write_pictures(film: Film, found: dict[str, Any], out: Path) -> None:
    """Writes moments.png and moments.mp4 into a folder. found: what moments.json has."""
    shown = {
        boxes[at]["frame"]
        for boxes in (moment["boxes"] for moment in found["moments"])
        for at in _spread(len(boxes))
    }
    numbered = {
        box["frame"]: (rank, box)
        for rank, moment in enumerate(found["moments"])
        for box in moment["boxes"]
    }
    kept: dict[int, np.ndarray] = {}
    strip, writer = None, None
    for number, frame in enumerate(film.frames()):
        drawn = _outline(frame, *numbered[number]) if number in numbered else frame
        if number in shown:
            kept[number] = drawn
        if strip is None:
            strip = _Strip(found, width=frame.shape[1])
        made = np.concatenate([drawn, strip.at(number)])
        if writer is None:
            of_film: Any = {"rate": film.rate, "source": film.path, "zero": film.times[0]}
            writer = Writer(out / "moments.mp4", made.shape[:2], **of_film)
        writer.add(made, film.times[number])
    assert writer is not None
    writer.close()
    _sheet(found, kept).savefig(out / "moments.png", dpi=120)


def _spread(count: int) -> list[int]:
    """Returns SHOWN places among so many, from the first to the last, or all of fewer."""
    return np.unique(np.linspace(0, count - 1, SHOWN).round().astype(int)).tolist()


def _outline(
    frame: UInt8[np.ndarray, "H W 3"], rank: int, box: dict[str, Any]
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a frame with the outline of a region and its moment's rank."""
    image = Image.fromarray(frame)
    draw, wide = ImageDraw.Draw(image), max(1, min(frame.shape[:2]) // 120)
    top, left = box["top"], box["left"]
    corners = (left, top, left + box["width"] - 1, top + box["height"] - 1)
    draw.rectangle(corners, outline=COLOURS[rank % len(COLOURS)], width=wide)
    size = min(frame.shape[:2]) // 20
    if size >= 8:
        font = ImageFont.load_default(size=size)
        draw.text((left + 2 * wide, top + wide), str(rank + 1), COLOURS[rank % len(COLOURS)], font)
    return np.asarray(image)


class _Strip:
    """The curve of a film's values below its frames, with a line at the current one."""

    def __init__(self, found: dict[str, Any], *, width: int) -> None:
        height = max(24, width // 8)
        figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=DARK)
        axes = figure.add_axes((0, 0, 1, 1))
        _curve(axes, found, line="white")
        axes.axis("off")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self.image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        seconds = np.asarray(found["frames"]["seconds"])
        places = axes.transData.transform(np.stack([seconds, np.zeros_like(seconds)], axis=1))
        self.columns = places[:, 0].round().astype(int).clip(0, self.image.shape[1] - 1)
        self.width = width

    def at(self, number: int) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the strip of a frame, as wide as the film."""
        image = self.image.copy()
        image[:, self.columns[number]] = 255
        return image[:, : self.width]


def _curve(axes: Any, found: dict[str, Any], *, line: str) -> None:
    """Draws the values of all frames, and the moments behind them."""
    seconds, values = found["frames"]["seconds"], found["frames"]["values"]
    for rank, moment in enumerate(found["moments"]):
        colour = COLOURS[rank % len(COLOURS)]
        axes.axvspan(moment["begin"], moment["end"], color=colour, alpha=0.5, linewidth=0)
    axes.plot(seconds, values, color=line, linewidth=1.2)
    axes.set_xlim(seconds[0], max(seconds[-1], seconds[0] + 1e-3))
    axes.set_ylim(0, max(max(values) * 1.05, 1e-9))


def _sheet(found: dict[str, Any], frames: dict[int, np.ndarray]) -> Figure:
    """Returns the contact sheet: the curve, and a row of frames of each moment."""
    moments = found["moments"]
    height, width = next(iter(frames.values())).shape[:2] if frames else (1, 1)
    of_row = 12 / SHOWN * height / width + 0.45
    figure = Figure(figsize=(12, 2.4 + of_row * len(moments)), layout="constrained")
    grid = figure.add_gridspec(
        1 + len(moments), SHOWN, height_ratios=[2.2, *[of_row] * len(moments)]
    )
    axes = figure.add_subplot(grid[0, :])
    _curve(axes, found, line="#1b1f24")
    axes.set_title(
        f"{Path(found['video']).name}: {found['class']} ({found['method']})",
        loc="left",
        parse_math=False,
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("value")
    for rank, moment in enumerate(moments):
        for column, at in enumerate(_spread(len(moment["boxes"]))):
            box = moment["boxes"][at]
            axes = figure.add_subplot(grid[1 + rank, column])
            axes.imshow(frames[box["frame"]])
            axes.set_xticks([])
            axes.set_yticks([])
            colour = COLOURS[rank % len(COLOURS)]
            axes.set_title(f"{rank + 1}: {box['seconds']:.2f} s", color=colour, fontsize=10)
    return figure
