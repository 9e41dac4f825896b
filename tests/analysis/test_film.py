import av
import numpy as np
import pytest

from tests.data.films import film, number_of
from vivit.analysis.film import main, write_film
from vivit.analysis.windows import windows
from vivit.data.manifest import ClipRow
from vivit.data.settings import ReadLimits
from vivit.data.video_files import open_video
from vivit.run import Run


def read(path):
    with av.open(str(path)) as file:
        frames = [(f.time, f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]
    with av.open(str(path)) as file:
        tracks = file.streams.audio
        sound = [f.to_ndarray() for f in file.decode(tracks[0])] if tracks else []
    return frames, sound


@pytest.mark.parametrize(("container", "audio"), [("mp4", True), ("matroska", False)])
def test_every_frame_at_its_size_and_time_with_its_sound(container, audio, tiny_run, tmp_path):
    path = film(tmp_path / f"a.{container}", container=container, frames=50, audio=audio)
    write_film(tiny_run, path, tmp_path / "out.mp4", checkpoint="latest")
    frames, sound = read(tmp_path / "out.mp4")
    originals, original_sound = read(path)
    assert len(frames) == 50
    assert [t for t, _ in frames] == pytest.approx([t for t, _ in originals], abs=1e-3)
    assert len(sound) == len(original_sound)
    for (_, frame), (_, original) in zip(frames, originals, strict=True):
        assert frame.shape[1] == 96
        assert frame.shape[0] > 64  # the classes are below
        # The model sees the middle square; left of it the frame is unchanged.
        assert abs(frame[:64, :12].astype(int) - original[:, :12]).mean() < 8
    changed = [abs(f[8:56, 24:72].astype(int) - o[8:56, 24:72]).mean()
               for (_, f), (_, o) in zip(frames, originals, strict=True)]  # fmt: skip
    assert max(changed) > 2


def test_side_by_side_has_the_plain_film(tiny_run, tmp_path, capsys):
    video = film(tmp_path / "a.mp4", frames=20)
    out = tmp_path / "out.mp4"
    main([f"--workdir={tiny_run}", f"--video={video}", f"--out={out}", "--side-by-side",
          "--checkpoint=latest"])  # fmt: skip
    assert "wrote" in capsys.readouterr().out
    frames, _ = read(out)
    assert frames[0][1].shape[1] == 2 * 96
    assert [number_of(frame) for _, frame in frames] == list(range(20))


def test_windows_cover_the_whole_film(tiny_run, tmp_path):
    film(tmp_path / "a.mp4", frames=50)
    video = open_video(ClipRow("a.mp4", "", {}), tmp_path, limits=ReadLimits())
    found = windows(video, Run(tiny_run).config.data.sampling, 16)
    assert [window.begin for window in found] == [0, 16, 32, 48]
    np.testing.assert_array_equal(found[1].frames, np.arange(16, 32))
    np.testing.assert_array_equal(found[3].frames, np.arange(34, 50))  # it ends with the film


def test_sound_that_mp4_does_not_hold_is_encoded(tiny_run, tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w", format="matroska") as file:
        video = file.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        track = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        for _ in range(25):
            grey = np.full((64, 96, 3), 90, np.uint8)
            file.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(video.encode(None))
        tone = (3000 * np.sin(np.arange(8000) / 5)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(tone, "s16", "mono")
        frame.rate, frame.pts = 8000, 0
        file.mux(track.encode(frame))
        file.mux(track.encode(None))
    write_film(tiny_run, path, tmp_path / "out.mp4", checkpoint="latest")
    frames, sound = read(tmp_path / "out.mp4")
    assert len(frames) == 25
    assert sum(part.shape[1] for part in sound) >= 8000


def test_a_file_that_cannot_be_read_is_named(tiny_run, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.mp4: Invalid data"):
        write_film(tiny_run, tmp_path / "a.mp4", tmp_path / "out.mp4", checkpoint="latest")
    with pytest.raises(ValueError, match=r"b\.mp4: does not exist"):
        write_film(tiny_run, tmp_path / "b.mp4", tmp_path / "out.mp4", checkpoint="latest")
    assert not (tmp_path / "out.mp4").exists()
