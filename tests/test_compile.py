"""Compiling for devices that are not present: what the program's text says, and real compilers
where their packages are installed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import vivit
from vivit.chips import CHIPS, chip_of
from vivit.collectives import sent_by_kind
from vivit.compile import largest_batch
from vivit.cost import count_parameters
from vivit.describe import bytes_on_mesh, parse_mesh
from vivit.settings import ParallelSettings
from vivit.targets import GPUS, gpu_config, make_target

ROOT = Path(__file__).parents[1]
needs_tpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
needs_cuda = pytest.mark.skipif(
    find_spec("jax_cuda12_plugin") is None, reason="jax-cuda12-plugin is not installed"
)
HLO = """HloModule test, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %moved = f32[8]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %ar = f32[8]{0} all-reduce(%moved), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
}

%all-reduce-scatter.1 (p: f32[16]) -> f32[8] {
  %ar.2 = f32[16]{0} all-reduce(%p), channel_id=2, replica_groups=[2,2]<=[4], to_apply=%add
}

%start (p: bf16[4]) -> bf16[8] {
  %g = bf16[8]{0} all-gather(%p), channel_id=7, replica_groups=mesh['y'=2] {'y'}, chain_id="1"
}

%done (p: bf16[4]) -> bf16[8] {
  %g.1 = bf16[8]{0} all-gather(%p), channel_id=7, replica_groups=mesh['y'=2] {'y'}, chain_id="1"
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]{0}) while(%init), condition=%condition, body=%body
  %s = f32[8]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %f = bf16[8]{0} fusion(%a), kind=kCustom, calls=%start
  %h = bf16[8]{0} fusion(%f), kind=kCustom, calls=%done
  %both = (f32[8]{0}, f32[4,2]{1,0}) all-reduce(%a, %a), channel_id=2, replica_groups={}
}
"""


def test_collectives_of_a_program_in_the_words_of_all_compilers():
    """The body of a loop counts once per iteration, an asynchronous collective once, and several
    collectives may share a channel."""
    assert sent_by_kind(HLO) == {
        "collective-permute": {"count": 3, "bytes": 3 * 32},
        "all-reduce": {"count": 3 + 1, "bytes": 3 * 1.5 * 32 + 1.5 * 64},
        "reduce-scatter": {"count": 1, "bytes": 32},
        "all-gather": {"count": 1, "bytes": 8},
    }


def test_the_collectives_of_a_program_of_this_machine():
    """A sum over eight devices, three times in a loop."""
    code = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from vivit.collectives import sent_by_kind
mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P("x")))
def body(total, _):
    return total + jax.lax.psum(total, "x"), None
def f(x):
    return jax.lax.scan(body, x, None, length=3)[0]
g = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False))
print(sent_by_kind(g.lower(x).compile().as_text()))
"""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert "'all-reduce': {'count': 3, 'bytes': 336.0}" in done.stdout  # 3 x 2 x 7/8 x 64 bytes


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize(("growth", "most"), [(1.0, 5), (1.05, 9), (0.95, 12), (2.0, 20)])
@pytest.mark.parametrize("compiles", [True, False])  # whether a step that is too large does
def test_largest_batch_is_found_in_a_few_compilations(limit, growth, most, compiles):
    tried = []

    def peak(batch):
        tried.append(batch)
        used = 100 + 10 * (batch / 8) ** growth
        return used if compiles or batch <= 8 * limit else float("inf")

    memory = 100 + 10 * (limit + 0.5) ** growth
    assert largest_batch(peak, memory, 8) == 8 * limit
    assert len(tried) <= most
    assert len({*tried}) == len(tried)


@pytest.mark.parametrize("name", CHIPS)
def test_a_chip_is_known_by_what_jax_calls_it(name):
    called = {
        "v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite",
        **{name: gpu.name for name, gpu in GPUS.items()},
    }  # fmt: skip
    assert chip_of(called[name]) is CHIPS[name]
    assert chip_of("cpu") is None
    if name in GPUS:
        config = gpu_config(name, CHIPS[name])
        assert config.count("{") == config.count("}") == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "unknown chip 'v9'; known: a100"),
        ("v5e:4", 'like "v5e:4x4"'),
        ("h100:two", "a number of GPUs"),
        ("h100", "a number of GPUs"),
    ],
)
def test_unknown_targets_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make_target(name)


def test_a_mesh_on_the_command_line():
    assert parse_mesh("data=4,fsdp=2") == {"data": 4, "fsdp": 2}
    with pytest.raises(ValueError, match="heads=2; axes are data, fsdp, tensor, sequence"):
        parse_mesh("heads=2")


def test_the_bytes_on_each_device_of_a_mesh(tiny_config):
    config = tiny_config("--config.parallel.data=2", "--config.parallel.fsdp=2")
    model = vivit.build(config.model)
    whole = bytes_on_mesh(replace(config, parallel=ParallelSettings(data=1)), model)
    part = bytes_on_mesh(config, model)
    assert whole["parameters_bytes"] == 4 * count_parameters(model)
    assert part["devices"] == 4
    assert whole["parameters_bytes"] / 2 <= part["parameters_bytes"] < whole["parameters_bytes"]
    with pytest.raises(ValueError, match="2 is not a multiple of 3"):
        bytes_on_mesh(replace(config, parallel=ParallelSettings(data=1, tensor=3)), model)


def test_a_missing_compiler_is_one_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr("vivit.targets.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="packages that are missing; python -m pip install libtpu"):
        make_target("v5e:2x2")
    with pytest.raises(ValueError, match="--no-deps jax-cuda12-plugin==.* nvidia-cudnn-cu12"):
        make_target("h100:8")


def compile_tiny(target, *overrides):
    command = [
        sys.executable, "-m", "vivit.compile", "--config=configs/moving_digits.py", "--json",
        f"--target={target}", "--batch=8", "--config.model.depth=1", "--config.model.width=64",
        "--config.model.heads=4", *overrides,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@needs_tpu
@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        (("--mesh=fsdp=2,tensor=2",), {"all-reduce", "all-gather"}),
        (("--config.parallel.mode=pmap",), {"all-reduce"}),
    ],
)
def test_the_tpu_kernel_compiles_on_several_chips(overrides, kinds):
    done = compile_tiny("v5e:2x2", "--config.model.kernel=fused", *overrides)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found = json.loads(done.stdout)
    assert found["train"]["fits"]
    assert kinds <= found["train"]["collectives"].keys()
    assert 0 < found["bounds"]["mfu"] <= 1


@needs_cuda
def test_the_gpu_step_compiles_and_a_kernel_that_gpus_lack_is_refused():
    done = compile_tiny("h100:4", "--config.model.kernel=chunked")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"]["fits"]
    refused = compile_tiny("h100:4", "--config.model.kernel=fused")
    assert refused.returncode == 1
    assert "cuDNN computes in bfloat16, not float32" in refused.stderr


def tpu_mesh(*shape):
    from jax.sharding import AbstractMesh, AxisType

    from vivit.mesh import MESH_AXES

    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    types = (AxisType.Auto,) * 4
    return AbstractMesh(shape, MESH_AXES, axis_types=types, abstract_device=device)


def test_a_scanned_model_with_splash_attention_is_traced_twice():
    """As in a training and an evaluation step: nothing of a trace is kept for the next."""
    tiny = {"clip": (4, 8, 8), "classes": 3, "width": 8, "depth": 2, "heads": 2, "mlp_dim": 8}
    tiny |= {"tubelet": (2, 4, 4), "kernel": "fused", "family": "joint", "scan": True}
    clips = jax.ShapeDtypeStruct((1, 4, 8, 8, 3), jnp.uint8)
    with jax.sharding.use_abstract_mesh(tpu_mesh(1, 1, 1, 1)):
        model = vivit.build(tiny)
        params = jax.eval_shape(model.init, jax.random.key(0), clips)
        for _ in range(2):
            logits = jax.eval_shape(lambda p, x: model.apply(p, x), params, clips)
    assert logits.shape == (1, 3)


def test_a_model_is_built_for_the_devices_of_the_mesh():
    """A kernel of TPUs is refused here, and taken for a mesh of TPUs; "auto" chooses it there."""
    from vivit.attention.devices import platform
    from vivit.attention.kernels import KernelRequirements, first_suitable

    tiny = {"clip": (4, 8, 8), "classes": 3, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    tiny |= {"tubelet": (2, 4, 4), "kernel": "fused", "family": "joint"}
    with pytest.raises(ValueError, match="or a TPU, and this is for cpu"):
        vivit.build(tiny)
    mesh = tpu_mesh(4, 1, 1, 1)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"
        assert vivit.build(tiny).config.kernel.name == "fused"
        needs = KernelRequirements(4, "float32")
        assert first_suitable(needs, 128 * 128).name == "fused"
        assert first_suitable(needs, 16 * 16).name == "dense"  # less than one of its blocks
    split = tpu_mesh(1, 1, 1, 4)
    with jax.sharding.use_abstract_mesh(split):
        with pytest.raises(ValueError, match='splits tokens over devices, which "ring"'):
            vivit.build(tiny)
