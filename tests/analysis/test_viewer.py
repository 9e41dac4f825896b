"""The viewer: what it keeps equals the arrays, and what a click shows is what it keeps."""

import base64
import gzip
import json
import re

import jax
import numpy as np
import pytest

import vivit
from tests.browser import needs_chromium, run_script, screenshot
from tests.data.films import film
from tests.test_model import TINY, with_head
from vivit.analysis import attribute, capture, open_run
from vivit.analysis.__main__ import main
from vivit.analysis.report import write_report
from vivit.analysis.summaries import boxes_of
from vivit.analysis.viewer import BYTES, choose_boxes, to_bytes, usual_methods

CLIPS = [0, 3, 5]


@pytest.fixture(scope="module")
def page(tiny_run, tmp_path_factory):
    """A page of a run next to itself."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    options = {"checkpoint": "latest", "clips": CLIPS, "methods": ["rollout", "grad_cam"]}
    return write_report([tiny_run, tiny_run], out=out, **options)


@pytest.fixture(scope="module")
def maps(tiny_run):
    run = open_run(tiny_run, checkpoint="latest")
    clips, _ = run.clips(CLIPS)
    return run, clips, capture(run.model, run.params, clips)


def data_of(page):
    pattern = r'<script type="application/json" id="viewer-data">(.*?)</script>'
    return json.loads(re.search(pattern, page.read_text(), re.S)[1])


def arrays_of(data, clip, run=0):
    flat = gzip.decompress(base64.b64decode(data["clips"][clip]["runs"][run]["arrays"]))
    found, at = {}, 0
    for array in data["runs"][run]["arrays"]:
        kind, count = np.dtype(array["type"]), int(np.prod(array["shape"]))
        x = np.frombuffer(flat, kind, count, at)
        found[array["name"]], at = x.reshape(array["shape"]), at + count * kind.itemsize
    assert at == len(flat)
    return found


def weights_of(found, name):
    """As viewer.js makes them of bytes."""
    largest = found[f"{name}/largest"]
    return largest.reshape(*largest.shape, 1, 1) * (found[name] / 255.0) ** 2


def test_what_is_kept_is_what_was_captured(page, maps):
    run, clips, captured = maps
    data = data_of(page)
    space, time = data["runs"][0]["attentions"]
    assert (space["name"], time["name"]) == ("stage 0, space", "stage 1, time")
    assert space["boxes"] == space["fine"] == [4, 2, 2]
    for i, number in enumerate(CLIPS):
        found = arrays_of(data, i)
        labels = data["clips"][i]["label"]
        assert labels == {"motion": [run.data.class_names[run.data.labels_of(number)["motion"]]]}
        for at, attention in enumerate(captured.attentions):
            whole = np.asarray(attention.weights())[i]
            n = whole.shape[1] * whole.shape[2]
            between = whole.reshape(-1, n, n)
            ours = weights_of(found, f"{at}/between")[0]
            limit = 2 * whole.max() / 255  # of rounding a root to 1/255
            np.testing.assert_allclose(ours, between, atol=limit)
            mean = weights_of(found, f"{at}/mean")[0, 0]
            np.testing.assert_allclose(mean, between.mean(0), atol=limit)
            over_time = np.asarray(attention.over_time())[i]
            ours = weights_of(found, f"{at}/over_time")[0]
            np.testing.assert_allclose(ours, over_time, atol=2 * over_time.max() / 255)
        number = run.predict(clips[i : i + 1]).argmax(axis=1)
        for method, heat in zip(data["runs"][0]["methods"], found["methods"], strict=True):
            expected = attribute(method, run.model, run.params, clips[i : i + 1], number)[0]
            np.testing.assert_allclose(heat, expected, atol=1e-5)
    kept = captured.keep("distance")
    for attention in (space, time):
        expected = np.asarray(kept[attention["name"]]["distance_in_time"]).mean(axis=(1, 3, 4))
        np.testing.assert_allclose(attention["statistics"]["distance_in_time"], expected, rtol=1e-4)


def test_bytes_are_roots():
    weights = np.random.default_rng(0).uniform(size=(2, 3, 5, 5)) ** 4
    kept, largest = to_bytes(weights)
    assert kept.dtype == np.uint8
    back = largest[..., None, None] * (kept / 255.0) ** 2
    np.testing.assert_allclose(back, weights, atol=weights.max() / 255)
    np.testing.assert_allclose(largest, weights.max(axis=(2, 3)), rtol=1e-6)
    small = weights < 0.01
    assert np.abs(back - weights)[small].max() < 5e-4  # small ones are not lost
    assert to_bytes(np.zeros((1, 2, 0, 4)))[0].shape == (1, 2, 0, 4)


def test_boxes_fit_and_are_tokens_where_these_do():
    small = vivit.build({**TINY, "family": "joint", "readout": "mean"})
    assert choose_boxes(small, each_head=True) == small.config.grid
    large = vivit.build({"family": "joint", "size": "B/16x2", "clip": (32, 224, 224), "classes": 4})
    of_heads, of_mean = (choose_boxes(large, each_head=each) for each in (True, False))
    assert 144 * np.prod(of_heads) ** 2 <= BYTES
    assert 12 * np.prod(of_mean) ** 2 <= BYTES
    assert 40 < np.prod(of_heads) < np.prod(of_mean)


def test_relevance_is_left_out_where_weights_follow_values():
    stages = ({"depth": 1, "attentions": ("trajectory",), "pool": "mean"},)
    model = vivit.build({**TINY, "stages": stages})
    assert "relevance" not in usual_methods(model)
    assert "relevance" in usual_methods(vivit.build({**TINY, "family": "joint"}))
    clips = np.zeros((1, *model.config.clip, 3), np.float32)
    for name in usual_methods(model):
        heat = attribute(name, model, jax.device_put(with_head(model)), clips, [0])
        assert np.isfinite(heat).all()


@needs_chromium
def test_a_click_shows_the_weights_of_the_patch(page, maps):
    _, _, captured = maps
    shown = run_script(
        page,
        """
        await until(() => viewer.ready());
        const panel = viewer.state.panels[0], found = {};
        viewer.choose(panel, {source: 0, layer: 0, head: 1});
        viewer.state.frame = 4;  // time step 1 of 4
        viewer.setClip(2);
        await until(() => viewer.ready());
        clickAt(panel.canvas, 0.7, 0.2);  // row 0, column 1
        await until(() => panel.token);
        found.token = panel.token;
        found.to = Array.from(panel.map.values);
        found.said = panel.said.textContent;
        clickAt(panel.direction, 0.5, 0.5);
        found.from = Array.from(panel.map.values);
        press('[');
        press('Escape');
        found.mean = [panel.head, Array.from(panel.map.values)];
        clickAt(panel.small[0].canvas, 0.5, 0.5);
        found.head = [panel.layer, panel.head];
        viewer.choose(panel, {source: 1});
        clickAt(panel.square, 0.1, 0.9);  // the row of time step 3
        found.frame = viewer.state.frame;
        return found;
        """,
    )
    space = np.asarray(captured.attentions[0].weights())[2]  # [h, T, S, T, S]
    limit = 2 * space.max() / 255
    assert shown["token"] == [1, 0, 1]
    np.testing.assert_allclose(shown["to"], space[1, 1, 1].ravel(), atol=limit)
    np.testing.assert_allclose(shown["from"], space[1, :, :, 1, 1].ravel(), atol=limit)
    step, place = np.unravel_index(space[1, 1, 1].argmax(), (4, 4))
    expected = f"step 1, row 0, column 1 looks most at step {step}, row {place // 2}, column"
    assert expected in shown["said"]
    head, values = shown["mean"]
    assert head == 0
    np.testing.assert_allclose(values, space[0].mean(axis=(0, 1)).ravel(), atol=limit)
    assert shown["head"] == [0, 0]
    assert shown["frame"] == 12


@needs_chromium
def test_even_weights_between_uneven_boxes_are_an_even_map(page, tmp_path):
    """A box of more tokens gets more weight, which each of its tokens has a part of."""
    data = data_of(page)
    attention = data["runs"][0]["attentions"][0]
    attention["boxes"] = attention["fine"] = [3, 2, 1]  # of 4 x 2 x 2 tokens
    size = np.bincount(boxes_of((4, 2, 2), (3, 2, 1)).ravel())
    between, largest = to_bytes(np.tile(size / size.sum(), (1, 2, 6, 1)))
    mean, of_mean = to_bytes(np.tile(size / size.sum(), (1, 1, 6, 1)))
    changed = {
        "0/between": between, "0/between/largest": largest, "0/mean": mean,
        "0/mean/largest": of_mean,
    }  # fmt: skip
    for i, clip in enumerate(data["clips"]):
        found = {**arrays_of(data, i), **changed}
        packed = gzip.compress(b"".join(x.tobytes() for x in found.values()))
        clip["runs"][0]["arrays"] = base64.b64encode(packed).decode()
    data["runs"][0]["arrays"] = [
        {"name": k, "type": x.dtype.str[1:], "shape": x.shape} for k, x in found.items()
    ]
    other = tmp_path / "uneven.html"
    head, rest = page.read_text().split('id="viewer-data">', 1)
    other.write_text(f'{head}id="viewer-data">{json.dumps(data)}{rest[rest.index("</script>") :]}')
    found = run_script(
        other,
        """
        const panel = viewer.state.panels[0], found = [];
        for (const [head, token] of [[-1, null], [-1, [3, 1, 0]], [1, null], [1, [0, 0, 1]]]) {
          viewer.choose(panel, {source: 0, layer: 0, head, token});
          await until(() => viewer.ready());
          found.push([panel.map.grid, Array.from(panel.map.values), panel.map.uniform]);
          viewer.choose(panel, {back: true});
          found.push([panel.map.grid, Array.from(panel.map.values), panel.map.uniform]);
          viewer.choose(panel, {back: false});
        }
        return found;
        """,
    )
    for grid, values, uniform in found:
        assert grid == [4, 2, 2]
        np.testing.assert_allclose(values, 1 / 16, rtol=0.02)
        assert uniform == pytest.approx(1 / 16, rel=0.02)


@needs_chromium
def test_keys_play_compare_and_choose(page):
    found = run_script(
        page,
        """
        await until(() => viewer.ready());
        const {state, parts} = viewer, first = state.panels[0], found = {};
        found.panels = state.panels.map(panel => panel.run);
        press('c');
        found.alone = state.panels.length;
        press('c'); press('ArrowRight'); press('ArrowRight'); press('ArrowLeft');
        found.frame = state.frame;
        press('n'); press('n'); press('n'); press('p');
        found.clip = state.clip;
        press('m');
        found.source = first.source;
        found.shown = [first.times.hidden, first.heads.hidden];
        press('m'); press('ArrowDown'); press(']'); press(']'); press('o');
        found.chosen = [first.source, first.layer, first.head, first.overlay];
        press(' ');
        await until(() => state.frame > 3);
        press(' ');
        found.playing = state.playing;
        const theme = document.documentElement.dataset.theme;
        clickAt(document.getElementById('theme'), 0.5, 0.5);
        found.themes = [theme, document.documentElement.dataset.theme];
        clickAt(parts.thumbs[1].button, 0.5, 0.5);
        found.clicked = state.clip;
        return found;
        """,
    )
    assert found["panels"] == [0, 1]
    assert found["alone"] == 1
    assert found["frame"] == 1
    assert found["clip"] == 2
    assert found["source"] == "grad_cam"
    assert found["shown"] == [True, True]
    assert found["chosen"] == [0, 0, 1, False]
    assert found["playing"] is False
    assert sorted(found["themes"]) == ["dark", "light"]
    assert found["clicked"] == 1


@needs_chromium
def test_a_cell_of_the_confusion_opens_its_clips(page):
    data = data_of(page)
    top_of = lambda clip: clip["runs"][0]["top"]["motion"]
    (label,), top = data["clips"][1]["label"]["motion"], top_of(data["clips"][1])
    found = run_script(
        page,
        f"""
        await until(() => viewer.ready());
        const cell = [...document.querySelectorAll('[data-label][data-predicted]')].find(
          x => x.dataset.label === {json.dumps(label)}
            && x.dataset.predicted === {json.dumps(top)});
        clickAt(cell, 0.5, 0.5);
        const hidden = viewer.parts.thumbs.map(x => x.button.hidden);
        const said = viewer.parts.pair.textContent, clip = viewer.state.clip;
        clickAt(viewer.parts.pair.querySelector('button'), 0.5, 0.5);
        return {{hidden, said, clip, after: viewer.parts.thumbs.map(x => x.button.hidden)}};
        """,
    )
    same = [c["label"]["motion"] == [label] and top_of(c) == top for c in data["clips"]]
    assert found["hidden"] == [not x for x in same]
    assert f"clips of {label} that are predicted as {top}" in found["said"]
    assert found["clip"] == same.index(True)
    assert not any(found["after"])


@needs_chromium
def test_the_page_fits_a_phone_and_draws(page, tmp_path):
    script = "await until(() => viewer.ready()); return document.documentElement.scrollWidth;"
    assert run_script(page, script, width=500) <= 500
    screenshot(page, tmp_path / "page.png")
    from PIL import Image

    with Image.open(tmp_path / "page.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 200


def test_a_video_is_seen_without_scores(tiny_run, tmp_path, capsys):
    video = film(tmp_path / "a.mp4", frames=50)
    out = tmp_path / "video.html"
    main([
        str(tiny_run), "--checkpoint=latest", f"--video={video}", f"--out={out}",
        "--methods=rollout",
    ])  # fmt: skip
    assert f"open {out}" in capsys.readouterr().out
    data = data_of(out)
    assert [clip["title"] for clip in data["clips"]] == ["0.0 s", "0.6 s", "1.3 s", "1.9 s"]
    assert all(clip["runs"][0]["right"] is None for clip in data["clips"])
    assert "Confusion" not in out.read_text().split("</nav>")[1].split("<style>")[0]


def test_mistakes_are_named(tiny_run, tmp_path):
    common = [str(tiny_run), "--checkpoint=latest"]
    for arguments, message in (
        ([*common, "--clips=3,99"], r"\[99\] are not in 0 .. 20, the split's clips"),
        ([*common, "--clips=a"], "--clips=a is to be numbers of clips, such as 3,17"),
        ([*common, "--methods=rolout"], "unknown method of attribution 'rolout'"),
        ([*common, "--out=page.txt"], "--out=page.txt must end in .html"),
        ([*common[:1] * 3], "3 runs are given; a page is of one or two"),
        ([*common, f"--video={tmp_path}/b.mp4"], r"b\.mp4: does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            main(arguments)
