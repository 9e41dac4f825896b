"""python -m vivit.analysis.film --workdir=RUN --video=FILE: what a run looks at in a film.

Writes the whole film in its own resolution and frame rate, with its sound: attention rollout over
the part of the frame that the model sees, and below it the three most probable classes.
"""

import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from vivit.analysis.capture import capture
from vivit.analysis.overlay import blend_weights
from vivit.analysis.rollout import rollout
from vivit.analysis.run import Run, open_run
from vivit.cli import add_checkpoint_argument, make_parser, run_command, show_log
from vivit.data import decode
from vivit.data.decode import CLOCK
from vivit.data.geometry import view
from vivit.data.manifest import ClipRow
from vivit.data.sampling import SAMPLINGS, clip_from, last_start
from vivit.data.video import ClipReadError, VideoReader
from vivit.data.video_files import Indexes, open_video
from vivit.results import best_of_heads

BATCH = 8  # clips that the model gets at once
TOP = 3  # classes shown
COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")  # sound that MP4 holds as it is
Box = tuple[int, int, int, int]  # of a frame: top, left, height, width


class Window(NamedTuple):
    """A part of a film for which the model sees one clip.

    begin: its first frame. frames: those of the clip, by number.
    """

    begin: int
    frames: np.ndarray


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
    data = run.config.data
    row = ClipRow(path.name, "", {})
    indexes = Indexes()  # the file's is read once, by the first of the two
    small = open_video(
        row, path.parent, short_side=data.short_side, limits=data.limits, indexes=indexes
    )
    index = indexes.get(row, os.path.abspath(path), data.limits)
    frames = decode.frames_at(str(path), index.pts, largest_frame=data.largest_frame)
    bar = tqdm(frames, total=len(index.pts), unit="frame", disable=not sys.stderr.isatty())
    writer, numbered = None, enumerate(bar)
    seen = list_seen(run, small)
    current = next(seen)
    following = next(seen, None)
    for number, frame in numbered:
        if following is not None and number >= following.window.begin:
            current, following = following, next(seen, None)
        plain = np.ascontiguousarray(decode.to_rgb(frame))
        box = _seen_box(run, plain.shape[:2])
        made = _draw(plain, current, number, box=box, side_by_side=side_by_side)
        if writer is None:
            writer = Writer(out, path, made.shape[:2], rate=index.rate, zero=index.times[0])
        writer.add(made, index.times[number])
    assert writer is not None
    writer.close()


def windows(run: Run, video: VideoReader) -> list[Window]:
    """Returns the parts of a film, from its first to its last frame."""
    sampling, frames = run.config.data.sampling, run.model.config.clip[0]
    kind = SAMPLINGS[sampling.kind]
    if not kind.strided:  # the clip is of the whole video
        return [Window(0, kind.views(sampling, video.times, video.seconds, frames, 1)[0])]
    if sampling.stride_seconds is None:
        starts = begins = np.arange(0, len(video.times), frames * sampling.stride_frames)
    else:
        starts = np.arange(0.0, video.seconds - 1e-3, frames * sampling.stride_seconds)
        begins = np.searchsorted(video.times, starts - 1e-6)
    last = last_start(sampling, video.times, video.seconds, frames)
    make = lambda start: clip_from(sampling, video.times, video.seconds, frames, start)
    clips = map(make, np.minimum(starts, last).tolist())
    return [Window(begin, clip) for begin, clip in zip(begins.tolist(), clips, strict=True)]


def list_seen(run: Run, video: VideoReader) -> Iterator[Seen]:
    """Yields what the model says of each window of a film."""
    config, views = run.model.config, run.config.data.views
    size = config.clip[1:]
    extent, short_side = jnp.array([video.height, video.width]), views.short_side or max(size)
    cut = jax.jit(lambda x: view(x, extent, place=0.5, short_side=short_side, size=size))
    parts = windows(run, video)
    for start in range(0, len(parts), BATCH):
        batch = parts[start : start + BATCH]
        clips = [np.asarray(cut(jnp.asarray(video.read(w.frames, None)))) for w in batch]
        clips += [clips[-1]] * (BATCH - len(batch))  # one shape, which is compiled once
        maps = capture(run.model, run.params, np.stack(clips))
        heats = np.asarray(rollout(maps)).reshape(BATCH, *config.grid)
        probabilities = np.asarray(run.task.probabilities(maps.logits))
        best = best_of_heads(run.task, probabilities, run.class_names, k=TOP)
        for window, heat, of_heads in zip(batch, heats, best, strict=False):
            classes = [
                (f"{label}: {name}" if len(of_heads) > 1 else name, p)
                for label, found in of_heads.items()
                for name, p in found
            ]
            yield Seen(window, heat * heat.size, classes)


def _seen_box(run: Run, shape: tuple[int, int]) -> Box:
    """Returns the part of a frame of this height and width that the model sees."""
    size = run.model.config.clip[1:]
    scale = min(shape) / (run.config.data.views.short_side or max(size))
    height, width = (min(round(n * scale), whole) for n, whole in zip(size, shape, strict=True))
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


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
    made = np.concatenate([frame, panel])
    return made[: made.shape[0] // 2 * 2, : made.shape[1] // 2 * 2]  # as yuv420p needs


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


class Writer:
    """An MP4 file that gets frames at their times, and the sound of the source."""

    def __init__(
        self, out: Path, source: Path, shape: tuple[int, int], *, rate: float, zero: float
    ) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        self.file = av.open(str(out), "w", format="mp4")
        options = {"crf": "20", "preset": "veryfast"}
        self.video: Any = self.file.add_stream("libx264", options=options)
        self.video.height, self.video.width = shape
        self.video.pix_fmt = "yuv420p"
        self.video.time_base = self.video.codec_context.time_base = Fraction(1, CLOCK)
        self.video.codec_context.framerate = Fraction(rate).limit_denominator(1001)
        self.source = av.open(str(source), **decode.LENIENT)
        self.zero = zero
        self.sound = self._sound()
        self.waiting = next(self.sound, None)

    def add(self, frame: UInt8[np.ndarray, "H W 3"], seconds: float) -> None:
        """Adds a frame, after the sound that is heard before it."""
        self._add_sound(until=seconds)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = round((seconds - self.zero) * CLOCK), Fraction(1, CLOCK)
        self.file.mux(self.video.encode(picture))

    def close(self) -> None:
        """Writes what is left; the sound ends with the source's."""
        self.file.mux(self.video.encode(None))
        self._add_sound(until=float("inf"))
        self.file.close()
        self.source.close()

    def _add_sound(self, *, until: float) -> None:
        while self.waiting is not None and self.waiting[0] <= until:
            self.file.mux(self.waiting[1])
            self.waiting = next(self.sound, None)

    def _sound(self) -> Iterator[tuple[float, Any]]:
        """Returns an iterator of times and packets of the source's first sound track."""
        if not self.source.streams.audio:
            return iter(())
        track = self.source.streams.audio[0]
        start = self.source.streams.video[0].start_time or 0
        first = float(start * (self.source.streams.video[0].time_base or 0))
        if track.codec_context.name in COPIED:
            new = self.file.add_stream_from_template(track)
            return self._copied(track, new, first)
        new = self.file.add_stream("aac", rate=track.codec_context.sample_rate)
        return self._encoded(track, new, first)

    def _copied(self, track: Any, new: Any, first: float) -> Iterator[tuple[float, Any]]:
        shift = round(first / track.time_base)
        for packet in self.source.demux(track):
            if packet.dts is None or packet.pts < shift:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            seconds = float(packet.pts * track.time_base)
            packet.stream = new
            yield seconds, packet

    def _encoded(self, track: Any, new: Any, first: float) -> Iterator[tuple[float, Any]]:
        resampler = av.AudioResampler(format="fltp", layout=track.codec_context.layout,
                                      rate=track.codec_context.sample_rate)  # fmt: skip
        for frame in self.source.decode(track):
            seconds = float(frame.pts * frame.time_base) - first
            if seconds < 0:
                continue
            frame.pts = round(seconds / frame.time_base)
            for part in resampler.resample(frame):
                yield from ((seconds, packet) for packet in new.encode(part))
        yield from ((float("inf"), packet) for packet in new.encode(None))


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis.film",
        __doc__,
        "python -m vivit.analysis.film --workdir=runs/mine --video=holiday.mp4",
        "python -m vivit.analysis.film --workdir=runs/mine --video=a.mkv --side-by-side",
    )
    parser.add_argument("--workdir", metavar="RUN", required=True, help="the folder of a run")
    parser.add_argument("--video", metavar="FILE", required=True, help="a film of any length")
    parser.add_argument(
        "--out", metavar="FILE", help="an .mp4 file (default: VIDEO_overlay.mp4 in the run)"
    )
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="where the data sets are, for old runs' class names"
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
