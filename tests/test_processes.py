"""Runs of two processes of four devices each, started as their user starts them."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.conftest import ROOT, TINY
from tests.test_train import last_state
from tests.two_processes import finish, free_port, start
from vivit.evaluate import evaluate
from vivit.io import locked, read_json
from vivit.processes import add_process_arguments, connected
from vivit.run import Run
from vivit.train import train

CONFIG = f"--config={ROOT}/configs/moving_digits.py"


@pytest.fixture
def flags(data_root):
    return (CONFIG, *TINY, f"--config.data.root={data_root}")


def close(one, other):
    """Softmax does not depend on a bias of the keys, so Adam moves it by rounding alone."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("key/bias"):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory, data_root):
    """A run that ended early, as process 1 of two got a signal, with what both have written."""
    workdir = tmp_path_factory.mktemp("processes") / "run"
    arguments = (CONFIG, *TINY, f"--config.data.root={data_root}", f"--workdir={workdir}")
    processes = start("vivit.train", *arguments)
    log = ""
    for line in processes[0].stderr:
        log += line
        if line.startswith("compiling"):  # JAX looks for signals once per second
            processes[1].send_signal(signal.SIGTERM)
            break
    outputs = finish(processes, status=(1, 1))
    return workdir, (outputs[0][0], log + outputs[0][1]), outputs[1]


def test_a_signal_to_one_process_stops_all_at_one_step(stopped_run):
    workdir, (_, log), (out, err) = stopped_run
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 1 <= step < 6
    assert f"stopped at step {step}, which is saved; the same command resumes from it" in log
    assert "devices   8 x cpu" in log
    for text in ("stopped", "compiling", "devices"):
        assert text not in out + err  # of process 1


def test_it_resumes_in_one_process_and_ends_as_one_that_was_never_stopped(
    stopped_run, tiny_config, tiny_run
):
    workdir, *_ = stopped_run
    config = tiny_config()
    close(train(config, workdir), last_state(tiny_run, config))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["split"] == "train"]
    assert sorted({*steps}) == steps
    assert {2, 4, 6} <= {*steps}


def test_evaluation_and_report_in_two_processes(tiny_run, tmp_path):
    """Each of 21 clips counts once; the report is what evaluates."""
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", tiny_run, workdir], check=True)
    alone = read_json(evaluate(workdir, checkpoint="latest"))
    for path in (workdir / "eval").iterdir():
        path.unlink()
    (out, _), (silent, _) = finish(start("vivit.analysis", str(workdir), "--checkpoint=latest"))
    assert f"open {workdir}/report_test.html\n" in out
    assert "open" not in silent
    assert 'id="viewer-data"' in (workdir / "report_test.html").read_text()
    run = Run(workdir, "latest")
    assert run.scores(step=run.step)["clips"] == 21
    together = run.scores(step=run.step)
    assert together["confusion"] == alone["confusion"]
    np.testing.assert_allclose(together["loss"], alone["loss"], atol=1e-5)


def test_slurm_names_the_processes_of_a_pmapped_run(flags, tiny_config, tiny_run, tmp_path):
    variables = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }
    tasks = [{**variables, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    arguments = (*flags, "--config.parallel.mode=pmap", f"--workdir={tmp_path}/run")
    (out, err), _ = finish(start("vivit.train", *arguments, environments=tasks))
    assert "8 x cpu, pmap" in err
    assert "trained to step 6" in out
    config = tiny_config()
    close(last_state(tmp_path / "run", config).params, last_state(tiny_run, config).params)


def test_processes_that_disagree_are_told_apart(flags, tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    processes = start("vivit.train", *flags, workdir, each=((), ("--config.optim.lr=0.5",)))
    (_, first), (_, other) = finish(processes, status=(1, 1))
    expected = "error: process 1 differs from process 0:\n  config.optim.lr: 0.002 -> 0.5\n"
    assert first.endswith(expected)
    assert "error" not in other
    assert not (tmp_path / "run/config.json").exists()


def test_a_mistake_of_process_0_ends_all(flags, tmp_path):
    with locked(tmp_path / "run"):
        processes = start("vivit.train", *flags, f"--workdir={tmp_path}/run")
        (_, first), _ = finish(processes, status=(1, 1))
    assert first.endswith(f"error: another process is training in {tmp_path}/run\n")


@pytest.mark.slow  # 20 s, of which 10 wait for the heartbeat
def test_an_exception_on_one_process_ends_the_other(flags, tmp_path, monkeypatch):
    (tmp_path / "fails_on_one.py").write_text(
        "import jax\n"
        "from vivit.profiling import Profile\n"
        "def fail(self, step):\n"
        "    if step == 4 and jax.process_index() == 1:\n"
        "        raise ZeroDivisionError('only here')\n"
        "Profile.before = fail\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = (*flags, "--config.imports=('fails_on_one',)", f"--workdir={tmp_path}/run")
    processes = start("vivit.train", *arguments)
    _, err = processes[1].communicate(timeout=200)
    since = time.monotonic()
    assert processes[1].returncode == 1
    assert "ZeroDivisionError: only here" in err
    processes[0].communicate(timeout=60)
    assert time.monotonic() - since < 30
    assert processes[0].returncode != 0


def options(*arguments):
    parser = argparse.ArgumentParser()
    add_process_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2", "--process=1"], "--coordinator is not given"),
        (["--coordinator=a:1"], "--processes and --process is not given"),
        (["--coordinator=a", "--processes=2", "--process=1"], "is not like 10.0.0.1:1234"),
        (["--coordinator=a:b", "--processes=2", "--process=1"], "is not like 10.0.0.1:1234"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "--process=2 is not in 0 .. 1"),
        (
            ["--coordinator=localhost:9", "--processes=2", "--process=1", "--wait=0"],
            "no process 0 at localhost, port 9, in 0 s: .*refused.* --wait waits longer",
        ),
        (
            ["--coordinator=no.such.host:9", "--processes=2", "--process=1", "--wait=0"],
            "no process 0 at no.such.host, port 9, in",
        ),
    ],
)
def test_processes_that_cannot_be_joined_are_one_error(arguments, message):
    with pytest.raises(ValueError, match=message), connected(options(*arguments)):
        pass


def test_a_port_that_is_taken_is_one_error():
    import socket

    with socket.create_server(("", 0)) as taken:
        at = f"--coordinator=localhost:{taken.getsockname()[1]}"
        given = options(at, "--processes=2", "--process=0")
        with pytest.raises(ValueError, match="cannot listen at port"), connected(given):
            pass


def test_peers_that_never_start_are_one_error(tiny_run):
    at = [f"--coordinator=localhost:{free_port()}", "--processes=2", "--process=0", "--wait=1"]
    command = [sys.executable, "-m", "vivit.evaluate", f"--workdir={tiny_run}", *at]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: all 2 processes at localhost:")
    assert done.stderr.endswith("did not start in 1 s; --wait waits longer\n")


def test_a_single_task_of_a_launcher_is_alone(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with connected(options()):
        assert jax.process_count() == 1
