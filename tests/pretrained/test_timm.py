"""Image ViTs in timm's names: logits, and the tokens after every block."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vivit
from tests.pretrained.test_huggingface import TOLERANCE, run
from vivit import pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(GOLDEN.glob("timm_*"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_logits_and_tokens(folder):
    out = np.load(folder / "outputs.npz")
    loaded = pretrained.load(folder)
    with jax.default_matmul_precision("highest"):
        logits, states = run(loaded, out["input"])
    for i, ours in enumerate(states):
        theirs = out[f"hidden_states/{i:02d}"]
        np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=TOLERANCE)
    np.testing.assert_allclose(logits, out["logits"], atol=TOLERANCE)
    assert loaded.model_config["pixel_std"] == (0.229, 0.224, 0.225)
    assert "1 heads, by the width" in str(loaded.report)


def test_a_model_of_clips_starts_from_it():
    options = {"clip": (4, 24, 24), "family": "factorised_encoder(1)"}
    loaded = pretrained.load(GOLDEN / "timm_registers", model={"tubelet": (2, 8, 8)}, **options)
    model = vivit.build(loaded.model_config)
    assert np.isfinite(model.apply({"params": loaded.params}, np.zeros((1, 4, 24, 24, 3)))).all()


def renamed(folder, change):
    """The file of registers without config.json, with other arrays."""
    save_file(
        change(load_file(GOLDEN / "timm_registers/model.safetensors")), folder / "vit.safetensors"
    )
    return folder / "vit.safetensors"


def test_names_of_dinov2_and_a_file_alone(tmp_path):
    names = {"reg_token": "register_tokens"}
    path = renamed(tmp_path, lambda arrays: {names.get(n, n): a for n, a in arrays.items()})
    one, other = pretrained.load(GOLDEN / "timm_registers"), pretrained.load(path)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert other.model_config["pixel_std"] == (0.5, 0.5, 0.5)
    assert "there is no config.json with mean and std" in str(other.report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "fc_norm.weight": a["norm.weight"]}, "fc_norm with a class token"),
        (lambda a: {**a, "blocks.0.attn.q_norm.weight": a["norm.weight"]}, "unexpected: .*q_norm"),
        (lambda a: {**a, "patch_embed.proj.weight": np.zeros((40, 3, 8, 8), np.float32)},
         "width of 40 is neither a multiple of 64"),
    ],
)  # fmt: skip
def test_options_that_no_model_here_has_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(renamed(tmp_path, change))
