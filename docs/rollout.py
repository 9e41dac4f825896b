"""python docs/rollout.py RUN: writes docs/rollout.gif, clips with attention rollout over them.

The first test clip of each class plays in a loop: above as it is, below with the rollout,
drawn against a uniform map.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vivit.analysis import capture, heat_on_frames, open_run, overlay, rollout
from vivit.results import ClipScores, best_of_heads

SIDE, GAP, TITLE = 96, 6, 22  # pixels; small clips are enlarged to SIDE
COLOURS = 96
MILLISECONDS = 140
FONT = ImageFont.load_default(size=14)


def films(workdir: str, limit: int) -> tuple[list[np.ndarray], list[str]]:
    """Returns films uint8 [F, height, width, 3], each clip above its overlay, and their titles."""
    run = open_run(workdir)
    clips, labels = run.clips(run.one_of_each_class(limit))
    maps = capture(run.model, run.params, clips)
    config, logits = run.model.config, np.asarray(maps.logits)
    best = best_of_heads(run.task, logits, run.data.class_names, k=1)
    right = ClipScores(np.arange(len(clips)), labels, logits, run.task).right
    scale = max(1, SIDE // clips.shape[2])
    pairs, titles = [], []
    rows = zip(clips, np.asarray(rollout(maps)), run.titles(labels), best, right, strict=True)
    for clip, part, title, of_heads, is_right in rows:
        large = clip.repeat(scale, axis=1).repeat(scale, axis=2)
        heat = heat_on_frames(part, grid=config.grid, clip=large.shape[:3])
        gap = np.full_like(large[:, :GAP], 255)
        pairs.append(np.concatenate([large, gap, overlay(large, heat)], axis=1))
        guess = ", ".join(name for ((name, _),) in of_heads.values())
        titles.append(title if is_right else f"{title} ({guess}?)")
    return pairs, titles


def page(films: list[np.ndarray], titles: list[str]) -> list[Image.Image]:
    """Returns the frames of the picture: the films next to each other, with their titles."""
    height, width = films[0].shape[1:3]
    size = (len(films) * (width + GAP) - GAP, height + TITLE)
    frames = []
    for index in range(len(films[0])):
        frame = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(frame)
        for column, (film, title) in enumerate(zip(films, titles, strict=True)):
            left = column * (width + GAP)
            draw.text((left + width / 2, TITLE / 2), title, "#333333", FONT, anchor="mm")
            frame.paste(Image.fromarray(film[index]), (left, TITLE))
        frames.append(frame)
    return frames


def write_gif(frames: list[Image.Image], path: Path) -> None:
    """Writes frames as a GIF that loops; all have the colours of one palette, without dithering."""
    strip = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames]))
    palette = strip.quantize(COLOURS)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=MILLISECONDS, loop=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("rollout.gif"))
    parser.add_argument("--clips", type=int, default=8)
    arguments = parser.parse_args()
    pictures = page(*films(arguments.run, arguments.clips))
    write_gif(pictures, arguments.out)
    print(f"wrote {arguments.out}: {arguments.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
