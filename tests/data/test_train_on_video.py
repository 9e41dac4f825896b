"""Runs on prepared videos: from the config to a checkpoint, with everything switched on."""

import json

import jax
import numpy as np
import pytest

from tests.conftest import ROOT, TINY
from vivit.analysis import open_run
from vivit.config import read_config
from vivit.data.augment import AUGMENTATIONS
from vivit.evaluate import evaluate
from vivit.train import train

VIDEO = (
    "--config.data.name=h264",
    "--config.data.label=label",
    "--config.data.batch_size=4",
    "--config.data.sampling.stride_frames=2",
    "--config.model.clip=(8,32,32)",
    "--config.model.classes=2",
    "--config.train.steps=4",
    "--config.train.eval_every=4",
    "--config.augment.short_side=(32,40)",
    "--config.augment.flip=0.5",
    "--config.augment.operations=1",
    "--config.augment.brightness=0.4",
    "--config.augment.erase=0.25",
    "--config.augment.mixup=0.8",
    "--config.augment.cutmix=1.0",
)


@pytest.fixture(scope="module")
def video_config(prepared):
    def make(*overrides):
        words = [*TINY, *VIDEO, f"--config.data.root={prepared}", *overrides]
        last = {word.split("=")[0]: word for word in words}  # tuples given twice would be joined
        return read_config(str(ROOT / "configs/moving_digits.py"), list(last.values()))

    return make


@pytest.fixture(scope="module")
def video_run(video_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "video"
    state = train(video_config(), workdir)
    return workdir, jax.device_get(state.params)


def test_a_run_learns_evaluates_and_is_opened(video_run):
    workdir, _ = video_run
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["split"] == "validation"] == [4]
    assert all(np.isfinite(x["loss"]) for x in lines)
    one = json.loads(evaluate(workdir, checkpoint="latest").read_text())
    many = json.loads(evaluate(workdir, checkpoint="latest", views="3x3").read_text())
    assert (one["views"], many["views"]) == ("1x1", "3x3")
    assert one["clips"] == many["clips"] == 2
    assert one["loss"] != many["loss"]
    run = open_run(workdir, checkpoint="latest", split="test")
    clips, labels = run.clips([0, 1])
    assert clips.shape == (2, 8, 32, 32, 3)
    assert clips.dtype == np.uint8
    assert labels.tolist() == [0, 1]


def test_a_resumed_run_ends_bit_identical(video_run, video_config, tmp_path, monkeypatch):
    _, whole = video_run
    from contextlib import contextmanager

    from vivit import train as module

    real = module.stop_signals
    monkeypatch.setattr(module, "stop_signals", contextmanager(lambda: iter([lambda _: True])))
    assert int(train(video_config(), tmp_path / "run").step) == 1
    monkeypatch.setattr(module, "stop_signals", real)
    state = train(video_config(), tmp_path / "run")
    assert int(state.step) == 4
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), whole)


@pytest.mark.slow  # tests/test_train.py and test_parallel.py have it for moving digits
def test_pmap_and_jit_agree(video_run, video_config, tmp_path):
    _, whole = video_run
    state = train(video_config("--config.parallel.mode=pmap"), tmp_path / "run")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
    jax.tree.map(close, jax.device_get(state.params), whole)


def test_a_users_augmentation_runs_from_the_config(video_config, tmp_path, monkeypatch):
    (tmp_path / "users_blackout.py").write_text(
        "from vivit.data.augment import AUGMENTATIONS, Augmentation\n"
        "from vivit.registry import Options\n"
        "calls = []\n"
        "def blackout(key, clip, *, rate):\n"
        "    calls.append(rate)\n"
        "    return 0 * clip\n"
        "AUGMENTATIONS.add('blackout', Augmentation(blackout, Options(rate=0.5)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(AUGMENTATIONS, "_items", {**AUGMENTATIONS._items})
    extra = "--config.augment.extra=('blackout(0.25)',)"
    config = video_config("--config.imports=('users_blackout',)", extra, "--config.train.steps=3")
    train(config, tmp_path / "run")
    import users_blackout

    assert set(users_blackout.calls) == {0.25}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.model.clip=(8,112,112)",
            "larger than the smallest frame, whose short side is 64",
        ),
        ("--config.model.classes=3", "needs model.classes=2, not 3"),
        ("--config.data.canvas=(24,24)", r"data.canvas=\(24, 24\) is smaller than the crop"),
        ("--config.augment.short_side=(16,20)", "is smaller than the model's 32 x 32"),
        ("--config.data.views.short_side=16", "short_side=16 is smaller than the crop"),
        ("--config.data.batch_size=12", "larger than the 10 training clips"),
        ("--config.data.splits=('train','dev')", "has no split 'dev'"),
        ("--config.data.sampling.kind=dense", "unknown kind of sampling 'dense'"),
        ("--config.augment.flip=2.0", "flip=2.0 is not a probability"),
        ("--config.data.name=/nowhere/m.csv", "no manifest"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(video_config, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        train(video_config(override), tmp_path / "run")
    assert not [p for p in (tmp_path / "run").glob("*") if p.name != ".lock"]
