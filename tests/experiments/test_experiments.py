import json
import sys

import pytest

import vivit
from experiments import collect, launch, steps_to_accuracy
from tests.conftest import ROOT
from vivit.config import as_json, read_config
from vivit.settings import Config

ABLATION = str(ROOT / "configs/ablate_attention.py")


def test_the_ablation_is_family_by_kernel_by_seed():
    runs = launch.load_sweep(ABLATION, "kernel")
    assert len({run.name for run in runs}) == 5 * 2 * 5
    assert len(launch.load_sweep(ABLATION, "family")) == 5 * 5
    assert runs[0].overrides["model.family"] == "factorised_encoder(2)"
    variants = launch.load_sweep(ABLATION, "variant")
    assert len(variants) == 6 * 5
    for run in variants[::5]:
        flag = f"--config.model.family={run.overrides['model.family']}"
        vivit.build(read_config(ABLATION, [flag]).model)


def test_an_unknown_sweep_lists_the_known():
    with pytest.raises(ValueError, match="no sweep 'famly'; it has: family, kernel, variant"):
        launch.load_sweep(ABLATION, "famly")
    with pytest.raises(ValueError, match="no config file"):
        launch.load_sweep("nothing.py", "family")


def test_all_typos_of_a_sweep_are_found_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    path = tmp_path / "wrong.py"
    path.write_text(
        "from configs.moving_digits import get_config\n"
        "def sweep_typo():\n"
        '    yield {"model.famly": "joint"}\n'
        '    yield {"train.steps": "many"}\n'
        '    yield {"seed": 1}\n'
        '    yield {"seed": 1}\n'
    )
    with pytest.raises(ValueError, match="typo") as error:
        launch.load_sweep(str(path), "typo")
    text = str(error.value)
    assert "famly" in text
    assert "many" in text
    assert "two runs are seed=1" in text


@pytest.fixture
def sweep_file(tmp_path, data_root, monkeypatch):
    """A sweep of two tiny runs, the first of which fails."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "tiny.py"
    path.write_text(
        f"""
from configs import moving_digits

def get_config():
    config = moving_digits.get_config()
    config.model.update(width=16, depth=1, heads=2, mlp_dim=16)
    config.model.tubelet = (4, 16, 16)
    config.data.update(root={str(data_root)!r}, batch_size=8)
    config.train.update(steps=3, log_every=1, eval_every=3)
    config.optim.warmup_fraction = 0.34
    return config

def sweep_families():
    for family in ("jiont", "joint"):
        yield {{"model.family": family, "seed": 0}}
"""
    )
    return path


def test_a_failed_run_is_said_and_the_others_continue(sweep_file, tmp_path, capsys):
    arguments = [f"--config={sweep_file}", "--sweep=families", f"--runs={tmp_path / 'runs'}"]
    with pytest.raises(SystemExit, match="failed: family=jiont,seed=0"):
        launch.main(arguments)
    out = capsys.readouterr().out
    assert "1 of 2 runs are done" in out
    assert "FAILED" in out
    assert "unknown family 'jiont'" in out
    folder = tmp_path / "runs/tiny/families"
    # Again: what is done is not done twice.
    with pytest.raises(SystemExit):
        launch.main(arguments)
    assert capsys.readouterr().out.count("done already") == 1

    collect.main([str(folder)])
    table = capsys.readouterr().out
    assert (folder / "table.md").read_text() == table
    assert (folder / "accuracy.png").stat().st_size > 1000
    rows = json.loads((folder / "table.json").read_text())
    assert {row["name"] for row in rows} == {"base"}
    for row in rows:
        scores = next(folder.glob("family=joint,*/eval/test_*.json"))
        assert row["scores"]["top-1"] == [100 * json.loads(scores.read_text())["top1"]]


def test_a_dry_run_prints_commands_that_can_be_pasted(capsys):
    launch.main([f"--config={ABLATION}", "--sweep=family", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 50
    assert lines[0].startswith("python -m vivit.train --config=")
    assert "'--config.model.tubelet=(1, 8, 8)'" in lines[-2]


def run_folder(folder, *, family, seed, top1, finished=True):
    folder.mkdir(parents=True)
    config = as_json(Config(seed=seed))
    config["model"]["family"] = family
    config["train"]["steps"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    if not finished:
        return
    cost = {"parameters": 2e6, "multiply_adds": 3e6, "temporary_bytes": 4e6, "batch_size": 10}
    (folder / "cost.json").write_text(json.dumps(cost))
    lines = [
        {"step": 1, "split": "train", "clips_per_second": 100.0},
        {"step": 1, "split": "validation", "top1": 0.5},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "eval").mkdir()
    (folder / "eval/test_00000001.json").write_text(json.dumps({"top1": top1}))


def test_seeds_share_a_row_and_unfinished_runs_are_named(tmp_path, capsys):
    run_folder(tmp_path / "a0", family="joint", seed=0, top1=0.9)
    run_folder(tmp_path / "a1", family="joint", seed=1, top1=0.92)
    run_folder(tmp_path / "b0", family="average_pool", seed=0, top1=0.5)
    run_folder(tmp_path / "b1", family="average_pool", seed=1, top1=0, finished=False)
    collect.main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert "| joint | 2 | 91.00 ± 1.41 (90.00 to 92.00) | 2.000 | 3.0 | 100.0 | 4.0 |" in out
    assert "| average_pool | 1 | 50.00 |" in out
    assert "b1: not trained" in err


def test_nothing_to_collect_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no runs in"):
        collect.main([str(tmp_path)])


def test_runs_use_the_same_python():
    command = next(launch.commands("c.py", launch.SweepRun("n", {"seed": 1}), ROOT / "n"))
    assert command[0] == sys.executable
    assert command[-1] == "--config.seed=1"


def fake_start(folder, *, path, inflation, lr, seed, curve, test):
    folder.mkdir(parents=True)
    config = as_json(Config(seed=seed))
    config["init"].update(path=path, inflation=inflation)
    config["optim"]["lr"] = lr
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": 20 * i + 20, "split": "validation", "top1": x} for i, x in enumerate(curve)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    if test is not None:
        (folder / "eval").mkdir()
        (folder / "eval/test_00000060.json").write_text(json.dumps({"top1": test}))


def test_how_soon_runs_get_there(tmp_path, capsys):
    start = {"path": "image", "inflation": "central_frame", "lr": 0.004}
    fake_start(tmp_path / "a", **start, seed=0, curve=[0.2, 0.6, 0.95], test=0.9)
    fake_start(tmp_path / "b", **start, seed=1, curve=[0.5, 0.6, 0.7], test=0.7)
    fake_start(tmp_path / "c", **start, seed=2, curve=[0.1, 0.2, 0.7], test=0.8)
    scratch = {"path": "", "inflation": "central_frame", "lr": 0.002}
    fake_start(tmp_path / "d", **scratch, seed=0, curve=[0.1, 0.1, 0.1], test=None)
    steps_to_accuracy.main([str(tmp_path), "--accuracy", "0.5", "0.9"])
    out, err = capsys.readouterr()
    assert out.splitlines()[2] == (
        "| central_frame, lr 0.004 | 3 | 40 (40, 20, 60) | never (60, never, never) "
        "| 80.00 ± 10.00 (70.00 to 90.00) |"
    )
    assert "left out" in err
    assert "not evaluated" in err
    with pytest.raises(ValueError, match="no finished runs"):
        steps_to_accuracy.main([str(tmp_path / "d")])


def test_the_transfer_starts_from_the_image_runs():
    images = launch.load_sweep(str(ROOT / "configs/image_digits.py"), "seeds")
    starts = launch.load_sweep(str(ROOT / "configs/transfer_digits.py"), "start")
    assert len(starts) == 12
    paths = {run.overrides.get("init.path") for run in starts} - {None}
    assert paths == {f"runs/image_digits/seeds/{run.name}" for run in images}
    for config in ("image_digits", "transfer_digits"):
        vivit.build(read_config(str(ROOT / f"configs/{config}.py")).model)
