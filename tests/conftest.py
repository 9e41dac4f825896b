"""A tiny data set and a tiny run, made once for all tests."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny models spend their time in the compiler: half of it is LLVM's optimisation.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

from pathlib import Path

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
    "--config.optim.warmup_steps=2",
)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A folder with a small moving_digits; do not write to it."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "SPLITS", {"train": 32, "validation": 16, "test": 21})
        prepare_registered("moving_digits", root)
    return root


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
