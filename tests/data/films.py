"""Small videos whose frames carry their number, in many containers and codecs."""

import io
import struct
from fractions import Fraction

import av
import numpy as np

BITS, BLOCK = 8, 16


def picture(number, *, height=64, width=96):
    """A grey frame with `number` in 8 black or white blocks, and noise that makes it a real one."""
    rng = np.random.default_rng(number)
    out = np.full((height, width, 3), 128, np.uint8)
    out[40:56, 64:] = rng.integers(90, 160, (16, width - 64, 1))
    for bit in range(BITS):
        y, x = divmod(bit, 4)
        value = 235 if number >> bit & 1 else 20
        out[y * BLOCK : (y + 1) * BLOCK, x * BLOCK : (x + 1) * BLOCK] = value
    return out


def number_of(frame):
    """The number that a frame carries, wherever it has been through."""
    total = 0
    for bit in range(BITS):
        y, x = divmod(bit, 4)
        block = frame[y * BLOCK + 4 : y * BLOCK + 12, x * BLOCK + 4 : x * BLOCK + 12]
        total |= int(block.mean() > 128) << bit
    return total


def film(
    path=None,
    *,
    frames=60,
    container="mp4",
    codec="libx264",
    pix_fmt="yuv420p",
    size=(64, 96),
    times=None,
    rate=25,
    options=None,
    audio=False,
):
    """Writes a video (to bytes without a path); `times` are milliseconds of the frames."""
    out = io.BytesIO() if path is None else str(path)
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        sound = file.add_stream("aac", rate=8000, layout="mono") if audio else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(
                picture(i, height=size[0], width=size[1]), format="rgb24"
            )
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound:
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
            tone.rate, tone.pts = 8000, 0
            file.mux(sound.encode(tone))
            file.mux(sound.encode(None))
    return out.getvalue() if path is None else path


def sound(path):
    """A file with a sound track only."""
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        tone.rate, tone.pts = 8000, 0
        file.mux(stream.encode(tone))
        file.mux(stream.encode(None))
    return path


def turned(data, degrees):
    """An MP4 file with the display matrix of a phone held at this angle (clockwise)."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    return _patched(data, b"tkhd", 4 + 40, matrix)


def _patched(data, box, offset, new):
    at = data.index(box) + offset
    return data[:at] + new + data[at + len(new) :]
