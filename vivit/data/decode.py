"""Frames of video files by presentation time, with PyAV, and of JPEG and PNG pictures.

Everything that is found wrong raises ClipReadError; a frame that is returned is the requested one.
Files from elsewhere are decoded in processes of their own: see decode_pool.py.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import av
import numpy as np
import simplejpeg
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from vivit.data.settings import LARGEST_FRAME
from vivit.data.video import TOLERANCE, ClipReadError

CLOCK = 90_000  # ticks per second of the presentation times that prepared clips keep
# PyAV 18 is strict about text in a file's metadata, and PyAV 19 never.
LENIENT: Any = {"metadata_errors": "ignore"} if av.__version__.startswith("18.") else {}
# Demuxers that can't be made to open other files or addresses, as playlists and lists can.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,m4v,h264,hevc,"
    "rm,wtv,mxf,nut,ivf,gif,y4m,yuv4mpegpipe,dv"
)
# Where every packet is one shown frame and carries its presentation time: there the packets alone
# say which frames there are. Elsewhere (AVI keeps no presentation times) all frames are decoded.
TIMED_CONTAINERS = ("mov", "matroska")
TIMED_CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg", "mpeg4", "prores")


class Index(NamedTuple):
    """pts: of the shown frames of a segment, ascending, in units of `time_base` seconds.

    zero: pts of the file's first shown frame, where seconds count from.
    width, height: pixels as shown, rotated by `rotation` degrees (anticlockwise, in steps of 90).
    seconds: from the first frame to the end of the last one. rate: mean frames per second.
    """

    pts: list[int]
    zero: int
    time_base: float
    width: int
    height: int
    rotation: int
    seconds: float
    rate: float
    codec: str
    container: str
    audio: bool

    @property
    def times(self) -> np.ndarray:
        """Seconds of the frames from the file's first one."""
        return (np.array(self.pts, np.float64) - self.zero) * self.time_base


def index(
    source: str | bytes,
    *,
    start: float | None = None,
    end: float | None = None,
    largest_frame: int = LARGEST_FRAME,
) -> Index:
    """Returns which frames a file has, or those shown from `start` to before `end` (seconds).

    source: a path, or a file's bytes. Costs reading the packets, or for formats without
    presentation times decoding all frames.
    """
    with _opened(source, largest_frame) as (container, stream):
        timed = _is_timed(container, stream)
        zero, pts, key_pts, last = _packets(container, stream, start, end) if timed else EMPTY
    if not timed:
        zero, pts, key_pts, last = _frames(source, largest_frame)
    if not pts:
        raise ClipReadError("damaged", "no frame can be decoded")
    if len(set(pts)) < len(pts):
        raise ClipReadError("damaged", "two frames have the same presentation time")
    pts = sorted(pts)
    with _opened(source, largest_frame) as (container, stream):
        base = float(stream.time_base or 0)
        first = _first_frame(container, stream, None if start is None else key_pts[0])
        rotation = _rotation(first)
        width, height = first.width, first.height
        codec, format = stream.codec_context.name, container.format.name.split(",")[0]
        audio = bool(container.streams.audio)
    gaps = np.diff(pts)
    last = last or (float(np.median(gaps)) if len(gaps) else 0.0)
    seconds = (pts[-1] - pts[0] + last) * base
    chosen = pts
    if start is not None or end is not None:
        chosen = _between(pts, zero, base, start, end)
        if not chosen:
            raise ClipReadError(
                "too short",
                f"no frame from {start or 0:g} to {'the end' if end is None else f'{end:g}'} s; "
                f"it ends at {(pts[-1] - zero) * base + last * base:.2f} s",
            )
        seconds = (chosen[-1] - chosen[0] + last) * base
    if rotation in (90, 270):
        width, height = height, width
    rate = len(chosen) / seconds if seconds > 0 else 0.0
    return Index(chosen, zero, base, width, height, rotation, seconds, rate, codec, format, audio)


def read(
    source: str | bytes,
    pts: list[int],
    *,
    height: int | None = None,
    width: int | None = None,
    window: Sequence[int] | None = None,
    largest_frame: int = LARGEST_FRAME,
) -> np.ndarray:
    """Returns the frames with these presentation times, in this order: uint8 [F, H, W, 3].

    height, width: of the frames as shown; None for the file's. window: top, left, height and width
    of the part to return. Raises ClipReadError if a frame is missing.
    """
    if not pts:
        raise ValueError("no frames are requested")
    wanted = sorted(set(pts))
    out, size = np.empty(0, np.uint8), None
    for n, frame in enumerate(frames_at(source, wanted, largest_frame=largest_frame)):
        picture = to_rgb(frame, height=height, width=width)
        size = size or picture.shape
        if picture.shape != size:
            raise ClipReadError("damaged", "the size of its frames changes")
        if window is not None:
            top, left, h, w = window
            picture = picture[top : top + h, left : left + w]
        if n == 0:
            out = np.empty((len(wanted), *picture.shape), np.uint8)
        out[n] = picture
    if wanted == pts:
        return out
    places = {p: i for i, p in enumerate(wanted)}
    return out[[places[p] for p in pts]]


def frames_at(
    source: str | bytes, pts: list[int], *, largest_frame: int = LARGEST_FRAME
) -> Iterator[VideoFrame]:
    """Yields the frames with these ascending presentation times; seeks to the key frame before."""
    found = 0
    try:
        for frame in _wanted(_walk(source, pts[0], largest_frame), pts):
            yield frame
            found += 1
    except ClipReadError:
        if found:  # some have gone out already: what follows them is really missing
            raise
        # Some files mark frames as keys from which decoding can't start: begin at the beginning.
        yield from _wanted(_walk(source, None, largest_frame), pts)


def to_rgb(frame: VideoFrame, *, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Returns uint8 [H, W, 3], rotated as the file says, at this size (area-averaged) if given."""
    rotation = _rotation(frame)
    if rotation in (90, 270):
        height, width = width, height
    picture = frame.to_ndarray(format="rgb24", height=height, width=width, interpolation="AREA")
    return np.rot90(picture, rotation // 90) if rotation else picture


def decode_jpeg(data: bytes, *, largest_frame: int = LARGEST_FRAME) -> np.ndarray:
    """Returns the pixels of a JPEG or PNG file, uint8 [H, W, 3].

    Raises ClipReadError if the file is cut off, broken or too large.
    """
    try:
        if simplejpeg.is_jpeg(data):  # libjpeg-turbo, as in Pillow, in 0.8 of the time
            height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
            if width * height > largest_frame:
                raise ClipReadError("too large", f"a frame of {width} x {height} pixels")
            return np.asarray(simplejpeg.decode_jpeg(data))
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > largest_frame:
                raise ClipReadError(
                    "too large", f"a frame of {image.width} x {image.height} pixels"
                )
            return np.asarray(image.convert("RGB"))
    except ClipReadError:
        raise
    except Exception as error:  # both raise what their libraries raise
        raise ClipReadError("damaged", f"a frame: {type(error).__name__}: {error}") from error


def _between(pts: list[int], zero: int, base: float, start: float | None, end: float | None):
    """Returns the frames shown from `start` to before `end`; the first may begin before `start`."""
    times = (np.array(pts, np.float64) - zero) * base
    first = 0 if start is None else max(bisect_right(times.tolist(), start + TOLERANCE) - 1, 0)
    if start is not None and start > times[-1] + (times[-1] - times[-2] if len(pts) > 1 else 0):
        return []
    last = len(pts) if end is None else int(np.searchsorted(times, end - TOLERANCE))
    return pts[first:last]


@contextmanager
def _opened(
    source: str | bytes, largest_frame: int
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a container and its video stream; all of libav's errors become ClipReadError."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        with av.open(file, options=options, **LENIENT) as container:
            if not container.streams.video:
                kind = "audio only" if container.streams.audio else "damaged"
                raise ClipReadError(kind, "has no video stream")
            stream = container.streams.video[0]
            context = stream.codec_context
            if context is None:
                raise ClipReadError("damaged", "has a codec that is not known")
            if context.width * context.height > largest_frame:
                raise ClipReadError(
                    "too large",
                    f"frames of {context.width} x {context.height} pixels are larger than the "
                    f"{largest_frame} pixels allowed",
                )
            context.thread_count = 1
            context.options = {"err_detect": "explode", "max_pixels": str(largest_frame)}
            yield container, stream  # pyright: ignore[reportReturnType]
    except (FFmpegError, EOFError, OverflowError, MemoryError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ClipReadError("damaged", reason) from error
    except (ValueError, RuntimeError) as error:
        if isinstance(error, ClipReadError):
            raise
        raise ClipReadError("damaged", f"{type(error).__name__}: {error}") from error


def _is_timed(container: InputContainer, stream: VideoStream) -> bool:
    names = container.format.name.split(",")
    return bool(set(names) & set(TIMED_CONTAINERS)) and stream.codec_context.name in TIMED_CODECS


EMPTY: tuple[int, list[int], list[int], int] = (0, [], [], 0)


def _packets(container, stream, start, end) -> tuple[int, list[int], list[int], int]:
    """Returns the pts of the file's first frame, of all frames (of a segment: those around it) and
    of key frames, and the duration of the last frame, or 0 where it is unknown."""
    base = stream.time_base
    pts, keys, seen, lasts = [], [], 0, {}
    zero = stream.start_time or 0
    if start is not None and start > 1:
        container.seek(int(zero + start / base), stream=stream, backward=True)
    limit = None if end is None else zero + (end + 1) / base  # B-frames come after later ones
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_corrupt:
            raise ClipReadError("damaged", "a packet is marked as damaged")
        seen += 1
        if packet.is_discard:  # hidden by an edit list, and only decoded for what follows
            continue
        if packet.pts is None:
            raise ClipReadError("damaged", "its packets have no presentation times")
        pts.append(packet.pts)
        lasts[packet.pts] = packet.duration or 0
        if packet.is_keyframe:
            keys.append(packet.pts)
        if limit is not None and packet.dts is not None and packet.dts > limit:
            break
    whole = start is None and end is None
    if whole and container.format.name.startswith("mov") and seen < len(stream.index_entries):
        raise ClipReadError("damaged", f"ends after {seen} of {len(stream.index_entries)} frames")
    if whole and pts:
        zero = min(pts)
        _check_end(stream, float((max(pts) + lasts[max(pts)]) * base))
    return zero, pts, keys or pts[:1], lasts[max(pts)] if pts else 0


def _frames(source: str | bytes, largest_frame: int) -> tuple[int, list[int], list[int], int]:
    """Returns what _packets returns, by decoding all frames."""
    pts, last = [], 0
    for frame in _walk(source, None, largest_frame):
        if frame.pts is None:
            raise ClipReadError("damaged", "its frames have no presentation times")
        pts.append(frame.pts)
        last = frame.duration or 0
    if pts:
        with _opened(source, largest_frame) as (_, stream):
            _check_end(stream, float((max(pts) + last) * (stream.time_base or 0)))
    return (pts[0] if pts else 0), pts, pts[:1], last


def _check_end(stream: VideoStream, end: float) -> None:
    """Raises ClipReadError where the video stops well before the end that its stream states."""
    stated = None
    if stream.metadata.get("DURATION"):  # Matroska's, from 0 whenever it starts
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        stated = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    elif stream.duration:
        stated = float((stream.duration + (stream.start_time or 0)) * (stream.time_base or 0))
    if stated is not None and end < stated - max(0.5, 0.02 * stated):
        raise ClipReadError("damaged", f"its video ends after {end:.1f} of {stated:.1f} s")


def _walk(source: str | bytes, start: int | None, largest_frame: int) -> Iterator[VideoFrame]:
    """Yields frames in order of presentation, from the key frame before `start` or the first."""
    with _opened(source, largest_frame) as (container, stream):
        if start is not None and _is_timed(container, stream):
            container.seek(start, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ClipReadError("damaged", f"the frame at {frame.time} s is damaged")
            if frame.width * frame.height > largest_frame:
                raise ClipReadError(
                    "too large", f"a frame of {frame.width} x {frame.height} pixels"
                )
            yield frame


def _wanted(frames: Iterator[VideoFrame], pts: list[int]) -> Iterator[VideoFrame]:
    remaining = iter(pts)
    wanted = next(remaining)
    for frame in frames:
        if frame.pts is None or frame.pts < wanted:
            continue
        if frame.pts > wanted:
            break
        yield frame
        wanted = next(remaining, None)
        if wanted is None:
            return
    raise ClipReadError("damaged", "a requested frame can't be decoded")


def _first_frame(container: InputContainer, stream: VideoStream, at: int | None) -> VideoFrame:
    if at is not None:
        container.seek(at, stream=stream, backward=True)
    for frame in container.decode(stream):
        return frame
    raise ClipReadError("damaged", "no frame can be decoded")


def _rotation(frame: VideoFrame) -> int:
    rotation = round(frame.rotation) % 360
    if rotation % 90:
        raise ClipReadError(
            "damaged", f"is rotated by {rotation} degrees, which is not a multiple of 90"
        )
    return rotation
