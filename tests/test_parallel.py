"""A training step has the same loss, gradients and logits on any number of devices and processes,
over every axis of the mesh, by jit and by pmap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.two_processes import free_port
from vivit.parallel import MODES, JitParallel, make_parallel
from vivit.settings import ParallelSettings

ROOT = Path(__file__).parents[1]
MAE = "mae(mask='tube(0.5)', width=8, depth=1, heads=2)"
JEPA = (
    "jepa(masks=('tube(0.5)', 'random(0.75)'), width=8, depth=1, heads=2, mask_tokens=2, "
    "context=0.5)"
)
SIGREG = JEPA.replace("mask_tokens=2", "target='trained', regulariser='sigreg'")
# Options of tests.eight_devices.
ONE_PROCESS = {
    "one": {"devices": 1},
    "data": {"devices": 8},
    "fsdp and tensor": {"devices": 8, "fsdp": 2, "tensor": 2},
    "ring and tensor": {"devices": 8, "tensor": 2, "sequence": 2, "kernel": "ring"},
    "ulysses": {"devices": 4, "sequence": 2, "kernel": "ulysses"},
    "pmap": {"devices": 8, "mode": "pmap"},
    "accumulated": {"devices": 2, "accumulate": 4},
    "one with dropout": {"devices": 1, "dropout": 0.2},
    "data with dropout": {"devices": 8, "dropout": 0.2},
    "a wrong loss": {"devices": 8, "spoiled": 1.03},
    "one, mae": {"devices": 1, "task": MAE},
    "data and fsdp, mae": {"devices": 8, "fsdp": 2, "task": MAE},
    "pmap, mae": {"devices": 4, "mode": "pmap", "task": MAE},
    "accumulated, mae": {"devices": 2, "accumulate": 2, "task": MAE},
    "one, jepa": {"devices": 1, "task": JEPA},
    "data and fsdp, jepa": {"devices": 8, "fsdp": 2, "task": JEPA},
    "pmap, jepa": {"devices": 4, "mode": "pmap", "task": JEPA},
    "accumulated, jepa": {"devices": 2, "accumulate": 2, "task": JEPA},
    "one, sigreg": {"devices": 1, "task": SIGREG},
    "data and fsdp, sigreg": {"devices": 8, "fsdp": 2, "task": SIGREG},
}
TWO_PROCESSES = {
    "two processes, fsdp": {"devices": 8, "fsdp": 2},
    "two processes, one batch": {"devices": 8, "tensor": 8},
    "two processes, mae": {"devices": 8, "task": MAE},
    "two processes, jepa": {"devices": 8, "task": JEPA},
    "two processes, pmap, accumulated": {"devices": 8, "mode": "pmap", "accumulate": 2},
}
WAYS = {**ONE_PROCESS, **TWO_PROCESSES}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")

    def start(ways, devices, *more):
        command = [sys.executable, "-m", "tests.eight_devices", str(folder), json.dumps(ways)]
        env = {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([*command, *more], cwd=ROOT, env={**os.environ, **env}, **pipe)

    at = f"localhost:{free_port()}"
    processes = [start(TWO_PROCESSES, 4, at, str(i)) for i in range(2)]
    for process in (start(ONE_PROCESS, 8), *processes):
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output.decode()
    return {name: dict(np.load(folder / f"{name}.npz")) for name in WAYS}


def furthest(one, other):
    assert one["loss"].dtype == np.float64
    return max(np.abs(one[k] - other[k]).max() for k in one.keys() - {"devices", "shards"})


@pytest.mark.parametrize("name", [n for n in WAYS if n != "a wrong loss" and "one" not in n[:4]])
def test_loss_gradients_and_logits_do_not_depend_on_the_devices(results, name):
    kinds = (" with dropout", ", mae", ", jepa", ", sigreg")
    same = next((f"one{of}" for of in kinds if name.endswith(of)), "one")
    one, other = results[same], results[name]
    assert other["devices"] == WAYS[name]["devices"]
    assert furthest(one, other) < 1e-10


def test_a_loss_that_is_wrong_by_three_percent_is_seen(results):
    assert furthest(results["one"], results["a wrong loss"]) > 1e-3


def test_dropout_was_on_and_the_state_was_sharded(results):
    assert results["one"]["loss"] != results["one with dropout"]["loss"]
    assert results["fsdp and tensor"]["shards"] == 4
    assert results["two processes, one batch"]["shards"] == 4  # of the process's devices
    assert results["data"]["shards"] == 1
    np.testing.assert_array_equal(results["one"]["valid"], np.arange(16) < 13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "xmap"}, "unknown parallel mode 'xmap'; known: jit, pmap"),
        ({"fsdp": 3}, "fsdp=3 x tensor=1 x sequence=1 does not divide the 1 devices"),
        ({"sequence": 2}, "sequence=2 does not divide the 1 devices"),
        ({"tensor": 0}, "tensor=0 x sequence=1: each must be at least 1"),
        ({"mode": "pmap", "data": 1, "tensor": 2}, "tensor=2 x sequence=1 is not the 1 devices"),
        ({"mode": "pmap", "rules": ()}, 'rules need parallel.mode="jit"'),
        ({"data": 2}, "data=2 x fsdp=1 .* is not the 1 devices .* but 2; use data=-1"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_parallel(ParallelSettings(**change))


def test_rules_that_do_not_fit_are_listed():
    import jax
    from jax.sharding import AbstractMesh, PartitionSpec

    from vivit.mesh import MESH_AXES
    from vivit.parallel import shard_by_rules

    mesh = AbstractMesh((1, 2, 1, 1), MESH_AXES)
    shapes = {
        "a": {"kernel": jax.ShapeDtypeStruct((3, 4), "float32")},
        "b": {"kernel": jax.ShapeDtypeStruct((5,), "float32")},
        "c": {"bias": jax.ShapeDtypeStruct((5,), "float32")},
    }
    with pytest.raises(
        ValueError, match=r"a/kernel .*3 is not a multiple of 2\n.*b/kernel .*fewer"
    ):
        shard_by_rules(shapes, mesh, (("kernel$", ("fsdp", None)),))
    with pytest.raises(ValueError, match="unknown mesh axes"):
        shard_by_rules(shapes, mesh, (("kernel$", ("model",)),))
    with pytest.raises(ValueError, match="no array has the path of the rule 'kernle'"):
        shard_by_rules(shapes, mesh, (("bias$", ()), ("kernle", ("fsdp",))))
    sharded = shard_by_rules(shapes, mesh, (("bias$", ()),))
    assert sharded["c"]["bias"].spec == PartitionSpec(None)


def test_a_fresh_parallel_mode_is_what_runs(monkeypatch, tmp_path, tiny_config):
    """A mode that counts the batches that it puts on the devices trains a run."""
    from vivit.train import train

    monkeypatch.setattr(MODES, "_items", dict(MODES._items))
    put = []

    @MODES.register("counting")
    class Counting(JitParallel):
        def put(self, batch):
            put.append(batch["clips"].shape[0])
            return super().put(batch)

    train(tiny_config("--config.parallel.mode=counting", "--config.train.steps=3"), tmp_path / "r")
    assert put[:3] == [8, 8, 8]
