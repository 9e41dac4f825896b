"""Every config of configs/, made small, trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vivit.config import as_config, read_config
from vivit.model import build
from vivit.quicktest import quicktest
from vivit.run import Run
from vivit.train import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("[!_]*.py") if p.name != "common.py")
by_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@by_config
def test_a_quick_config_keeps_the_parts_and_is_small(path):
    config = read_config(str(path))
    quick = quicktest(config)
    model, small = (build(settings) for settings in (config.model, quick.model))
    attentions = lambda model: [stage.attentions for stage in model.config.stages]
    assert attentions(small) == attentions(model)
    assert small.config.tubelet[0] == model.config.tubelet[0]
    assert quick.model.classes == config.model.classes
    assert max(small.config.grid) <= 8
    assert quick.train.steps == 2
    same = ("name", "lr", "schedule", "layer_decay", "clip_norm")
    for key in same:
        assert getattr(quick.optim, key) == getattr(config.optim, key)
    assert (quick.augment.mixup, quick.augment.flip) == (config.augment.mixup, config.augment.flip)


def test_a_config_for_many_devices_is_tried_on_what_is_here():
    config = read_config(
        str(ROOT / "configs/moving_digits.py"),
        ["--config.parallel.fsdp=64", "--config.model.kernel=fused", "--config.train.accumulate=4"],
    )
    quick = quicktest(config)
    assert (quick.parallel.fsdp, quick.model.kernel) == (1, "auto")
    assert quick.data.batch_size == 8 * jax.device_count()
    assert as_config(quick) == quick


def test_a_recipe_runs(tmp_path, capsys):
    """Mixup, cutmix, RandAugment, erasing, smoothing, drop path, layer decay."""
    arguments = ["--config", str(ROOT / "configs/videomae_b_k400.py"), "--quicktest"]
    arguments += ["--config.train.accumulate=1"]
    main([*arguments, "--workdir", str(tmp_path / "run")])
    assert "trained to step 2" in capsys.readouterr().out
    run = Run(tmp_path / "run", "latest")
    assert run.step == 2
    assert {row["split"] for row in run.metrics} == {"train", "validation"}
    main([*arguments, "--workdir", str(tmp_path / "run")])  # the films are there, and the run


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@by_config
def test_every_config_runs_and_evaluates(path, devices, tmp_path):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    workdir, out = f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'features'}"
    labelled = bool(read_config(str(path)).heads)
    score = ["vivit.evaluate", "--views=2x3"] if labelled else ["vivit.features", out]
    for command in (["vivit.train", f"--config={path}", "--quicktest"], score):
        command = [sys.executable, "-m", *command, workdir]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    if labelled:
        (written,) = (tmp_path / "run/eval").glob("*.json")
        assert json.loads(written.read_text())["clips"] == 3
    else:
        described = tmp_path / "features/test/split.json"
        assert json.loads(described.read_text())["clips"] == 3
