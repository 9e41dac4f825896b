"""A tiny data set and a tiny run, made once for all tests."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny models spend their time in the compiler: half of it is LLVM's optimisation.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

# One cache of compiled functions for a run of the tests: its workers and the commands that they
# start inherit the variable. Tiny runs are trained again and again.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/vivit-tests-{os.getpid()}"
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest

from vivit.config import read_config
from vivit.data import moving_digits
from vivit.dataprep.prepare import prepare_registered
from vivit.train import train

ROOT = Path(__file__).parents[1]
TINY = (
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.family=factorised_encoder(1)",
    "--config.model.heads=2",
    "--config.model.mlp_dim=16",
    "--config.model.tubelet=(4,16,16)",
    "--config.data.batch_size=8",
    "--config.train.steps=6",
    "--config.train.log_every=2",
    "--config.train.eval_every=4",
    "--config.train.checkpoint_every=2",
    "--config.optim.warmup_fraction=0.34",
)


def pytest_unconfigure(config):
    cache = Path(tempfile.gettempdir(), f"vivit-tests-{os.getpid()}")
    shutil.rmtree(cache, ignore_errors=True)  # in the process that made it


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_functions():
    """A module's compiled functions are of no use to the next: without this a process grows to
    several GB."""
    yield
    jax.clear_caches()
    gc.collect()


def _prepared(name, root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "SPLITS", {"train": 32, "validation": 16, "test": 21})
        prepare_registered(name, root)
    return root


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A folder with a small moving_digits; do not write to it."""
    return _prepared("moving_digits", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def long_root(tmp_path_factory):
    """A folder with a small long_digits; do not write to it."""
    return _prepared("long_digits", tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="session")
def tiny_config(data_root):
    """overrides -> the config of a run that takes seconds."""

    def make(*overrides):
        root = f"--config.data.root={data_root}"
        return read_config(str(ROOT / "configs/moving_digits.py"), [*TINY, root, *overrides])

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_config):
    """The folder of a finished run; do not write to it but by evaluate and report."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_config(), workdir)
    return workdir
