"""Figures of a clip: what they draw, and their files."""

import av
import numpy as np
import pytest
from PIL import Image

from vivit.analysis import capture, open_run
from vivit.analysis.figures import head_grid, main, space_time_stack, write_overlay


@pytest.fixture(scope="module")
def maps(tiny_run):
    run = open_run(tiny_run, checkpoint="latest")
    return capture(run.model, run.params, run.clips([3])[0])


def drawn(figure):
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def test_every_head_is_drawn(maps):
    space, time = maps.attentions
    images = drawn(head_grid(maps, "stage 0, space"))
    expected = np.asarray(space.weights())[0].mean(axis=(1, 2, 3)).reshape(2, 2, 2)
    np.testing.assert_allclose(images, expected, atol=1e-6)
    images = drawn(head_grid(maps, "stage 0, space", query=(2, 1, 0)))
    np.testing.assert_allclose(
        images, np.asarray(space.weights())[0, :, 2, 2, 2].reshape(2, 2, 2), atol=1e-6
    )
    weights = np.asarray(time.weights())[0, :, :, 0, :, 0]
    np.testing.assert_allclose(drawn(head_grid(maps, "stage 1, time")), weights, atol=1e-6)
    images = drawn(head_grid(maps, "stage 1, time", query=(2, 1, 0)))
    np.testing.assert_allclose(images, weights[:, 2:3], atol=1e-6)
    with pytest.raises(ValueError, match="no attention 'space'; there are stage 0, space; stage"):
        head_grid(maps, "space")
    with pytest.raises(ValueError, match=r"no query \(9, 0, 0\) on the grid"):
        head_grid(maps, "stage 0, space", query=(9, 0, 0))


def test_a_stack_has_the_frames_from_the_first_to_the_last():
    clip = np.random.default_rng(0).integers(0, 255, (16, 8, 12, 3), np.uint8)
    figure = space_time_stack(clip, np.ones((16, 8, 12)), frames=4)
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["15", "10", "5", "0"]
    assert len(axis.images) == 4
    np.testing.assert_array_equal(axis.images[-1].get_array(), clip[0])  # a uniform map is plain


def test_films_play_all_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 31, 40, 3), np.uint8)
    with Image.open(write_overlay(tmp_path / "a.gif", frames)) as gif:
        assert (gif.n_frames, gif.size) == (5, (320, 248))
    with av.open(str(write_overlay(tmp_path / "a.mp4", frames))) as file:
        found = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    assert np.shape(found) == (5, 248, 320, 3)
    assert np.abs(found[0][4::8, 4::8].astype(int) - frames[0]).mean() < 40
    with pytest.raises(ValueError, match=r"a\.avi must end in \.gif or \.mp4"):
        write_overlay(tmp_path / "a.avi", frames)


def test_files_of_a_clip(tiny_run, tmp_path, capsys):
    common = [f"--workdir={tiny_run}", "--checkpoint=latest", f"--out={tmp_path}/f"]
    main([*common, "--clip=2", "--methods=rollout", "--formats=svg,png", "--query=1,0,1"])
    names = {path.name for path in (tmp_path / "f").iterdir()}
    figures = ("heads_stage_0_space", "heads_stage_1_time", "rollout_stack")
    assert names == {
        *(f"{name}.{form}" for name in figures for form in ("svg", "png")),
        "rollout.gif",
        "rollout.mp4",
    }
    assert capsys.readouterr().out.count("wrote ") == len(names)
    for arguments, message in (
        ([], "f exists; choose another --out"),
        (["--formats=bmp"], "no format 'bmp'; there are pdf, svg, png"),
        (["--query=a"], "--query=a is to be three numbers, such as 4,7,7"),
        (["--clip=50"], r"\[50\] are not in 0 .. 20"),
        (["--methods=x"], "unknown method of attribution 'x'"),
    ):
        other = [*common[:2], f"--out={tmp_path}/g"] if arguments else common
        with pytest.raises(ValueError, match=message):
            main([*other, *arguments])
    assert not (tmp_path / "g").exists()
