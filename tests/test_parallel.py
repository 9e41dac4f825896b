"""One device, eight by jit, eight by jit with fsdp, and eight by pmap give the same parameters."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vivit.parallel import MODES, JitParallel, make_parallel
from vivit.settings import ParallelSettings

ROOT = Path(__file__).parents[1]
WAYS = {
    "one": (1, "jit", 1, 0.0),
    "jit": (8, "jit", 1, 0.0),
    "fsdp": (8, "jit", 2, 0.0),
    "ring": (8, "jit", 2, 0.0, 2, "ring"),
    "ulysses": (4, "jit", 1, 0.0, 2, "ulysses"),
    "pmap": (8, "pmap", 1, 0.0),
    "one with dropout": (1, "jit", 1, 0.2),
    "jit with dropout": (8, "jit", 1, 0.2),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")

    def start(name):
        devices, *arguments = WAYS[name]
        out = folder / f"{name.replace(' ', '_')}.npz"
        command = [sys.executable, "-m", "tests.eight_devices", str(out), *map(str, arguments)]
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        return out, subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    started = {name: start(name) for name in WAYS}
    loaded = {}
    for name, (out, process) in started.items():
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output.decode()
        loaded[name] = dict(np.load(out))
    return loaded


@pytest.mark.parametrize("name", ["jit", "fsdp", "pmap", "ring", "ulysses", "jit with dropout"])
def test_the_same_parameters_after_five_steps(results, name):
    one, other = results["one with dropout" if "dropout" in name else "one"], results[name]
    assert other["devices"] == WAYS[name][0]
    for key in one.keys() - {"devices", "shards"}:
        np.testing.assert_allclose(other[key], one[key], atol=1e-5, err_msg=key)


def test_dropout_was_on_and_the_state_was_sharded(results):
    assert not np.allclose(results["one"]["losses"], results["one with dropout"]["losses"])
    assert results["fsdp"]["shards"] == 2
    assert results["jit"]["shards"] == 1
    assert results["one"]["valid"].sum() == 13
    np.testing.assert_array_equal(results["one"]["valid"], np.arange(16) < 13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "xmap"}, "unknown parallel mode 'xmap'; known: jit, pmap"),
        ({"fsdp": 3}, "does not divide the 1 devices"),
        ({"sequence": 2}, "sequence=2 does not divide the 1 devices"),
        ({"mode": "pmap", "rules": ()}, 'rules need parallel.mode="jit"'),
        ({"data": 2}, "data=2 x fsdp=1 x sequence=1 is not the 1 devices .*; use data=-1"),
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

    mesh = AbstractMesh((1, 2, 1), MESH_AXES)
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
