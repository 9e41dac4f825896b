"""python -m vivit.predict --workdir=RUN VIDEO ...: the most probable classes of videos.

Prints one table row, or one line of JSON or CSV, per video; with --every one per moment of it.
Files that cannot be read are named on standard error, and the others go on.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

import vivit
from vivit.cli import add_checkpoint_argument, make_parser, run_command, show_log
from vivit.data.files import data_root, is_uri, videos_below
from vivit.data.manifest import ClipRow, read_manifest
from vivit.data.pipeline import eval_batches
from vivit.data.sampling import SAMPLINGS, clip_from, last_start
from vivit.data.settings import DataSettings
from vivit.data.sources import MANIFESTS
from vivit.data.split import Split
from vivit.data.video import ClipReadError, VideoReader
from vivit.data.video_files import Indexes, VideoFiles
from vivit.data.views import make_views
from vivit.evaluate import model_for_devices, parse_views
from vivit.parallel import Parallel, make_parallel_for_inference
from vivit.predictions import Prediction, Printer
from vivit.run import Run
from vivit.settings import ParallelSettings
from vivit.step import make_eval_step
from vivit.tasks import Task, make_task

log = logging.getLogger(__name__)

CHUNK_BYTES = 64 << 20  # of frames of a long video that are decoded at once
LABEL = "label"


@dataclass(frozen=True)
class Predictor:
    """A model that predicts the classes of video files.

    task, class_names: what it predicts, and the classes of all heads. data: how clips are taken
    from videos, in which views, and how many at a time.
    problems: videos that could not be read -> why; filled in by the methods.
    """

    model: vivit.ViViT
    params: Any
    task: Task
    class_names: tuple[str, ...]
    data: DataSettings
    parallel: Parallel
    problems: dict[str, str] = field(default_factory=dict)

    def videos(self, rows: Sequence[ClipRow], root: str) -> Iterator[Prediction]:
        """Yields the prediction for each clip below `root`, averaged over all views."""
        rows = self._readable(rows, root)
        if not rows:
            return
        split = self._split(rows, root)
        apply = self._step(split)
        everything = replace(self.data, max_bad_fraction=1.0)
        batches = eval_batches(everything, split, frames=self.model.config.clip[0])
        numbers = _groups(range(len(rows)), self.data.batch_size)
        for batch, of_batch in zip(batches, numbers, strict=True):
            probabilities = apply(batch)
            for place, i in enumerate(of_batch):
                if batch["valid"][place]:
                    yield Prediction(rows[i].id, None, probabilities[place])
                else:
                    self.problems[rows[i].id] = batches.damaged[i]

    def over_time(self, row: ClipRow, root: str, *, every: float) -> Iterator[Prediction]:
        """Yields predictions for the clips of a video that start every so many seconds.

        The video is decoded once, in chunks, so memory does not grow with its length.
        """
        if not self._readable([row], root):
            return
        split = self._split([row], root)
        video, apply = split.reader.open(0), self._step(split)
        seconds, clips = self._clips(video, every)
        try:
            for numbers, frames in _decode(video, clips, self.data.batch_size):
                batch = self._batch(frames, split.largest)
                for i, probabilities in zip(numbers, apply(batch), strict=False):
                    yield Prediction(row.id, seconds[i], probabilities)
        except ClipReadError as error:
            self.problems[row.id] = str(error)

    def _readable(self, rows: Sequence[ClipRow], root: str) -> list[ClipRow]:
        """Returns the rows whose files open, and notes what is wrong with the others."""
        files = self._files(rows, root)

        def problem(i: int) -> str:
            try:
                files.open(i)
            except ClipReadError as error:
                return f"{error.kind}: {error}"
            return ""

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = list(pool.map(problem, range(len(rows))))
        found = {row.id: text for row, text in zip(rows, problems, strict=True) if text}
        self.problems.update(found)
        return [row for row in rows if row.id not in found]

    def _files(self, rows: Sequence[ClipRow], root: str) -> VideoFiles:
        data, labels = self.data, self.task.no_classes
        rows = [replace(row, labels=labels) for row in rows]
        return VideoFiles(rows, root, data.short_side, data.limits, self._indexes)

    @cached_property
    def _indexes(self) -> Indexes:
        return Indexes()

    def _split(self, rows: Sequence[ClipRow], root: str) -> Split:
        files = self._files(rows, root)
        largest, smallest = files.measure()
        return Split(files, {}, largest, smallest, "", root, "", "", task=self.task)

    def _step(self, split: Split) -> Any:
        """Returns a function: batch -> probabilities [B, classes]; one for videos of one size."""
        size = split.largest, split.smallest
        if size not in self._steps:
            self._steps[size] = self._make_step(split)
        return self._steps[size]

    @cached_property
    def _steps(self) -> dict[Any, Any]:
        return {}

    def _make_step(self, split: Split) -> Any:
        predict_views = make_views(self.data.views, split, self.model.config.clip[1:])
        step = self.parallel.evaluate(
            make_eval_step(self.model, self.task, predict_views=predict_views)
        )

        def apply(batch: Any) -> Float[np.ndarray, "B classes"]:
            logits = np.asarray(step(self._placed, self.parallel.put(batch))[1]["logits"])
            return self.task.probabilities(logits)

        return apply

    @cached_property
    def _placed(self) -> Any:
        return self.parallel.place(self.params)

    def _clips(
        self, video: VideoReader, every: float
    ) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, "N V F"]]:
        """Returns moments in seconds, and the frames of the clips there: one view of each."""
        sampling, frames = self.data.sampling, self.model.config.clip[0]
        moments = np.arange(0.0, max(video.seconds, 1e-3), every)
        if SAMPLINGS[sampling.kind].strided:
            starts = moments
            if sampling.stride_seconds is None:
                starts = np.searchsorted(video.times, moments - 1e-6)
            last = last_start(sampling, video.times, video.seconds, frames)
            starts = np.minimum(starts, last).tolist()
            clips = [clip_from(sampling, video.times, video.seconds, frames, s) for s in starts]
            return moments, np.stack(clips)[:, None]
        views, clips = SAMPLINGS[sampling.kind].views, []
        for start in moments:
            part = np.flatnonzero((video.times >= start) & (video.times < start + every))
            part = part if len(part) else np.array([np.searchsorted(video.times, start) - 1])
            times = video.times[part] - video.times[part[0]]
            clips.append(part[views(sampling, times, every, frames, 1)])
        return moments, np.stack(clips)

    def _batch(self, clips: list[np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
        count, missing = len(clips), self.data.batch_size - len(clips)
        return {
            "clips": np.stack([*clips, *[np.zeros_like(clips[0])] * missing]),
            "extents": np.array([size] * self.data.batch_size, np.int32),
            "labels": np.stack([self.task.encode(self.task.no_classes)] * self.data.batch_size),
            "valid": (np.arange(self.data.batch_size) < count).astype(np.float32),
            "indices": np.arange(self.data.batch_size, dtype=np.uint32),
        }


def predictor_of_run(run: Run, *, views: str = "", batch_size: int = 8) -> Predictor:
    """Returns a predictor with a run's checkpoint, sampling and views; views: "4x3" for others."""
    model, parallel = model_for_devices(run)
    data = run.config.data
    return _predictor(
        model, run.params, run.task, run.class_names, data, parallel, views, batch_size
    )


def predictor_of_weights(path: str, *, views: str = "", batch_size: int = 8) -> Predictor:
    """Returns a predictor with any weights that vivit.pretrained reads, and their class names.

    Raises ValueError if they have no head.
    """
    from vivit.pretrained import load  # with all its sources

    loaded = load(path)
    model = vivit.build(loaded.model_config)
    classes = model.config.classes
    if not classes:
        raise ValueError(f"{path} has no classes to predict: its model has no head")
    names = tuple(loaded.report.labels) or tuple(f"class {i}" for i in range(classes))
    parallel = make_parallel_for_inference(ParallelSettings())
    task = make_task(loaded.report.task, loaded.report.groups or {LABEL: classes})
    return _predictor(
        model, loaded.params, task, names, DataSettings(), parallel, views, batch_size
    )


def _predictor(model, params, task, names, data, parallel, views, batch_size) -> Predictor:
    size = -(-batch_size // parallel.devices) * parallel.devices
    if views:
        data = replace(data, views=replace(data.views, **parse_views(views)))
    data = replace(data, batch_size=size)
    return Predictor(model, params, task, tuple(names), data, parallel)


def _decode(
    video: VideoReader, clips: Int[np.ndarray, "N V F"], batch_size: int
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yields batches of numbers of clips, and their frames uint8 [V, F, H, W, 3].

    While a chunk is used the next one is decoded.
    """
    most = max(CHUNK_BYTES // (video.height * video.width * 3), 1)
    chunks: list[list[int]] = [[]]
    wanted: set[int] = set()
    for i, clip in enumerate(clips):
        wanted |= set(clip.ravel().tolist())
        if chunks[-1] and (len(wanted) > most or len(chunks[-1]) == 8 * batch_size):
            chunks.append([])
            wanted = set(clip.ravel().tolist())
        chunks[-1].append(i)

    def read(chunk: list[int]) -> dict[int, np.ndarray]:
        numbers = np.unique(clips[chunk])
        return dict(zip(numbers.tolist(), video.read(numbers, None), strict=True))

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(read, chunks[0])
        for k, chunk in enumerate(chunks):
            frames = following.result()
            if k + 1 < len(chunks):
                following = pool.submit(read, chunks[k + 1])
            for numbers in _groups(chunk, batch_size):
                made = [np.stack([[frames[j] for j in view] for view in clips[i]]) for i in numbers]
                yield numbers, made


def _groups(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]


def find_videos(
    arguments: Sequence[str], *, root: str | None = None, split: str = ""
) -> tuple[list[ClipRow], str]:
    """Returns the clips that files, folders or a manifest stand for, and the root of their paths.

    root: of a manifest's paths, if not its folder. split: of a manifest; "" for all.
    """
    manifests = [argument for argument in arguments if argument.endswith(MANIFESTS)]
    if manifests and len(arguments) > 1:
        raise ValueError(f"{manifests[0]} is a manifest; give it alone, or videos and folders")
    if manifests:
        manifest, place = read_manifest(manifests[0]), data_root(root, manifests[0])
        rows = manifest.split(split) if split else list(manifest.clips)
        if not is_uri(place) and not any(os.path.exists(f"{place}/{row.path}") for row in rows):
            raise ValueError(
                f"none of the {len(rows)} clips is below {place}; --data-root says where the "
                "manifest's paths begin"
            )
        return [replace(row, id=row.name, labels={}) for row in rows], place
    if root is not None or split:
        raise ValueError("--data-root and --split choose clips of a manifest, and none is given")
    paths: list[str] = []
    for argument in arguments:
        if not is_uri(argument) and Path(argument).is_dir():
            paths += [os.path.join(argument, path) for path in videos_below(argument)]
        else:
            paths.append(argument)
    whole = [path if is_uri(path) else os.path.abspath(path) for path in paths]
    # Not commonpath, which breaks URIs; dirname takes off the half of a name that may be left.
    base = os.path.dirname(os.path.commonprefix([f"{os.path.dirname(p)}/" for p in whole]))  # noqa: RUF071
    below = [path[len(base.rstrip("/")) + 1 :] for path in whole]
    rows = [ClipRow(path, "", {}, id=given) for path, given in zip(below, paths, strict=True)]
    return rows, base or "/"


def parse_seconds(text: str) -> float:
    """Returns the seconds of "1s", "0.5 s" or "1"."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*s?", text.strip())
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 1s or 0.5s")
    return float(match[1])


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.predict",
        __doc__,
        "python -m vivit.predict --workdir=runs/mine holiday.mp4 films/",
        "python -m vivit.predict --weights=vivit-b-16x2 --every 1s --csv match.mp4 > match.csv",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", metavar="RUN", help="the folder of a run")
    which.add_argument(
        "--weights", metavar="PATH", help="a file or folder of weights: see vivit.pretrained"
    )
    parser.add_argument("videos", nargs="+", help="videos, folders of videos, or one manifest")
    add_checkpoint_argument(parser)
    parser.add_argument("--data-root", metavar="FOLDER", help="where the manifest's paths begin")
    parser.add_argument("--split", default="", help="of the manifest; default: all")
    parser.add_argument("--views", default="", help="4x3 for 4 clips in 3 crops of each")
    parser.add_argument(
        "--every", type=parse_seconds, metavar="TIME", help="1s for one prediction per second"
    )
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="clips that the model gets at once (default: 8)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_const", const="json", dest="form", help="JSON lines")
    form.add_argument("--csv", action="store_const", const="csv", dest="form", help="CSV")
    show_log()
    arguments = parser.parse_args(argv)
    if arguments.top < 1 or arguments.batch_size < 1:
        parser.error("--top and --batch-size must be at least 1")
    options = {"views": arguments.views, "batch_size": arguments.batch_size}
    if arguments.every and arguments.views and parse_views(arguments.views)["temporal"] > 1:
        raise ValueError(f"--views={arguments.views} with --every: use 1x1 or 1x3")
    rows, root = find_videos(arguments.videos, root=arguments.data_root, split=arguments.split)
    if arguments.workdir:
        run = Run(arguments.workdir, arguments.checkpoint)
        predictor = predictor_of_run(run, **options)
    else:
        predictor = predictor_of_weights(arguments.weights, **options)
    show = Printer(arguments.form or "table", predictor.task, predictor.class_names, arguments.top)
    if arguments.every:
        found = (p for row in rows for p in predictor.over_time(row, root, every=arguments.every))
    else:
        found = predictor.videos(rows, root)
    for prediction in found:
        show(prediction)
    for name, problem in predictor.problems.items():
        print(f"{name}: {problem}", file=sys.stderr)
    if predictor.problems:
        sys.exit(f"{len(predictor.problems)} of {len(rows)} videos could not be read")


if __name__ == "__main__":
    run_command(main)
