"""python -m vivit.analysis.film --workdir=RUN --video=FILE: what a run looks at in a film."""

import argparse
from fractions import Fraction
from pathlib import Path

import av
import jax.numpy as jnp
import numpy as np

from vivit.analysis.capture import capture
from vivit.analysis.overlay import heat_on_frames, overlay
from vivit.analysis.rollout import rollout
from vivit.analysis.run import Run, open_run
from vivit.cli import run_command, show_log
from vivit.data.geometry import view
from vivit.data.manifest import ClipRow
from vivit.data.sampling import SAMPLINGS
from vivit.data.video_files import open_video

SHOWN = 256  # pixels in height that small clips are enlarged to


def write_film(workdir: str | Path, video: str | Path, out: str | Path, *, split: str) -> Path:
    """Writes an MP4 of a video with attention rollout over it, clip by clip; returns its path.

    The clips have the stride of the run's sampling and follow each other over the whole video, each
    seen in its centre crop; above stands the plain frame, below it the frame with the heat.
    """
    run = open_run(workdir, split=split)
    clips, seconds = _clips(run, Path(video))
    frames, rows = [], []
    for clip in clips:
        maps = capture(run.model, run.params, clip[None])
        heat = heat_on_frames(
            np.asarray(rollout(maps))[0], grid=run.model.config.grid, clip=run.model.config.clip
        )
        scale = max(1, SHOWN // clip.shape[1])
        enlarge = lambda x, n=scale: x.repeat(n, axis=1).repeat(n, axis=2)
        frames += list(enlarge(clip))
        rows += list(enlarge(overlay(clip, heat)))
    _write(Path(out), [np.concatenate(pair) for pair in zip(frames, rows, strict=True)], seconds)
    return Path(out)


def _clips(run: Run, video: Path) -> tuple[list[np.ndarray], float]:
    """Returns uint8 clips [F, H, W, 3] of the whole video, and the seconds from frame to frame."""
    data, sampling = run.config.data, run.config.data.sampling
    if not SAMPLINGS[sampling.kind].strided:
        raise ValueError(
            f"a film needs clips of one stride, and the run has sampling.kind={sampling.kind!r}"
        )
    row = ClipRow(video.name, "", {})
    film = open_video(row, video.parent, short_side=data.short_side, limits=data.limits)
    count, (frames, height, width) = len(film.times), run.model.config.clip
    step = film.seconds / count
    stride = sampling.stride_frames
    if sampling.stride_seconds:
        stride = max(1, round(sampling.stride_seconds / step))
    span = frames * stride
    if count < span - stride + 1:
        raise ValueError(f"{video} has {count} frames, fewer than a clip's {span}")
    extent = jnp.array([film.height, film.width])
    clips = []
    for start in range(0, count - span + stride, span):
        pictures = film.read(np.arange(start, start + span, stride), None)
        seen = view(
            jnp.asarray(pictures),
            extent,
            place=0.5,
            short_side=data.views.short_side or max(height, width),
            size=(height, width),
        )
        clips.append(np.asarray(seen))
    return clips, step * stride


def _write(path: Path, frames: list[np.ndarray], seconds: float) -> None:
    rate = Fraction(1 / seconds).limit_denominator(1000)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "18"})
        height, width, _ = frames[0].shape
        stream.height, stream.width = height // 2 * 2, width // 2 * 2
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            even = np.ascontiguousarray(frame[: stream.height, : stream.width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        file.mux(stream.encode(None))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vivit.analysis.film", description=__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a run")
    parser.add_argument("--video", required=True)
    parser.add_argument("--out", help="an .mp4 file; default: in the run's folder")
    parser.add_argument("--split", default="validation", help="any split of the run's data set")
    show_log()
    arguments = parser.parse_args(argv)
    out = arguments.out or f"{arguments.workdir}/{Path(arguments.video).stem}_overlay.mp4"
    print(f"wrote {write_film(arguments.workdir, arguments.video, out, split=arguments.split)}")


if __name__ == "__main__":
    run_command(main)
