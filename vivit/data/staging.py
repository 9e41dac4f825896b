"""One clip of a manifest, encoded into a file of its own: what takes the time of prepare.py."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vivit.data import guard, tfrecord
from vivit.data.decode import TOLERANCE, Damaged
from vivit.data.encode import CLOCK, WRITERS
from vivit.data.files import fetch, locate
from vivit.data.footage import Limits, index_of, ticks_of
from vivit.data.manifest import Clip, Manifest
from vivit.data.sampling import frames_shown
from vivit.io import write_atomically

VERSION = "1.0.0"
QUALITY = {"h264": 20, "jpeg": 90, "raw": 0}  # x264's constant rate factor; JPEG's quality


@dataclass(frozen=True)
class Spec:
    """How clips are stored. short_side: pixels that larger frames are shrunk to; square: only their
    middle square is kept; quality: None for QUALITY's; fps: frames a second to keep, or all."""

    format: str = "h264"
    short_side: int = 256
    square: bool = False
    quality: int | None = None
    fps: float | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.format not in WRITERS:
            raise ValueError(f"unknown format {self.format!r}; known: {', '.join(WRITERS)}")
        if self.short_side < 2 or (self.fps is not None and self.fps <= 0):
            raise ValueError(f"short_side={self.short_side} and fps={self.fps} must be positive")

        low, high = {"h264": (0, 51), "jpeg": (1, 100), "raw": (0, 0)}[self.format]
        if self.quality is not None and not low <= self.quality <= high:
            raise ValueError(f"quality={self.quality} of {self.format} is not in {low} .. {high}")

    @property
    def has_frames(self) -> bool:
        return self.format != "h264"


@dataclass(frozen=True)
class Plan:
    """What is to be done: the rows, the spec, and where things are."""

    manifest: Manifest
    root: str
    folder: Path  # OUT/NAME
    spec: Spec

    @property
    def staging(self) -> Path:
        return self.folder / "incomplete"

    @property
    def final(self) -> Path:
        return self.folder / VERSION

    def staged(self, i: int, suffix: str) -> Path:
        return self.staging / "clips" / f"{i // 1000:05d}" / f"{i:08d}{suffix}"


def stage(plan: Plan, i: int) -> None:
    """Encodes clip i into a file of its own, or notes why it can't be; once."""
    done = plan.staged(i, ".json")
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    try:
        meta, data = encode_clip(plan.manifest.clips[i], plan.root, plan.spec)
    except Damaged as error:
        write_atomically(done, json.dumps({"kind": error.kind, "error": str(error)}))
        return
    part = plan.staged(i, ".part")
    with open(part, "wb") as file:
        file.write(data)
    os.replace(part, plan.staged(i, ".clip"))
    write_atomically(done, json.dumps(meta))  # last: with it the clip is done


def encode_clip(clip: Clip, root: str | Path, spec: Spec) -> tuple[dict[str, Any], memoryview]:
    """A clip in the spec's format: what its record says of it, and its bytes."""
    if tfrecord.is_record(clip.path):
        record = tfrecord.read_record(root, clip.path)
        path, data, sizes = None, b"".join(record.frames), [len(x) for x in record.frames]
        times, seconds, chosen = record.times, record.seconds, None
        if spec.fps:
            raise Damaged("unsupported", "fps can't be changed for records of pictures")
    else:
        path, data = fetch(locate(root, clip.path), sha256=clip.sha256)
        found = index_of(clip, path, data, spec.limits)
        pts, times, sizes = found.pts, found.times - found.times[0], None
        seconds = found.seconds
        if spec.fps:
            moments = np.append(0.0, np.arange(1 / spec.fps, seconds - TOLERANCE, 1 / spec.fps))
            at = np.unique(frames_shown(times, moments))
            pts, times = [pts[k] for k in at], times[at]
        chosen = pts
    ticks = ticks_of(times)
    if len(set(ticks)) < len(ticks):
        raise Damaged("damaged", f"two frames are less than 1/{CLOCK} s apart")
    values, payload = guard.call(
        "transcode",
        path,
        data,
        timeout=spec.limits.timeout * max(1.0, len(ticks) / 250),  # a limit for ten seconds
        format=spec.format,
        pts=chosen,
        ticks=ticks,
        sizes=sizes,
        short_side=spec.short_side,
        square=spec.square,
        quality=QUALITY[spec.format] if spec.quality is None else spec.quality,
        largest_frame=spec.limits.largest_frame,
    )
    view = memoryview(payload)
    meta = {
        **values,
        "ticks": ticks,
        "seconds": seconds,
        "bytes": len(view),
        "sha256": hashlib.sha256(view).hexdigest(),
        "content": hashlib.sha256(f"{ticks} {values}".encode() + view).hexdigest(),
    }
    return meta, view


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
