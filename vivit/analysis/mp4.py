"""MP4 files of drawn frames, with the sound of a film that they were drawn on."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from vivit.data import decode
from vivit.data.decode import CLOCK

COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")  # sound that MP4 holds as it is


class Writer:
    """An MP4 file that gets frames at their times, and the sound of a source.

    shape: height and width of the frames, whose last row and column are left out if odd, as yuv420p
    needs. source: None for no sound. zero: seconds of the source's first frame. crf: x264's.
    """

    def __init__(
        self,
        out: Path,
        shape: tuple[int, int],
        *,
        rate: float,
        source: Path | None = None,
        zero: float = 0.0,
        crf: int = 20,
    ) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        self.file = av.open(str(out), "w", format="mp4")
        options = {"crf": str(crf), "preset": "veryfast"}
        self.video: Any = self.file.add_stream("libx264", options=options)
        self.video.height, self.video.width = (length // 2 * 2 for length in shape)
        self.video.pix_fmt = "yuv420p"
        self.video.time_base = self.video.codec_context.time_base = Fraction(1, CLOCK)
        self.video.codec_context.framerate = Fraction(rate).limit_denominator(1001)
        self.source: Any = None if source is None else av.open(str(source), **decode.LENIENT)
        self.zero = zero
        self.sound = self._sound()
        self.waiting = next(self.sound, None)

    def add(self, frame: UInt8[np.ndarray, "H W 3"], seconds: float) -> None:
        """Adds a frame, after the sound that is heard before it."""
        self._add_sound(until=seconds)
        even = np.ascontiguousarray(frame[: self.video.height, : self.video.width])
        picture = av.VideoFrame.from_ndarray(even, format="rgb24")
        picture.pts, picture.time_base = round((seconds - self.zero) * CLOCK), Fraction(1, CLOCK)
        self.file.mux(self.video.encode(picture))

    def close(self) -> None:
        """Writes what is left; the sound ends with the source's."""
        self.file.mux(self.video.encode(None))
        self._add_sound(until=float("inf"))
        self.file.close()
        if self.source is not None:
            self.source.close()

    def _add_sound(self, *, until: float) -> None:
        while self.waiting is not None and self.waiting[0] <= until:
            self.file.mux(self.waiting[1])
            self.waiting = next(self.sound, None)

    def _sound(self) -> Iterator[tuple[float, Any]]:
        """Returns an iterator of times and packets of the source's first sound track."""
        if self.source is None or not self.source.streams.audio:
            return iter(())
        track, video = self.source.streams.audio[0], self.source.streams.video[0]
        first = float((video.start_time or 0) * (video.time_base or 0))
        if track.codec_context.name in COPIED:
            new = self.file.add_stream_from_template(track)
            return self._copied(track, new, first)
        new = self.file.add_stream("aac", rate=track.codec_context.sample_rate)
        return self._encoded(track, new, first)

    def _copied(self, track: Any, new: Any, first: float) -> Iterator[tuple[float, Any]]:
        shift = round(first / track.time_base)
        for packet in self.source.demux(track):
            if packet.dts is None or packet.pts < shift:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            seconds = float(packet.pts * track.time_base)
            packet.stream = new
            yield seconds, packet

    def _encoded(self, track: Any, new: Any, first: float) -> Iterator[tuple[float, Any]]:
        resampler = av.AudioResampler(format="fltp", layout=track.codec_context.layout,
                                      rate=track.codec_context.sample_rate)  # fmt: skip
        for frame in self.source.decode(track):
            seconds = float(frame.pts * frame.time_base) - first
            if seconds < 0:
                continue
            frame.pts = round(seconds / frame.time_base)
            for part in resampler.resample(frame):
                yield from ((seconds, packet) for packet in new.encode(part))
        yield from ((float("inf"), packet) for packet in new.encode(None))
