"""Clips in the formats that training reads fast. Runs in a child process: see guard.py."""

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import simplejpeg
from av import VideoFrame
from av import open as open_container
from PIL import Image

from vivit.data import decode
from vivit.data.decode import LARGEST_FRAME, Damaged

CLOCK = 90_000  # ticks a second of the presentation times that prepared clips keep
# A key frame every 16 frames and no frame that needs a later one: a reader decodes at most 15
# frames for nothing. "fastdecode" leaves out what makes decoding slow and files a little smaller.
H264 = {
    "preset": "faster",
    "tune": "fastdecode",
    "g": "16",
    "bf": "0",
    "sc_threshold": "0",
    "threads": "1",
}


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
    """A clip in a format of WRITERS: its frames' height and width, sizes of its parts, its bytes.

    pts: the frames of a video file to take. Without: `source` is JPEG files on end, of `sizes`.
    ticks: their times in the clip, ascending from 0, in 1/CLOCK s.
    short_side: pixels that larger frames are shrunk to. square: keep only their middle square.
    quality: of WRITERS' encoder.
    """
    if pts is None:
        pictures = _jpeg_frames(source, sizes, largest_frame)
    else:
        pictures = decode.frames_at(source, pts, largest_frame=largest_frame)
    if square:
        pictures = _squares(pictures, short_side)
    return WRITERS[format](pictures, ticks, short_side, quality)


def fit(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height, both even, of a frame shrunk to this short side; never enlarged."""
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
    out, size = io.BytesIO(), None
    with open_container(out, "w", format="mp4") as container:
        for tick, frame in zip(ticks, frames, strict=True):
            if frame.rotation:
                turned = np.ascontiguousarray(decode.to_rgb(frame))
                frame = VideoFrame.from_ndarray(turned, format="rgb24")
            if size is None:
                size = fit(frame.width, frame.height, short_side)
                stream = container.add_stream("libx264", options={**H264, "crf": str(quality)})
                stream.width, stream.height = size
                stream.pix_fmt = "yuv420p"
                stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
                stream.codec_context.framerate = _rate(ticks)
            # One colour space and range for all, which is what untagged video is taken for.
            small = frame.reformat(
                *size,
                format="yuv420p",
                interpolation="AREA",
                dst_colorspace="ITU601",
                dst_color_range="MPEG",
            )
            small.pts, small.time_base = tick, Fraction(1, CLOCK)
            small.pict_type = 0  # what the source's encoder made of it is no order for ours
            container.mux(stream.encode(small))
        container.mux(stream.encode(None))
    data = out.getvalue()
    stored = decode.index(data)
    if [round(p * stored.time_base * CLOCK) for p in stored.pts] != ticks:
        raise Damaged("damaged", "its frames' times can't be kept in an MP4 file")
    return {"width": size[0], "height": size[1], "sizes": [len(data)]}, data


def _rate(ticks: list[int]) -> Fraction:
    """Frames a second, for the encoder's sense of bits only."""
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
    """RGB pictures as shown, all of the first one's size."""
    size = None
    for _, frame in zip(ticks, frames, strict=True):
        picture = _small(frame, size, short_side)
        size = size or (picture.shape[1], picture.shape[0])
        yield picture


def _small(frame: VideoFrame, size: tuple[int, int] | None, short_side: int) -> np.ndarray:
    """A frame as shown, in RGB, of this width and height or shrunk to the short side."""
    turned = round(frame.rotation) % 180 == 90
    shown = (frame.height, frame.width) if turned else (frame.width, frame.height)
    width, height = size or fit(*shown, short_side)
    return np.ascontiguousarray(decode.to_rgb(frame, width=width, height=height))


def _jpeg_frames(source: bytes, sizes: list[int], largest_frame: int) -> Iterator[VideoFrame]:
    at = 0
    for size in sizes:
        picture = decode_jpeg(source[at : at + size], largest_frame=largest_frame)
        yield VideoFrame.from_ndarray(picture, format="rgb24")
        at += size


def decode_jpeg(data: bytes, *, largest_frame: int = LARGEST_FRAME) -> np.ndarray:
    """uint8 [H, W, 3] of a JPEG, or PNG, file. Damaged if it is cut off, broken or too large."""
    try:
        if simplejpeg.is_jpeg(data):  # libjpeg-turbo, as in Pillow, in 0.8 of the time
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            if width * height > largest_frame:
                raise Damaged("too large", f"a frame of {width} x {height} pixels")
            return simplejpeg.decode_jpeg(data)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > largest_frame:
                raise Damaged("too large", f"a frame of {image.width} x {image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except Damaged:
        raise
    except Exception as error:  # both raise what their libraries raise
        raise Damaged("damaged", f"a frame: {type(error).__name__}: {error}") from error


WRITERS: dict[str, Callable[..., tuple[dict[str, Any], Any]]] = {
    "h264": _write_h264,
    "jpeg": _write_jpeg,
    "raw": _write_raw,
}
