import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import vivit
from tests.conftest import ROOT, TINY
from vivit.checkpoint import Checkpoints
from vivit.config import as_json, claim_workdir, differences, read_config, read_workdir
from vivit.data import moving_digits
from vivit.dataprep.prepare import prepare_registered
from vivit.io import locked
from vivit.metrics_log import MetricsLog
from vivit.optim import make_optimizer
from vivit.parallel import make_parallel
from vivit.run import Run
from vivit.step import make_init
from vivit.train import main, train

CONFIG = str(ROOT / "configs/moving_digits.py")


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def last_state(workdir, config):
    """The whole state of a run's newest checkpoint."""
    optimizer, _ = make_optimizer(config.optim, steps=config.train.steps, batch_size=8)
    average_decay = config.train.average_decay
    make_state = make_init(vivit.build(config.model), optimizer, average_decay=average_decay)
    like = make_parallel(config.parallel).abstract(make_state, config.seed)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(checkpoints.resolve("latest"), like)[0]


def stop_after(step):
    """Makes a run end by SIGTERM as soon as it has logged a step."""
    write = MetricsLog.write

    def write_and_stop(self, at, split, values):
        write(self, at, split, values)
        if at == step and split == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    return write_and_stop


def test_a_run_leaves_what_it_says(tiny_run, tiny_config):
    assert json.loads((tiny_run / "config.json").read_text()) == as_json(tiny_config())
    cost = json.loads((tiny_run / "cost.json").read_text())
    model = vivit.build(tiny_config().model)
    from vivit.cost import count_parameters

    assert cost["parameters"] == count_parameters(model)
    assert cost["temporary_bytes"] > 0
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    steps = {split: [r["step"] for r in lines if r["split"] == split] for split in
             ("train", "validation")}  # fmt: skip
    assert steps == {"train": [2, 4, 6], "validation": [4, 6]}
    assert lines[0].keys() >= {"loss", "top1", "top5", "lr", "grad_norm", "clips_per_second"}
    assert list((tiny_run / "tensorboard").glob("events*"))
    kept = {int(path.name) for path in (tiny_run / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept in ({4, 6}, {2, 4, 6})


def test_a_stopped_run_resumes_and_ends_bit_identical(tmp_path, tiny_config, tiny_run, monkeypatch):
    config = tiny_config()
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", stop_after(2))
        assert int(train(config, tmp_path / "run").step) == 3  # the step after the signal is saved
    state = train(config, tmp_path / "run")
    assert_same(state, last_state(tiny_run, config))
    # The log has no step twice, and ends with the same figures.
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["split"] == "validation"]
    assert steps == [4, 6]
    other = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1] == other[-1]


def test_a_killed_run_resumes_and_ends_bit_identical(tmp_path, tiny_config, tiny_run, data_root):
    """Killed without a warning, in a process of its own, somewhere after its first checkpoint."""
    workdir = tmp_path / "run"
    flags = [*TINY, f"--config.data.root={data_root}"]
    command = [sys.executable, "-m", "vivit.train", f"--config={CONFIG}", f"--workdir={workdir}"]
    process = subprocess.Popen([*command, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 4/6"):
            process.kill()
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    config = tiny_config()
    state = train(config, workdir)
    assert_same(state, last_state(tiny_run, config))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["split"] == "train"] in ([2, 4, 6], [4, 6])


def test_a_finished_run_is_left_as_it_is(tiny_run, tiny_config):
    before = (tiny_run / "metrics.jsonl").read_text()
    assert int(train(tiny_config(), tiny_run).step) == 6
    assert (tiny_run / "metrics.jsonl").read_text() == before


def test_pmap_trains_to_the_same_parameters(tmp_path, tiny_config, tiny_run):
    state = train(tiny_config("--config.parallel.mode=pmap"), tmp_path / "run")
    by_jit = last_state(tiny_run, tiny_config())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, by_jit.params
    )


def test_a_changed_config_in_an_old_folder_is_refused(tiny_run, tiny_config):
    before = sorted(tiny_run.rglob("*"))
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.002 -> 0\.5(.|\n)*Use another --workdir"):
        train(tiny_config("--config.optim.lr=0.5"), tiny_run)
    assert sorted(tiny_run.rglob("*")) == before


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, tiny_config):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        train(tiny_config(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_two_processes_cannot_train_in_one_folder(tmp_path, tiny_config):
    with (
        locked(tmp_path / "run"),
        pytest.raises(ValueError, match="another process is training in"),
    ):
        train(tiny_config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.data.root=nowhere"], "python -m vivit.data prepare moving_digits nowhere"),
        (["--config.model.classes=7"], "needs model.classes=8, not 7"),
        (
            ["--config.model.clip=(16,64,64)"],
            "larger than the smallest frame, whose short side is 32",
        ),
        (["--config.model.family=jiont"], "unknown family 'jiont'"),
        (["--config.data.label=digt"], "no label 'digt'; it has: motion, digit"),
        (["--config.data.batch_size=40"], "batch_size=40 is larger than the 32 training clips"),
        (["--config.train.log_every=0"], "train.log_every=0 must be at least 1"),
        (["--config.imports=('no_such_module',)"], "config.imports names 'no_such_module'"),
        (
            ["--config.optim.warmup_steps=9", "--config.optim.warmup_fraction=0"],
            "warmup_steps=9 must be .* less than train.steps=6; set --config.optim.warmup_steps=0",
        ),
        (["--config.optim.warmup_steps=2"], "warmup_fraction=0.34 and warmup_steps=2 are both set"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, tiny_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_config(*overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, tiny_config):
    config = tiny_config("--config.optim.lr=1e30", "--config.optim.name=sgd(momentum=0.9)")
    with pytest.raises(ValueError, match=r"the \w+ is (nan|inf) at step .*lower optim\.lr"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.lrr=3", "no key 'optim.lrr'; did you mean optim.lr"),
        ("--config.optm.lr=3", "no key 'optm.lr'; did you mean optim.lr"),
        ("--config.steps=3", "no key 'steps'; did you mean train.steps"),
        ("--config.xyzzy.q=3", "no key 'xyzzy.q'; known: augment, data, imports"),
        ("--config.model.claps=3", "no key 'model.claps'; did you mean model.clip"),
        ("--config.model.temporal_depth=3", "is now an option of model.family"),
        ("--config.train.steps=many", "invalid literal for int"),
        ("--config.train.steps=3.5", "invalid literal for int"),
        ("--config.train.label_smoothing=2", r"train.label_smoothing=2.0 is not in \[0, 1\]"),
        ("--config.data.bad_share=0.1", "data.bad_share is now data.max_bad_fraction"),
        ("--config.optim.b2=0.9", 'optim.b2 is now an option of optim.name: "adamw\\(b2=0.98'),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        read_config(CONFIG, [override])


def test_stages_of_ones_own_train_and_open_again(tmp_path, tiny_config):
    stages = "({'depth': 1, 'attentions': ('time', 'space'), 'pool': 'mean'},)"
    config = tiny_config(f"--config.model.stages={stages}", "--config.train.steps=3")
    claim_workdir(tmp_path / "run", config)
    again = read_workdir(tmp_path / "run")
    assert again == config
    for model in (vivit.build(config.model), vivit.build(again.model)):
        (stage,) = model.config.stages
        assert [pattern.name for pattern in stage.attentions] == ["time", "space"]


def test_the_command_says_that_a_run_was_stopped(tmp_path, data_root, monkeypatch):
    monkeypatch.setattr(MetricsLog, "write", stop_after(2))
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", *TINY]
    with pytest.raises(SystemExit, match="stopped at step 3, which is saved"):
        main([*arguments, f"--config.data.root={data_root}"])


def test_a_config_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no config file"):
        read_config(str(tmp_path / "none.py"))


def test_the_command_line_says_what_is_missing(capsys):
    with pytest.raises(SystemExit):
        main(["--workdir=x"])
    assert "--config=FILE is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--workdir=x", "--confg=y"])
    assert "unrecognised arguments: --confg=y" in capsys.readouterr().err


def test_differences_name_every_key():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == [
        "a.c: 2 -> 4",
        "d: 3 -> '(missing)'",
        "e: '(missing)' -> 5",
    ]


def test_a_config_is_the_same_after_json(tmp_path, tiny_config):
    config = tiny_config()
    claim_workdir(tmp_path / "run", config)
    again = read_workdir(tmp_path / "run")
    assert again == config
    claim_workdir(tmp_path / "run", again)  # is not refused


def test_a_run_resumes_on_another_mesh(tmp_path, tiny_config, caplog):
    claim_workdir(tmp_path / "run", tiny_config())
    other = tiny_config("--config.parallel.fsdp=2", "--config.parallel.tensor=4")
    with caplog.at_level("INFO", logger="vivit.config"):
        claim_workdir(tmp_path / "run", other)
    assert "other devices: parallel.fsdp: 1 -> 2; parallel.tensor: 1 -> 4" in caplog.text
    assert read_workdir(tmp_path / "run").parallel == other.parallel
    with pytest.raises(ValueError, match="parallel.fsdp: 2 -> 1.*\n.*parallel.*\n.*seed: 0 -> 1"):
        claim_workdir(tmp_path / "run", tiny_config("--config.seed=1"))


def test_a_checkpoint_of_another_model_lists_what_differs(tiny_run, tiny_config):
    config = tiny_config("--config.model.width=8", "--config.model.depth=2")
    optimizer, _ = make_optimizer(config.optim, steps=6, batch_size=8)
    state = jax.jit(make_init(vivit.build(config.model), optimizer, average_decay=None))(0)
    before = sorted(tiny_run.rglob("*"))
    with Checkpoints(tiny_run / "checkpoints") as checkpoints:
        with pytest.raises(ValueError, match="is of another model") as error:
            checkpoints.restore(6, state)
    text = str(error.value)
    assert "missing: params/stage_0/layer_1/mlp/up/kernel (8, 16)" in text
    assert "params/head/kernel: (16, 8) in the file, (8, 8) in the model" in text
    assert sorted(tiny_run.rglob("*")) == before


def test_checkpoints_are_found_by_name(tiny_run, tmp_path):
    with Checkpoints(tiny_run / "checkpoints") as checkpoints:
        assert checkpoints.resolve("latest") == checkpoints.resolve("6") == 6
        assert checkpoints.resolve("best") in (4, 6)
        with pytest.raises(ValueError, match=r"no checkpoint '5' in .*; use latest, best or \["):
            checkpoints.resolve("5")
    with Checkpoints(tmp_path / "none") as checkpoints:
        with pytest.raises(ValueError, match="no checkpoint in"):
            checkpoints.resolve("best")


def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path):
    state = {"x": jax.numpy.zeros(3)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, top1 in enumerate([0.1, 0.9, None, 0.3, 0.2, None], start=1):
            metrics = None if top1 is None else {"top1": top1}
            checkpoints.save(step, state, data={"step": step}, config={}, metrics=metrics)
        checkpoints._manager.wait_until_finished()
        assert sorted(checkpoints._manager.all_steps()) == [2, 5, 6]
        assert checkpoints.resolve("best") == 2
        _, position = checkpoints.restore(5, state)
        assert position == {"step": 5}


def test_averaged_parameters_are_evaluated_and_restored(tmp_path, tiny_config):
    config = tiny_config("--config.train.average_decay=0.5")
    state = train(config, tmp_path / "run")
    restored = last_state(tmp_path / "run", config)
    assert_same(Run(tmp_path / "run", "latest").params, jax.device_get(state.averaged))
    assert_same(restored.averaged, state.averaged)
    assert_same(restored.eval_params, restored.averaged)
    head = ("head", "kernel")
    pick = lambda tree: tree[head[0]][head[1]]
    assert not np.array_equal(pick(restored.averaged), pick(restored.params))
    validated = Run(tmp_path / "run").metrics[-1]
    assert validated["raw_loss"] != validated["loss"]
    assert validated["raw_damaged"] == 0


def test_epochs_are_steps_of_the_split(tmp_path, tiny_config):
    config = tiny_config("--config.train.steps=0", "--config.train.epochs=0.7")
    assert train(config, tmp_path / "run").step == 3  # 0.7 * 32 clips / 8
    assert Run(tmp_path / "run").config.train.steps == 3
    assert train(config, tmp_path / "run").step == 3
    with pytest.raises(ValueError, match="epochs=0.5 and steps=6 are both set"):
        tiny_config("--config.train.epochs=0.5")
    with pytest.raises(ValueError, match="train.steps=0 must be at least 1"):
        tiny_config("--config.train.steps=0")


def test_a_start_says_what_it_is_doing(tmp_path, tiny_config, data_root):
    """As a user sees it: a process of its own, whose module is __main__."""
    command = [sys.executable, "-m", "vivit.train", f"--config={CONFIG}", *TINY]
    command += [f"--config.data.root={data_root}", f"--workdir={tmp_path}/run"]
    command += ["--config.train.steps=4", "--config.train.log_every=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = done.stderr.splitlines()
    starts = (
        "model     factorised_encoder(1), ",
        "data      moving_digits 1.1.0",
        "devices   1 x ",
        "training  4 steps of 8 clips, 1.0 epochs",
        "folder    ",
        "compiling the training",
        "compiled in ",
        "step 1/4: loss ",
    )
    place = lambda start: next(i for i, line in enumerate(lines) if line.startswith(start))
    places = [place(start) for start in starts]
    assert places == sorted(places)
    assert "32 clips of train, 16 of validation; label motion, 8 classes" in done.stderr
    assert re.search(r"step 3/4: .* clips/s, 0:\d\d left", done.stderr)


def test_show_prints_every_key_and_its_meaning(capsys, tmp_path):
    main(["--config=configs/moving_digits.py", "--show", "--config.optim.lr=0.5"])
    text = capsys.readouterr().out
    assert "optim.lr = 0.5\n    the learning rate after warm-up." in text
    assert "data.sampling.kind = 'clip'\n    a name of SAMPLINGS." in text
    keys = [line for line in text.splitlines() if re.match(r"[a-z_.]+ = ", line)]
    assert len(keys) > 100


def test_modules_of_a_run_are_copied_and_watched(tmp_path, tiny_config, monkeypatch, caplog):
    monkeypatch.syspath_prepend(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    module = tmp_path / "mine/my_parts_of_a_run.py"
    module.write_text("x = 1\n")
    train(tiny_config("--config.imports=('my_parts_of_a_run',)"), tmp_path / "run")
    copy = tmp_path / "run/imports/my_parts_of_a_run.py"
    assert copy.read_text() == "x = 1\n"
    _ = Run(tmp_path / "run", "latest").model
    assert "differs" not in caplog.text
    module.write_text("x = 2\n")
    _ = Run(tmp_path / "run", "latest").model
    assert f"differs from what the run was trained with, {copy}" in caplog.text
    # Nothing is imported from a run's folder, which may be anybody's.
    module.unlink()
    monkeypatch.delitem(sys.modules, "my_parts_of_a_run")
    with pytest.raises(ValueError, match=rf"PYTHONPATH={tmp_path}/run/imports"):
        _ = Run(tmp_path / "run", "latest").model


def test_a_run_opens_from_any_folder(tmp_path, tiny_config, data_root, monkeypatch):
    """It was trained where the data was in ./data; opened elsewhere, and after the data moved."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/data").symlink_to(data_root)
    monkeypatch.chdir(tmp_path / "here")
    train(tiny_config("--config.data.root=data", "--config.train.steps=2"), "runs/a")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    run = Run("../here/runs/a", "latest")
    assert len(run.data) == 21
    assert run.config.data.root == "data"
    (tmp_path / "here/data").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="(?s)no data set.*here/data, which is not.*--data-root"):
        _ = Run("../here/runs/a", "latest").data
    assert len(Run("../here/runs/a", "latest", data_root="../moved").data) == 21
    # The names of the classes need no data.
    assert Run("../here/runs/a", "latest").class_names == run.data.class_names


def test_data_that_was_replaced_is_warned_of(tmp_path, tiny_config, data_root, caplog):
    shutil.copytree(data_root, tmp_path / "data")
    train(tiny_config(f"--config.data.root={tmp_path}/data", "--config.train.steps=2"),
          tmp_path / "run")  # fmt: skip
    _ = Run(tmp_path / "run", "latest").data
    assert "is not what" not in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "SPLITS", {"train": 33, "validation": 16, "test": 21})
        prepare_registered("moving_digits", tmp_path / "other")
    _ = Run(tmp_path / "run", "latest", data_root=str(tmp_path / "other")).data
    assert "clips of split 'test' may have been trained on" in caplog.text
