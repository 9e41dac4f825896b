import av
import pytest

from tests.data.films import film
from vivit.analysis.film import main, write_film


def test_a_film_shows_every_clip_plain_and_with_heat(tiny_run, tmp_path, capsys):
    video = film(tmp_path / "a.mp4", frames=50)
    main([f"--workdir={tiny_run}", f"--video={video}", f"--out={tmp_path}/out.mp4"])
    assert "wrote" in capsys.readouterr().out
    with av.open(str(tmp_path / "out.mp4")) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 48  # three clips of 16 frames
    assert frames[0].shape == (512, 256, 3)
    plain, heated = frames[20][:256].astype(int), frames[20][256:].astype(int)
    assert abs(plain - heated).mean() > 3


def test_a_video_that_is_too_short(tiny_run, tmp_path):
    video = film(tmp_path / "a.mp4", frames=9)
    with pytest.raises(ValueError, match="has 9 frames, fewer than a clip's 16"):
        write_film(tiny_run, video, tmp_path / "out.mp4", split="test")
