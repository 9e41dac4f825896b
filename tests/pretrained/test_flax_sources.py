"""Scenic's checkpoints and ViT's npz, written as published: equal to their makers' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vivit
from tests.pretrained.flax_files import (
    below,
    write_big_vision,
    write_scenic,
    write_vision_transformer,
)
from tests.scenic import GOLDEN
from vivit import pretrained
from vivit.analysis import capture
from vivit.objective import cross_entropy

TOLERANCE = 2e-5
MODELS = {
    "spacetime_token": {},
    "spacetime_gap": {},
    "factorized_encoder_token": {},
    "factorized_encoder_gap": {},
    "factorized_self_attention_time_space": {},
    "factorized_dot_product": {"family": "factorised_dot_product"},
}
CLIP = (8, 16, 16)


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def golden(name):
    return np.load(GOLDEN / f"scenic_{name}.npz")


@pytest.mark.parametrize("name", MODELS)
def test_a_scenic_checkpoint_layer_by_layer(name, tmp_path):
    arrays = golden(name)
    load = lambda prefix: pretrained.load(
        write_scenic(tmp_path / prefix, below(arrays, prefix)), source_clip=CLIP, **MODELS[name]
    )
    loaded, expected = load("params"), load("grads")  # gradients have their parameters' names
    model = vivit.build(loaded.model_config)
    clips, labels = jnp.asarray(arrays["input"]), jnp.asarray(arrays["label"].argmax(axis=-1))

    def loss(params):
        logits, kept = model.apply(
            {"params": params},
            clips,
            capture_intermediates=lambda module, _: module.name == "norm",
            mutable=["intermediates"],
        )
        return cross_entropy(logits, labels).mean(), (logits, kept["intermediates"])

    (value, (logits, kept)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(loaded.params)
    if "tokens" in arrays.files:
        tokens = kept["stage_0"]["norm"]["__call__"][0]
        tokens = tokens.reshape(2, -1, tokens.shape[-1])
        np.testing.assert_allclose(tokens, arrays["tokens"], atol=TOLERANCE)
    features = model.apply({"params": loaded.params}, clips, method="features")
    np.testing.assert_allclose(features, arrays["prelogits"], atol=TOLERANCE)
    np.testing.assert_allclose(logits, arrays["logits"], atol=TOLERANCE)
    np.testing.assert_allclose(value, arrays["loss"], atol=TOLERANCE)
    ours, theirs = flatten_dict(grads, sep="/"), flatten_dict(expected.params, sep="/")
    assert set(ours) == set(theirs)
    for path, grad in ours.items():
        np.testing.assert_allclose(grad, theirs[path], atol=TOLERANCE, err_msg=path)


@pytest.mark.parametrize("name", ["spacetime_token", "factorized_self_attention_time_space"])
def test_attention_of_a_scenic_checkpoint(name, tmp_path):
    arrays = golden(name)
    folder = write_scenic(tmp_path, below(arrays, "params"), new=True)
    loaded = pretrained.load(folder, clip=CLIP)
    maps = capture(vivit.build(loaded.model_config), loaded.params, arrays["input"])
    assert len(maps.attentions) == (2 if "token" in name else 4)
    for attention in maps.attentions:
        module = "0" if attention.pattern.name == "joint" else attention.pattern.name
        key = f"encoderblock_{attention.layer}/MultiHeadDotProductAttention_{module}"
        expected = arrays[f"attn/Transformer/{key}/attention_weights"]
        ours = np.asarray(attention.weights())
        if attention.pattern.name == "joint":
            weights = ours.reshape(2, 4, 64, 64)
            expected = expected[:, :, 1:, 1:]
        elif attention.pattern.name == "space":
            weights = np.stack([ours[:, :, t, :, t] for t in range(4)], axis=1)
        else:
            weights = np.stack([ours[:, :, :, s, :, s] for s in range(16)], axis=1)
        np.testing.assert_allclose(weights.reshape(expected.shape), expected, atol=TOLERANCE)


IMPORTS = {
    "import_token_spacetime_tile_central_frame_initializer": {"clip": CLIP},
    "import_token_spacetime_tile_average_frame_initializer": {
        "clip": CLIP,
        "inflation": "average_frames",
    },
    "import_token_spacetime_resize_tile_24px": {"clip": (8, 24, 24), "position_resize": "zoom"},
    "import_token_fe_tile": {
        "clip": CLIP,
        "family": "factorised_encoder(temporal_depth=2)",
        "class_token": "fresh",
    },
    "import_gap_fsa_tile": {
        "clip": CLIP,
        "family": "factorised_self_attention",
        "time_attention": "scenic",
    },
}
FRESH = {"import_token_fe_tile": ("stage_1/", "stage_0/class_token", "head/")}
FORMATS = {
    "scenic": lambda path, params: write_scenic(path / "image", params),
    "vision_transformer": lambda path, params: write_vision_transformer(path / "v.npz", params),
    "big_vision": lambda path, params: write_big_vision(path / "b.npz", params),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", IMPORTS)
def test_image_to_video_is_scenics(name, form, tmp_path):
    arrays, options = golden(name), IMPORTS[name]
    file = FORMATS[form](tmp_path, below(arrays, "source"))
    ours = pretrained.load(file, classes=11, **options)
    result = pretrained.load(
        write_scenic(tmp_path / "result", below(arrays, "result")),
        source_clip=options["clip"],
        family=ours.model_config["family"],
    )
    ours_flat, theirs = (flatten_dict(x.params, sep="/") for x in (ours, result))
    assert set(ours_flat) == set(theirs)
    fresh = {row.parameter for row in ours.report.rows if row.action == "fresh"}
    starts = FRESH.get(name, ("head/", *("norm_time/",)))
    assert fresh == {p for p in theirs if p.startswith(starts) or ("/norm_time/" in p
                     and "fsa" in name)}  # fmt: skip
    tokens = ("stage_0/class_token", "stage_0/position/class_token")
    if form == "big_vision" and "token" in name and "fe" not in name:
        # Published so, the token and its position are one number.
        sums = [sum(flat[t].reshape(-1) for t in tokens) for flat in (ours_flat, theirs)]
        np.testing.assert_allclose(*sums, atol=1e-6)
    for path in set(theirs) - fresh:
        if not (form == "big_vision" and path in tokens):
            np.testing.assert_allclose(ours_flat[path], theirs[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["import_token_fe_tile", "import_gap_fsa_tile"])
def test_an_image_model_is_a_video_model_of_one_frame(name, form, tmp_path):
    """And a clip of equal frames gives what the image does, once inflated."""
    source = below(golden(name), "source")
    file = FORMATS[form](tmp_path, source)
    image = pretrained.load(file)
    assert image.model_config["clip"] == (1, 16, 16)
    assert not [row for row in image.report.rows if row.action in ("fresh", "resized", "inflated")]
    images = np.random.default_rng(0).normal(size=(2, 1, 16, 16, 3)).astype(np.float32)
    logits = vivit.build(image.model_config).apply({"params": image.params}, images)
    np.testing.assert_allclose(logits, image_vit(source, images[:, 0]), atol=TOLERANCE)
    for family, readout in (
        ("joint", image.model_config["readout"]),
        ("factorised_self_attention", "mean"),
    ):
        video = pretrained.load(file, clip=(8, 16, 16), family=family, model={"readout": readout})
        assert video.model_config["tubelet"] == (2, 4, 4)
        if "token" not in name:  # every step is the image, and attention over time adds nothing
            still = vivit.build(video.model_config).apply(
                {"params": video.params}, images.repeat(8, axis=1)
            )
            np.testing.assert_allclose(still, logits, atol=TOLERANCE)


def image_vit(params, images):
    """A ViT in numpy, from its equations (2010.11929, section 3.1)."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * params[f"{name}/scale"] + params[f"{name}/bias"]

    patches = images.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    x = np.einsum("byxhwc,hwcd->byxd", patches, params["embedding/kernel"]).reshape(2, 16, -1)
    x = x + params["embedding/bias"]
    if "cls" in params:
        x = np.concatenate([np.repeat(params["cls"], 2, axis=0), x], axis=1)
    x = x + params["Transformer/posembed_input/pos_embedding"]
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        y = norm(x, f"{block}/LayerNorm_0")
        attention = f"{block}/MultiHeadDotProductAttention_0"
        q, k, v = (
            np.einsum("bnd,dhk->bhnk", y, params[f"{attention}/{part}/kernel"])
            + params[f"{attention}/{part}/bias"][None, :, None]
            for part in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("bhnk,bhmk->bhnm", q, k) / np.sqrt(q.shape[-1]))
        mixed = np.einsum("bhnm,bhmk->bnhk", scores / scores.sum(-1, keepdims=True), v)
        x = x + np.einsum("bnhk,hkd->bnd", mixed, params[f"{attention}/out/kernel"])
        x = x + params[f"{attention}/out/bias"]
        y = norm(x, f"{block}/LayerNorm_1") @ params[f"{block}/MlpBlock_0/Dense_0/kernel"]
        y = y + params[f"{block}/MlpBlock_0/Dense_0/bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        y = y @ params[f"{block}/MlpBlock_0/Dense_1/kernel"]
        x = x + y + params[f"{block}/MlpBlock_0/Dense_1/bias"]
    x = norm(x, "Transformer/encoder_norm")
    x = x[:, 0] if "cls" in params else x.mean(axis=1)
    return x @ params["output_projection/kernel"] + params["output_projection/bias"]
