"""Encodes each clip of a manifest into a file: the step that takes the time of prepare.py."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vivit.data import decode_pool, dmvr
from vivit.data.decode import CLOCK
from vivit.data.files import fetch, locate
from vivit.data.manifest import ClipRow, Manifest
from vivit.data.sampling import frames_shown
from vivit.data.settings import ReadLimits
from vivit.data.video import TOLERANCE, ClipReadError
from vivit.data.video_files import index_of, ticks_of
from vivit.dataprep.encode import ENCODERS, Encoder
from vivit.io import write_json

VERSION = "1.0.0"


@dataclass(frozen=True)
class Spec:
    """How clips are stored.

    format: a name of ENCODERS. short_side: pixels that larger frames are shrunk to. square: whether
    only their middle square is kept. quality: None for the encoder's default. fps: frames per
    second to keep; None for all.
    """

    format: str = "h264"
    short_side: int = 256
    square: bool = False
    quality: int | None = None
    fps: float | None = None
    limits: ReadLimits = field(default_factory=ReadLimits)

    def __post_init__(self) -> None:
        low, high = self.encoder.qualities
        if self.short_side < 2 or (self.fps is not None and self.fps <= 0):
            raise ValueError(f"short_side={self.short_side} and fps={self.fps} must be positive")
        if self.quality is not None and not low <= self.quality <= high:
            raise ValueError(f"quality={self.quality} of {self.format} is not in {low} .. {high}")

    @property
    def encoder(self) -> Encoder:
        return ENCODERS[self.format]


@dataclass(frozen=True)
class Plan:
    """What a prepare does: the rows, the data root, where it writes, and how clips are stored."""

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


def encode_staged(plan: Plan, i: int) -> None:
    """Writes clip i into a file, or why it can't be read; does nothing the second time."""
    done = plan.staged(i, ".json")
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    try:
        meta, data = encode_clip(plan.manifest.clips[i], plan.root, plan.spec)
    except ClipReadError as error:
        write_json(done, {"kind": error.kind, "error": str(error)}, indent=None)
        return
    part = plan.staged(i, ".part")
    with open(part, "wb") as file:
        file.write(data)
    os.replace(part, plan.staged(i, ".clip"))
    write_json(done, meta, indent=None)  # last: with it the clip is done


def encode_clip(row: ClipRow, root: str | Path, spec: Spec) -> tuple[dict[str, Any], memoryview]:
    """Returns what the record says of a clip, and the clip in the spec's format."""
    follow_links = spec.limits.follow_links
    if row.is_record:
        record = dmvr.read_record(root, row.path, follow_links=follow_links)
        path, data, sizes = None, b"".join(record.frames), [len(x) for x in record.frames]
        times, seconds, chosen = record.times, record.seconds, None
        if spec.fps:
            raise ClipReadError("unsupported", "fps can't be changed for records of pictures")
    else:
        path, data = fetch(locate(root, row.path, follow_links=follow_links), sha256=row.sha256)
        found = index_of(row, path, data, spec.limits)
        pts, times, sizes = found.pts, found.times - found.times[0], None
        seconds = found.seconds
        if spec.fps:
            moments = np.append(0.0, np.arange(1 / spec.fps, seconds - TOLERANCE, 1 / spec.fps))
            at = np.unique(frames_shown(times, moments))
            pts, times = [pts[k] for k in at], times[at]
        chosen = pts
    ticks = ticks_of(times)
    if len(set(ticks)) < len(ticks):
        raise ClipReadError("damaged", f"two frames are less than 1/{CLOCK} s apart")
    values, payload = decode_pool.call(
        "vivit.dataprep.encode:transcode",
        path,
        data,
        timeout=spec.limits.timeout_seconds * max(1.0, len(ticks) / 250),  # per 10 s of video
        format=spec.format,
        pts=chosen,
        ticks=ticks,
        sizes=sizes,
        short_side=spec.short_side,
        square=spec.square,
        quality=spec.encoder.quality if spec.quality is None else spec.quality,
        largest_frame=spec.limits.largest_frame,
    )
    view = payload.data
    sha256 = hashlib.sha256(view).hexdigest()
    shown = ticks, values["width"], values["height"], sha256
    meta = {
        **values,
        "ticks": ticks,
        "seconds": seconds,
        "bytes": len(view),
        "sha256": sha256,
        "content": hashlib.sha256(str(shown).encode()).hexdigest(),
    }
    return meta, view
