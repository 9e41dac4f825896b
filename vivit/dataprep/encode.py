"""Encodes clips in the formats that training reads fast, in the processes of decode_pool.py."""

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av import VideoFrame
from av import open as open_container
from PIL import Image

from vivit.data import decode
from vivit.data.decode import CLOCK, decode_jpeg
from vivit.data.settings import LARGEST_FRAME
from vivit.data.video import ClipReadError
from vivit.registry import Registry

# A key frame every 16 frames and no frame that needs a later one: a reader decodes at most 15
# frames for nothing. "fastdecode" leaves out what makes decoding slow and files a little smaller.
H264 = {"preset": "faster", "tune": "fastdecode", "g": "16", "bf": "0", "sc_threshold": "0"}
H264["threads"] = "1"
# Equal frames give equal bytes: x264's macroblock tree reads memory that it has not written. Files
# of the same quality are within 6 % of the size that they have with it.
H264["mbtree"] = "0"


@dataclass(frozen=True)
class Encoder:
    """A format of prepared clips; vivit.data.sources.OPENERS has its reader.

    encode: (frames, ticks, short_side, quality) -> (height, width and sizes of parts, bytes); equal
    frames give equal bytes.
    quality: the default, of `qualities` from the least to the greatest.
    frame_records: whether each frame becomes a record. picture: how these pictures are encoded, in
    TFDS's words; "" for pixels.
    """

    encode: Callable[[Iterator[VideoFrame], list[int], int, int], tuple[dict[str, Any], Any]]
    quality: int
    qualities: tuple[int, int]
    frame_records: bool = True
    picture: str = ""


ENCODERS: Registry[Encoder] = Registry("format of prepared clips")


def transcode(
    source: str | bytes,
    *,
    format: str,
    pts: list[int] | None = None,
    ticks: list[int],
    sizes: list[int] | None = None,
    short_side: int,
    square: bool,
    quality: int,
    largest_frame: int = LARGEST_FRAME,
) -> tuple[dict[str, Any], Any]:
    """Returns a clip in a format of ENCODERS: what `Encoder.encode` says of it, and its bytes.

    pts: the frames of a video file to take; None if `source` is concatenated JPEG files of `sizes`.
    ticks: their times in the clip, ascending from 0, in 1/CLOCK s.
    short_side: pixels that larger frames are shrunk to. square: keeps only their middle square.
    """
    if pts is None:
        assert isinstance(source, bytes)
        pictures = _jpeg_frames(source, sizes or [], largest_frame)
    else:
        pictures = decode.frames_at(source, pts, largest_frame=largest_frame)
    if square:
        pictures = _squares(pictures, short_side)
    return ENCODERS[format].encode(pictures, ticks, short_side, quality)


def fit(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Returns an even width and height of a frame shrunk to this short side; never enlarged."""
    scale = min(1.0, short_side / min(width, height))
    even = lambda x: max(2, 2 * int(x * scale / 2 + 1e-6))
    return even(width), even(height)


def _squares(frames: Iterator[VideoFrame], short_side: int) -> Iterator[VideoFrame]:
    for frame in frames:
        picture = _small(frame, None, short_side)
        height, width, _ = picture.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        middle = np.ascontiguousarray(picture[top : top + side, left : left + side])
        yield VideoFrame.from_ndarray(middle, format="rgb24")


def _write_h264(frames: Iterator[VideoFrame], ticks: list[int], short_side: int, quality: int):
    out, upright = io.BytesIO(), map(_upright, frames)
    first = next(upright)
    width, height = fit(first.width, first.height, short_side)
    with open_container(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", options={**H264, "crf": str(quality)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        stream.codec_context.framerate = _rate(ticks)
        for tick, frame in zip(ticks, itertools.chain([first], upright), strict=True):
            # One colour space and range for all, which decoders assume of untagged video.
            small = frame.reformat(
                width,
                height,
                format="yuv420p",
                interpolation="AREA",
                dst_colorspace="ITU601",
                dst_color_range="MPEG",
            )
            small.pts, small.time_base = tick, Fraction(1, CLOCK)
            small.pict_type = 0  # the source's frame types do not bind our encoder
            container.mux(stream.encode(small))
        container.mux(stream.encode(None))
    data = out.getvalue()
    stored = decode.index(data)
    if [round(p * stored.time_base * CLOCK) for p in stored.pts] != ticks:
        raise ClipReadError("damaged", "its frames' times can't be kept in an MP4 file")
    return {"width": width, "height": height, "sizes": [len(data)]}, data


def _upright(frame: VideoFrame) -> VideoFrame:
    """Returns a frame without rotation metadata."""
    if not frame.rotation:
        return frame
    return VideoFrame.from_ndarray(np.ascontiguousarray(decode.to_rgb(frame)), format="rgb24")


def _rate(ticks: list[int]) -> Fraction:
    """Returns frames per second, which only guide the encoder's use of bits."""
    mean = (ticks[-1] - ticks[0]) / max(len(ticks) - 1, 1)
    return Fraction(CLOCK / mean).limit_denominator(1000) if mean > 0 else Fraction(25)


def _write_jpeg(frames: Iterator[VideoFrame], ticks: list[int], short_side: int, quality: int):
    parts, size = [], (0, 0)
    for picture in _shrunk(frames, ticks, short_side):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        parts.append(file.getvalue())
        size = picture.shape[1], picture.shape[0]
    sizes = [len(part) for part in parts]
    return {"width": size[0], "height": size[1], "sizes": sizes}, b"".join(parts)


def _write_raw(frames: Iterator[VideoFrame], ticks: list[int], short_side: int, quality: int):
    pictures = np.stack(list(_shrunk(frames, ticks, short_side)))
    _, height, width, _ = pictures.shape
    return {"width": width, "height": height, "sizes": [pictures.nbytes]}, pictures


def _shrunk(frames: Iterator[VideoFrame], ticks: list[int], short_side: int):
    """Yields RGB pictures as shown, all of the first one's size."""
    size = None
    for _, frame in zip(ticks, frames, strict=True):
        picture = _small(frame, size, short_side)
        size = size or (picture.shape[1], picture.shape[0])
        yield picture


def _small(frame: VideoFrame, size: tuple[int, int] | None, short_side: int) -> np.ndarray:
    """Returns a frame as shown, in RGB, of this width and height or shrunk to the short side."""
    sideways = round(frame.rotation) % 180 == 90
    shown = (frame.height, frame.width) if sideways else (frame.width, frame.height)
    width, height = size or fit(*shown, short_side)
    return np.ascontiguousarray(decode.to_rgb(frame, width=width, height=height))


def _jpeg_frames(source: bytes, sizes: list[int], largest_frame: int) -> Iterator[VideoFrame]:
    at = 0
    for size in sizes:
        picture = decode_jpeg(source[at : at + size], largest_frame=largest_frame)
        yield VideoFrame.from_ndarray(picture, format="rgb24")
        at += size


ENCODERS.add("h264", Encoder(_write_h264, 20, (0, 51), frame_records=False))  # x264's crf
ENCODERS.add("jpeg", Encoder(_write_jpeg, 90, (1, 100), picture="jpeg"))
ENCODERS.add("raw", Encoder(_write_raw, 0, (0, 0)))
