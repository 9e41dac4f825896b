"""make test-compile: training steps of B/16x2 compiled for TPUs and GPUs that are not present.

Layers are scanned, which halves the time of a compilation; joint attention is unrolled too. What
"auto" lowers to is mostly the program of another kernel, and an equal program is compiled once.
"""

import ast
import hashlib
import re
from pathlib import Path

import jax
import pytest

from configs import common
from vivit.attention import PATTERNS
from vivit.compile import make_steps
from vivit.config import as_config, read_config
from vivit.targets import make_target, quiet

pytestmark = pytest.mark.compile

ROOT = Path(__file__).parents[1]
KERNELS = ("dense", "chunked", "fused", "auto")
# Patterns with a bias or a mask, which neither cuDNN nor splash attention gets (docs/attention.md).
WITHOUT_FUSED = {
    "causal_time", "dilated_time", "window", "neighbourhood", "local", "strided_global",
}  # fmt: skip
ONE, FOUR = ("v5e:1x1", "h100:1"), ("v5e:2x2", "h100:4")
programs = {}  # of this process: a target and a hash of a program -> bytes of temporaries


@pytest.fixture(autouse=True, scope="module")
def _no_cache():
    """JAX cannot read programs of absent devices back from its compilation cache."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def steps_of(target, *, mode="jit", sequence=1, **model):
    config = common.get_config()
    config.model.update(size="B/16x2", clip=(32, 224, 224), classes=400, dtype="bfloat16", depth=2)
    config.model.update(model)
    config.parallel.update(mode=mode, sequence=sequence)
    devices = make_target(target)
    return make_steps(as_config(config), devices, batch_size=len(devices.devices) // sequence)


def temporaries(steps):
    """Compiles a training step for its target; returns its temporaries in bytes per chip."""
    lowered = steps.train.lower()
    key = steps.target.name, hashlib.sha256(lowered.as_text().encode()).hexdigest()
    if key not in programs:
        with quiet():
            compiled = lowered.compile(steps.train.options)
        programs[key] = compiled.memory_analysis().temp_size_in_bytes
    return programs[key]


@pytest.mark.parametrize("target", [*ONE, *FOUR])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_compiles_by_every_kernel(pattern, target):
    """On four devices, dense and chunked by pmap for every other pattern."""
    found = {}
    for kernel in KERNELS:
        pmap = target in FOUR and (kernel == "fused") != bool(sorted(PATTERNS).index(pattern) % 2)
        options = {"family": pattern, "kernel": kernel, "scan": True}
        if kernel == "fused" and pattern in WITHOUT_FUSED:
            with pytest.raises(ValueError, match="can't compute pattern .* has no "):
                steps_of(target, **options)
            continue
        found[kernel] = temporaries(steps_of(target, mode="pmap" if pmap else "jit", **options))
    # Splash attention pads the 16 pools of each token to a block of 128; auto does not take it.
    padded = ["fused"] if pattern == "trajectory" and target.startswith("v") else []
    assert min(found.values()) > 0
    assert [kernel for kernel, count in found.items() if count >= 16 * 2**30] == padded, found


@pytest.mark.parametrize("target", ONE)
@pytest.mark.parametrize("kernel", KERNELS)
def test_joint_attention_compiles_unrolled(kernel, target):
    temporaries(steps_of(target, family="joint", kernel=kernel))


@pytest.mark.parametrize("target", FOUR)
@pytest.mark.parametrize("kernel", ["ring", "ulysses"])
def test_tokens_are_split_over_four_devices(kernel, target):
    split = temporaries(steps_of(target, family="joint", kernel=kernel, sequence=4))
    whole = temporaries(steps_of(target, family="joint", kernel="chunked"))
    assert split < whole


@pytest.mark.parametrize("target", ["v5e:2x2", "h100:4"])
@pytest.mark.parametrize("readout", ["mean", "cls"])  # with a class token, odd numbers of tokens
def test_two_stages_compile_with_fused(readout, target):
    stages = {"family": "factorised_encoder(2)", "kernel": "fused", "readout": readout}
    temporaries(steps_of(target, scan=True, **stages))


CONFIGS = sorted(p for p in (ROOT / "configs").glob("[!_]*.py") if p.name != "common.py")


def targets_of(config):
    """The targets of the commands in a config's docstring, or a chip of each kind."""
    return re.findall(r"--target=(\S+)", doc_of(config)) or ONE


def doc_of(config):
    return ast.get_docstring(ast.parse(config.read_text())) or ""


@pytest.mark.parametrize(
    ("config", "target"), [(path, t) for path in CONFIGS for t in targets_of(path)]
)
def test_every_config_compiles_for_its_target(config, target):
    settings = read_config(str(config))
    frames = [(int(h), int(w)) for h, w in re.findall(r"--frame=(\d+)x(\d+)", doc_of(config))]
    frame, size = next(iter(frames), None), settings.data.batch_size
    steps = make_steps(settings, make_target(target), batch_size=size, frame=frame)
    assert steps.trained["fits"]
