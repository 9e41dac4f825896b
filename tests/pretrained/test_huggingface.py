"""HuggingFace folders as transformers writes them: logits, all hidden states, all attentions."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vivit
from vivit import pretrained
from vivit.analysis import capture
from vivit.model.block import Block

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(GOLDEN.glob("hf_*"))
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def run(loaded, clips):
    """(logits, tokens after each block as [sets, n, D])"""
    model = vivit.build(loaded.model_config)
    logits, kept = model.apply(
        {"params": loaded.params},
        clips,
        capture_intermediates=lambda module, _: isinstance(module, Block),
        mutable=["intermediates"],
    )
    states = []
    for stage in sorted(kept.get("intermediates", {})):
        layers = kept["intermediates"][stage]
        for layer in sorted(layers, key=lambda name: int(name[6:])):
            states.append(np.asarray(layers[layer]["__call__"][0][0].x))
    return logits, states


def as_theirs(x, theirs, name):
    """Tokens [B, T, S, D] in the order of a source's array."""
    b, t, s, d = x.shape
    if "timesformer_divided" in name:  # one class token, then (y x) t
        tokens = x[:, :, 1:].transpose(0, 2, 1, 3).reshape(b, -1, d)
        return np.concatenate([x[:, 0, :1], tokens], axis=1)
    if "timesformer_joint" in name:
        frames = 4
        tokens = x[:, 0, 1:].reshape(b, frames, -1, d).transpose(0, 2, 1, 3).reshape(b, -1, d)
        return np.concatenate([x[:, 0, :1], tokens], axis=1)
    if theirs.shape[0] == b * t:
        return x.reshape(b * t, s, d)
    return x.reshape(b, t * s, d)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_logits_and_hidden_states(folder):
    out = np.load(folder / "outputs.npz")
    loaded = pretrained.load(folder)
    logits, states = run(loaded, out["input"])
    hidden = [out[k] for k in sorted(out.files) if k.startswith("hidden_states/")]
    assert len(states) >= len(hidden) - 1
    for i, theirs in enumerate(hidden[1:]):
        if "videoprism" in folder.name and i + 2 == len(hidden):
            break  # transformers puts the normed tokens last
        ours = as_theirs(states[i], theirs, folder.name)
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, err_msg=f"layer {i}")
    if "timesformer_space" in folder.name:  # theirs: of every frame
        expected = out["logits"].reshape(2, 4, -1).mean(axis=1)
    elif "logits" in out.files:
        expected = out["logits"].reshape(2, -1)
    elif "pooler_output" in out.files:
        expected = out["pooler_output"].reshape(2, -1)
    else:
        expected = out["last_hidden_state"].mean(axis=1)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_attentions(folder):
    out = np.load(folder / "outputs.npz")
    loaded = pretrained.load(folder)
    maps = capture(vivit.build(loaded.model_config), loaded.params, out["input"])
    over_time = "time" if "timesformer" in folder.name else ""  # which transformers does not give
    ours = [a for a in maps.attentions if a.pattern.name != over_time]
    theirs = [out[k] for k in sorted(out.files) if k.startswith("attentions/")]
    for attention, expected in zip(ours, theirs, strict=False):
        weights = np.asarray(attention.weights())  # [B, h, Tq, Sq, Tk, Sk], no class token
        b, h, t, s = weights.shape[:4]
        # Class tokens and registers come first; maps have those of the clip.
        extra = expected.shape[-1] - (t * s if attention.pattern.name == "joint" else s)
        if attention.pattern.name != "time":
            expected = expected[:, :, extra:, extra:]
        if attention.pattern.name == "space":
            ours_in_sets = np.stack([weights[:, :, i, :, i] for i in range(t)], axis=1)
            ours_in_sets = ours_in_sets.reshape(b * t, h, s, s)
        elif attention.pattern.name == "time":
            ours_in_sets = np.stack([weights[:, :, :, i, :, i] for i in range(s)], axis=1)
            ours_in_sets = ours_in_sets.reshape(b * s, h, t, t)
        elif "timesformer" in folder.name:
            ours_in_sets = weights.transpose(0, 1, 3, 2, 5, 4).reshape(b, h, t * s, t * s)
        else:
            ours_in_sets = weights.reshape(b, h, t * s, t * s)
        np.testing.assert_allclose(ours_in_sets, expected, atol=TOLERANCE)


def test_names_of_transformers_5_load_too(tmp_path):
    """What a model has in memory in version 5, where files keep the names of transformers 4."""
    shutil.copytree(GOLDEN / "hf_vivit", tmp_path / "new")
    old = load_file(tmp_path / "new/model.safetensors")
    renamed = {}
    for name, array in old.items():
        for before, after in (
            ("encoder.layer.", "layers."),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            name = name.replace(before, after)
        renamed[name] = array
    assert set(renamed) & set(old) < set(old)
    save_file(renamed, tmp_path / "new/model.safetensors")
    new, before = (pretrained.load(p).params for p in (tmp_path / "new", GOLDEN / "hf_vivit"))
    jax.tree.map(np.testing.assert_array_equal, new, before)


def test_uint8_clips_are_normalised_as_the_source_does():
    """VideoMAE's processor: ImageNet's mean and deviation of values in [0, 1]."""
    loaded = pretrained.load(GOLDEN / "hf_videomae")
    model = vivit.build(loaded.model_config)
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8)
    floats = (clips / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    apply = lambda x: model.apply({"params": loaded.params}, x)
    np.testing.assert_allclose(apply(clips), apply(floats.astype(np.float32)), atol=1e-4)


def test_the_image_processors_numbers_come_first(tmp_path):
    shutil.copytree(GOLDEN / "hf_videomae", tmp_path / "folder")
    numbers = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "folder/preprocessor_config.json").write_text(json.dumps(numbers))
    loaded = pretrained.load(tmp_path / "folder")
    assert loaded.model_config["pixel_mean"] == (0.1, 0.2, 0.3)
    assert loaded.model_config["pixel_std"] == (0.4, 0.5, 0.6)
    assert set(loaded.report.sha256) == {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }


IMAGES = [f for f in FOLDERS if json.loads((f / "config.json").read_text()).get("patch_size")
          and np.load(f / "outputs.npz")["input"].shape[1] == 1]  # fmt: skip


@pytest.mark.parametrize("folder", IMAGES, ids=lambda f: f.name)
def test_an_image_model_becomes_one_of_clips(folder):
    """Every frame on its own, then their mean: a still clip has the image's features."""
    images = np.load(folder / "outputs.npz")["input"]
    one = pretrained.load(folder)
    options = {"family": "average_pool", "clip": (4, 24, 24), "model": {"tubelet": (2, 8, 8)}}
    video = pretrained.load(folder, **options)
    expected = vivit.build(one.model_config).apply({"params": one.params}, images)
    model = vivit.build(video.model_config)
    still = model.apply({"params": video.params}, images.repeat(4, axis=1))
    np.testing.assert_allclose(still, expected, atol=1e-4)
    joint = pretrained.load(folder, **{**options, "family": "joint"})
    tokens = vivit.build(joint.model_config).apply({"params": joint.params}, images.repeat(4, 1))
    assert np.isfinite(tokens).all()


def test_layer_scale_and_classifiers_are_accounted_for():
    report = str(pretrained.load(GOLDEN / "hf_dinov2").report)
    assert "folded into the layer before it" in report
    assert "the mask token of pre-training" in report


def test_the_vision_tower_is_found_beside_a_text_tower(tmp_path):
    shutil.copytree(GOLDEN / "hf_clip", tmp_path / "both")
    arrays = load_file(tmp_path / "both/model.safetensors")
    both = {f"vision_model.{name}": array for name, array in arrays.items()}
    both |= {"text_model.embeddings.token_embedding.weight": np.ones((3, 4), np.float32)}
    both |= {"logit_scale": np.ones((), np.float32), "text_projection.weight": np.ones((4, 4))}
    save_file(both, tmp_path / "both/model.safetensors")
    config = json.loads((tmp_path / "both/config.json").read_text())
    text = {"model_type": "clip", "vision_config": config, "text_config": {}}
    (tmp_path / "both/config.json").write_text(json.dumps(text))
    one, other = pretrained.load(GOLDEN / "hf_clip"), pretrained.load(tmp_path / "both")
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        ("hf_vit_bare", {"pooler_act": "relu"}, "pooler_act='relu', not tanh"),
        ("hf_siglip", {"vision_use_head": False}, "vision_use_head=False"),
        ("hf_clip", {"hidden_act": "mish"}, "hidden_act='mish'; known: "),
    ],
)
def test_options_that_no_model_here_has_are_named(tmp_path, folder, change, message):
    shutil.copytree(GOLDEN / folder, tmp_path / "changed")
    path = tmp_path / "changed/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        pretrained.load(tmp_path / "changed")
