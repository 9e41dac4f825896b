"""Other clips, families, tubelets and heads: what is kept, and what starts how."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage
from flax.traverse_util import flatten_dict, unflatten_dict

import vivit
from tests.pretrained.flax_files import (
    below,
    write_big_vision,
    write_scenic,
    write_vision_transformer,
)
from tests.scenic import GOLDEN
from tests.test_model import init
from vivit import pretrained
from vivit.io import read_json
from vivit.model.params import stack_layers
from vivit.pretrained.choices import INFLATIONS, TIME_ATTENTIONS, inflate
from vivit.pretrained.resize import RESIZES, marginals, resize

IMAGE_CONFIG = {"clip": (8, 16, 16), "family": "factorised_self_attention"}


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """Scenic's image ViT with a class token."""
    arrays = np.load(GOLDEN / "scenic_import_token_fe_tile.npz")
    return write_scenic(tmp_path_factory.mktemp("image"), below(arrays, "source"))


def flat(loaded):
    return flatten_dict(loaded.params, sep="/")


def actions(loaded):
    return {row.parameter: row.action for row in loaded.report.rows}


def kernel(seed=0, shape=(1, 4, 4, 3, 5)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_inflations_in_numbers():
    one = np.ones((1, 1, 1, 1, 1), np.float32)
    values = lambda method, n: INFLATIONS[method](one[0], n).reshape(-1)
    np.testing.assert_array_equal(values("central_frame", 4), [0, 0, 1, 0])  # index t // 2
    np.testing.assert_array_equal(values("central_frame", 3), [0, 1, 0])
    np.testing.assert_allclose(values("average_frames", 4), [0.25] * 4)
    # Bilen et al., equation 3: 2 (T - t + 1) - (T + 1) (H_T - H_{t-1})
    np.testing.assert_allclose(values("rank_pooling", 2), [-0.25, 0.25])
    expected = np.array([8 - 5 * 25 / 12, 6 - 5 * 13 / 12, 4 - 5 * 7 / 12, 2 - 5 / 4]) / 4
    np.testing.assert_allclose(values("rank_pooling", 4), expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["central_frame", "average_frames"])
@pytest.mark.parametrize("old", [1, 2, 3])
@pytest.mark.parametrize("new", [1, 2, 4])
def test_a_clip_that_stands_still_gives_the_same_tokens(method, old, new):
    before = kernel(shape=(old, 4, 4, 3, 5))
    after = inflate(before, new, method=method)
    assert after.shape == (new, 4, 4, 3, 5)
    np.testing.assert_allclose(after.sum(axis=0), before.sum(axis=0), atol=1e-6)
    if old == new:
        assert after is before


def test_no_inflation_zeroes_the_width():
    """As the initialiser of Scenic does, which takes the third axis for time."""
    for method in set(INFLATIONS) - {"fresh"}:
        assert inflate(kernel(), 2, method=method).any(axis=(0, 1, 3, 4)).all(), method


@pytest.mark.parametrize("method", list(RESIZES))
def test_resizes_keep_what_is_constant_and_what_is_the_same(method):
    table = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    assert resize(table, (2, 4, 4), method=method) is table
    lengths = (4, 8, 8) if method != "square_zoom" else (1, 16, 16)
    table = table if method != "square_zoom" else table[:1]
    constant = np.ones_like(table) * np.array([1, 2, 3], np.float32)
    out = resize(constant, lengths, method=method)
    np.testing.assert_allclose(out, np.broadcast_to([1, 2, 3], (*lengths, 3)), atol=1e-5)


def test_zoom_is_scipys_and_linear_is_antialiased():
    table = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    expected = scipy.ndimage.zoom(table[0], (3 / 8, 5 / 8, 1), order=1)
    zoomed = resize(table, (4, 3, 5), method="zoom")
    np.testing.assert_allclose(zoomed, np.broadcast_to(expected, (4, 3, 5, 3)), atol=1e-6)
    spike = np.zeros((1, 16, 16, 1), np.float32)
    spike[0, 5, 5] = 1
    small = resize(spike, (1, 4, 4), method="linear")
    np.testing.assert_allclose(small.sum() * 16, 1, atol=0.05)  # zoom would lose it
    assert abs(resize(spike, (1, 4, 4), method="zoom").sum() * 16 - 1) > 0.5


def test_time_rows_and_columns_are_resized_each_on_its_own():
    t, y, x = (np.random.default_rng(i).normal(size=(n, 3)) for i, n in enumerate((4, 3, 5)))
    table = (t[:, None, None] + y[None, :, None] + x[None, None]).astype(np.float32)
    whole = resize(table, (8, 6, 10), method="linear")
    parts = [resize(a.astype(np.float32), (2 * len(a),), method="linear") for a in (t, y, x)]
    expected = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None]
    np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_marginals_of_a_sum_are_its_parts():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3))
    first, second = marginals(a[:, None] + b[None])
    np.testing.assert_allclose(first[:, None] + second[None], a[:, None] + b[None], atol=1e-12)
    np.testing.assert_allclose(second.mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("clip", [(4, 32, 16), (16, 16, 16), (8, 24, 40)])
@pytest.mark.parametrize("family", ["joint", "factorised_encoder"])
def test_any_clip_size(image, family, clip):
    """The embedding of a resized grid is the resized embedding; the rest does not change."""
    small, other = (
        pretrained.load(image, family=family, clip=c, classes=3) for c in ((8, 16, 16), clip)
    )
    assert vivit.build(other.model_config).apply(
        {"params": other.params}, jnp.zeros((1, *clip, 3))
    ).shape == (1, 3)
    before, after = flat(small), flat(other)
    for path in before:
        if path.startswith("stage_0/position/table"):
            lengths = (4, 4, 4) if family == "joint" else (4, 4)
            grid = (clip[0] // 2, clip[1] // 4, clip[2] // 4)[-len(lengths) :]
            expected = resize(np.asarray(before[path]).reshape(*lengths, -1), grid, method="linear")
            np.testing.assert_allclose(after[path].reshape(expected.shape), expected, atol=1e-5)
        elif not path.startswith("stage_1/position"):
            np.testing.assert_array_equal(before[path], after[path], err_msg=path)


def test_the_images_class_token_goes_to_the_spatial_one(image):
    source = below(np.load(GOLDEN / "scenic_import_token_fe_tile.npz"), "source")["cls"]
    options = {"family": "factorised_encoder", "clip": (8, 16, 16), "classes": 3}
    kept = pretrained.load(image, **options)
    np.testing.assert_array_equal(flat(kept)["stage_0/class_token"][0], source)
    fresh = pretrained.load(image, **options, class_token="fresh")
    assert not flat(fresh)["stage_0/class_token"].any()
    assert fresh.report.dropped["cls"] == "the class token is newly initialised"


@pytest.mark.parametrize("how", list(TIME_ATTENTIONS))
def test_attention_over_time(image, how):
    loaded = pretrained.load(
        image, **IMAGE_CONFIG, classes=3, model={"readout": "mean"}, time_attention=how
    )
    params, done = flat(loaded), actions(loaded)
    space, time = "stage_0/layer_0/attention_space", "stage_0/layer_0/attention_time"
    assert done[f"{space}/query/kernel"] == "copied"
    if how == "fresh":
        assert done[f"{time}/query/kernel"] == "fresh"
        return
    for part in ("query/kernel", "key/bias", "value/kernel"):
        np.testing.assert_array_equal(params[f"{space}/{part}"], params[f"{time}/{part}"])
    zero = how == "zero_out"
    assert bool(params[f"{time}/out/kernel"].any()) != zero
    assert done[f"{time}/out/kernel"] == ("zero" if zero else "copied")
    assert done["stage_0/layer_0/norm_time/scale"] == ("fresh" if how == "scenic" else "copied")


def steps_of(loaded, n, change=lambda params: params):
    """The parameters before and after n steps of SGD on one batch."""
    model = vivit.build(loaded.model_config)
    params = change(loaded.params)
    # A head of zeros sends no gradient further down.
    params["head"]["kernel"] = jax.random.normal(jax.random.key(2), (48, 3)) * 0.1
    clips = jax.random.normal(jax.random.key(1), (4, 8, 16, 16, 3))
    optimizer = optax.sgd(0.1)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = model.apply({"params": params}, clips)
            labels = jnp.arange(4) % 3
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    after, state = params, optimizer.init(params)
    for _ in range(n):
        after, state = step(after, state)
    return flatten_dict(params, sep="/"), flatten_dict(after, sep="/")


def test_an_output_of_zeros_learns_and_all_zeros_never_do(image):
    options = {**IMAGE_CONFIG, "classes": 3, "model": {"readout": "mean"}}
    start = "stage_0/layer_0/attention_time"

    def zero_all(params):  # Scenic's "zero" initialisation
        tree = flatten_dict(params, sep="/")
        return unflatten_dict(
            {k: v * 0 if "attention_time" in k else v for k, v in tree.items()}, sep="/"
        )

    before, after = steps_of(pretrained.load(image, **options), 3)
    for part in ("query", "key", "value", "out"):
        path = f"{start}/{part}/kernel"
        assert not np.array_equal(before[path], after[path]), part
    before, after = steps_of(pretrained.load(image, **options), 3, zero_all)
    for part in ("query", "key", "value", "out"):
        assert not after[f"{start}/{part}/kernel"].any(), part


def test_divided_attention_starts_as_the_image(image):
    """TimeSformer's projection of zeros: attention over time adds nothing at first."""
    model = {"position": "learned_space_time"}
    loaded = pretrained.load(image, clip=(8, 16, 16), family="divided", model=model)
    params, done = flat(loaded), actions(loaded)
    assert not params["stage_0/position/time"].any()
    assert not params["stage_0/layer_0/attention_divided_time/projection/kernel"].any()
    assert params["stage_0/layer_0/attention_divided_time/out/kernel"].any()
    assert done["stage_0/position/space"] in ("loaded", "resized")
    images = np.random.default_rng(0).normal(size=(2, 1, 16, 16, 3)).astype(np.float32)
    one = pretrained.load(image)
    expected = vivit.build(one.model_config).apply({"params": one.params}, images)
    still = vivit.build(loaded.model_config).apply(
        {"params": loaded.params}, images.repeat(8, axis=1)
    )
    np.testing.assert_allclose(still, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["window(2, 2, 2)", "local_global", "axial", "trajectory"])
def test_patterns_that_no_image_model_has(image, family):
    loaded = pretrained.load(image, clip=(8, 16, 16), family=family, model={"readout": "mean"})
    clips = jnp.zeros((1, 8, 16, 16, 3))
    model = vivit.build(loaded.model_config)
    assert np.isfinite(model.apply({"params": loaded.params}, clips)).all()
    allowed = ("bias", "trajectory_", "norm_")
    for row in loaded.report.rows:
        if row.action == "fresh":
            assert any(name in row.parameter for name in allowed), row


def small(**change):
    config = {
        "clip": (4, 8, 8),
        "classes": 4,
        "width": 12,
        "depth": 2,
        "heads": 2,
        "mlp_dim": 16,
        "tubelet": (2, 4, 4),
        "family": "factorised_encoder(temporal_depth=3)",
        **change,
    }
    return config, init(vivit.build(config))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"readout": "cls"},
        {"family": "joint", "readout": "vjepa2_pool", "pre_logits": 6},
        {"family": "divided", "readout": "cls", "position": "learned_space_time"},
        {"family": "window(2, 2, 2)", "qk_norm": True, "readout": "map_head"},
        {"family": "joint", "registers": 2, "position": "learned_separable"},
        {"stages": ({"depth": 1, "attentions": ("space",), "pool": "mean", "mlp_dim": 8},
                    {"depth": 1, "attentions": ("time",), "pool": "videoprism_pool", "heads": 3})},
    ],
    ids=lambda change: "-".join(map(str, change)) or "plain",
)  # fmt: skip
def test_portable_folders_give_back_every_bit(change, tmp_path):
    config, params = small(**change)
    folder = pretrained.export(tmp_path / "out", config, params, labels=["a", "b", "c", "d"])
    back = pretrained.load(folder)
    assert set(actions(back).values()) == {"loaded"}
    assert back.report.labels == ("a", "b", "c", "d")
    jax.tree.map(np.testing.assert_array_equal, back.params, params)
    assert vivit.build(back.model_config) == vivit.build(config)


@pytest.mark.parametrize("scanned", [False, True])
def test_scanned_layers_and_unrolled_ones(scanned, tmp_path):
    config, params = small(scan=scanned)
    folder = pretrained.export(tmp_path / "out", config, params)
    for scan in (False, True):
        back = pretrained.load(folder, model={"scan": scan})
        assert "layers" in back.params["stage_0"] if scan else "layer_0" in back.params["stage_0"]
        expected = stack_layers(params) if scan and not scanned else params
        if scan == scanned or scan:
            jax.tree.map(np.testing.assert_array_equal, back.params, expected)


def test_an_export_never_overwrites(tmp_path):
    config, params = small()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(ValueError, match="exists already; name a new folder"):
        pretrained.export(tmp_path / "out", config, params)
    with pytest.raises(ValueError, match="2 labels for 4 classes"):
        pretrained.export(tmp_path / "new", config, params, labels=["a", "b"])


def test_huggingface_to_ours_and_back_is_bit_for_bit(tmp_path):
    from safetensors.numpy import load_file

    for name in ("hf_vivit", "hf_vivit_no_bias"):
        loaded = pretrained.load(GOLDEN / name)
        out = pretrained.export(tmp_path / name, loaded.model_config, loaded.params, to="hf_vivit")
        before, after = (load_file(f / "model.safetensors") for f in (GOLDEN / name, out))
        assert set(before) == set(after)
        for key, array in before.items():
            assert array.tobytes() == after[key].tobytes(), key
        again = pretrained.load(out)
        jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
        assert again.model_config == loaded.model_config


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("hf_videomae_pretraining", "hf_videomae"),
        ("hf_vjepa2_pretraining", "hf_vjepa2"),
        ("hf_vjepa2_encoder", "hf_vjepa2"),
    ],
)
def test_encoders_of_pre_training_and_back_are_bit_for_bit(name, to, tmp_path):
    from safetensors.numpy import load_file

    loaded = pretrained.load(GOLDEN / name)
    before = load_file(GOLDEN / name / "model.safetensors")
    for around in (loaded.around, None):
        out = pretrained.export(
            tmp_path / f"{name}_{around is None}", loaded.model_config, loaded.params, to=to,
            around=around,
        )  # fmt: skip
        after = load_file(out / "model.safetensors")
        for key, array in after.items():
            whole = key if key in before else f"videomae.{key}"  # as a model without a decoder
            assert array.tobytes() == before[whole].tobytes(), key
        assert around is None or set(after) == set(before)
        config, theirs = (read_json(f / "config.json") for f in (out, GOLDEN / name))
        same = set(config) & set(theirs) - {"architectures", "qkv_bias"}
        assert {k: config[k] for k in same} == {k: theirs[k] for k in same}
        again = pretrained.load(out)
        jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
        assert again.model_config == loaded.model_config
        assert bool(again.around) == (around is not None)
    with pytest.raises(ValueError, match="'portable' has no place for a decoder or predictor"):
        pretrained.export(tmp_path / "x", loaded.model_config, loaded.params, around=loaded.around)
    other = {"hf_videomae": "hf_vjepa2", "hf_vjepa2": "hf_videomae"}[to]
    with pytest.raises(ValueError, match="can't hold this model") as caught:
        pretrained.export(
            tmp_path / "x", loaded.model_config, loaded.params, to=other, around=loaded.around
        )
    assert "rope=" in str(caught.value)
    assert "around it" in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_what_huggingface_can_not_hold_is_listed(tmp_path):
    config, params = small(rope="3d", activation="gelu", qk_norm=True)
    with pytest.raises(ValueError, match="can't hold this model") as caught:
        pretrained.export(tmp_path / "x", config, params, to="hf_vivit")
    for part in ('family="joint", readout="cls"', "rope='3d' must be 'none'", "qk_norm=True"):
        assert part in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_heads_by_the_names_of_classes(tmp_path):
    config, params = small()
    params["head"]["kernel"] = jnp.asarray(kernel(shape=(12, 4)))
    folder = pretrained.export(tmp_path / "x", config, params, labels=["a", "b", "c", "d"])
    loaded = pretrained.load(folder, head=("c", "a"))
    assert loaded.model_config["classes"] == 2
    assert loaded.report.labels == ("c", "a")
    np.testing.assert_array_equal(
        loaded.params["head"]["kernel"], params["head"]["kernel"][:, jnp.array([2, 0])]
    )
    assert actions(loaded)["head/kernel"] == "sliced"
    one = pretrained.load(folder, head="b")
    assert one.report.labels == ("b",)
    fresh = pretrained.load(folder, head="replace")
    assert not fresh.params["head"]["kernel"].any()
    assert fresh.report.labels == ()
    none = pretrained.load(folder, classes=0)
    assert "head" not in none.params
    assert none.report.dropped["head.kernel"] == "the model has no head"


ENCODERS = ("SpatialTransformer", "TemporalTransformer")


def scenic_names(params, encoders=ENCODERS):
    """A factorised encoder of ours by Scenic's names."""
    tree = {}
    for path, array in flatten_dict(params, sep="/").items():
        stage, _, tail = path.partition("/")
        if stage in ("tubelet", "pre_logits", "head"):
            names = {"tubelet": "embedding", "head": "output_projection"}
            tree[f"{names.get(stage, stage)}/{tail}"] = array
            continue
        i = int(stage[6:])
        for ours, theirs in (
            ("layer_", "encoderblock_"),
            (f"attention_{('space', 'time')[i]}", "MultiHeadDotProductAttention_0"),
            (f"norm_{('space', 'time')[i]}", "LayerNorm_0"),
            ("norm_mlp", "LayerNorm_1"),
            ("mlp/up", "MlpBlock_0/Dense_0"),
            ("mlp/down", "MlpBlock_0/Dense_1"),
            ("position/table", "posembed_input/pos_embedding"),
        ):
            tail = tail.replace(ours, theirs)
        tail = "encoder_norm/" + tail[5:] if tail.startswith("norm/") else tail
        tree[f"{encoders[i]}/{tail}"] = array[None] if "pos_embedding" in tail else array
    return {k: np.asarray(v) for k, v in tree.items()}


SIZES_IN_TIME = (
    {"depth": 2, "attentions": ("space",), "pool": "mean", "heads": 2, "mlp_dim": 16},
    {"depth": 1, "attentions": ("time",), "pool": "mean", "heads": 3, "mlp_dim": 20},
)
SCENIC_LIKE = {
    "epic_kitchens": {"classes": 397},
    "deeper_in_time": {"family": "factorised_encoder(temporal_depth=5)"},
    "pre_logits": {"pre_logits": 7},
    "other_sizes_in_time": {"stages": SIZES_IN_TIME},
}


@pytest.mark.parametrize("name", SCENIC_LIKE)
def test_sizes_of_scenics_models_are_read_from_the_file(name, tmp_path):
    config, params = small(**SCENIC_LIKE[name])
    arrays = scenic_names(params)
    loaded = pretrained.load(write_scenic(tmp_path, arrays))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    clips = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 3))
    ours, theirs = (
        vivit.build(c).apply({"params": p}, clips)
        for c, p in ((config, params), (loaded.model_config, loaded.params))
    )
    np.testing.assert_array_equal(ours, theirs)


def test_nouns_and_verbs_of_epic_kitchens(tmp_path):
    _, params = small(classes=397)
    params["head"]["kernel"] = jnp.asarray(kernel(shape=(12, 397)))
    file = write_scenic(tmp_path, scenic_names(params))
    for group, part in (("nouns", slice(0, 300)), ("verbs", slice(300, 397))):
        loaded = pretrained.load(file, head=group)
        np.testing.assert_array_equal(
            loaded.params["head"]["kernel"], params["head"]["kernel"][:, part]
        )
    assert "nouns [0:300], verbs [300:397]" in pretrained.load(file).report.summary()
    whole = params["head"]["kernel"]
    heads = {"noun": 300, "verb": 97}
    loaded = pretrained.load(file, heads=heads)
    np.testing.assert_array_equal(loaded.params["head"]["kernel"], whole)
    assert loaded.report.groups == {"nouns": 300, "verbs": 97}
    turned = pretrained.load(file, heads={"verb": 97, "noun": 300}, classes=397)
    np.testing.assert_array_equal(
        turned.params["head"]["kernel"], jnp.concatenate([whole[:, 300:], whole[:, :300]], axis=1)
    )
    for wrong in ({"object": 300, "verb": 97}, {"noun": 97, "verb": 300}):
        with pytest.raises(ValueError, match=r"parts nouns \(300\), verbs \(97\), and the model's"):
            pretrained.load(file, heads=wrong)
    other = pretrained.load(file, heads={"motion": 8, "digit": 10}, classes=18)
    assert not other.params["head"]["kernel"].any()  # replaced, as any head of another size


@pytest.mark.parametrize("readout", ["max", "sum", "first"])
def test_scenics_other_readouts_are_chosen_by_the_user(readout, tmp_path):
    config, params = small(readout=readout)
    params["head"]["kernel"] = jnp.asarray(kernel(shape=(12, 4)))
    file = write_scenic(tmp_path, scenic_names(params))
    loaded = pretrained.load(file, model={"readout": readout})
    clips = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 3))
    apply = lambda c, p: vivit.build(c).apply({"params": p}, clips)
    np.testing.assert_array_equal(apply(config, params), apply(loaded.model_config, loaded.params))
    assert "gmp, gsp or 0" in pretrained.load(file).report.summary()


def test_bfloat16_weights(tmp_path):
    import shutil

    import ml_dtypes
    from safetensors.flax import save_file as save_flax
    from safetensors.numpy import load_file

    shutil.copytree(GOLDEN / "hf_vivit", tmp_path / "half")
    arrays = load_file(tmp_path / "half/model.safetensors")
    save_flax({k: jnp.asarray(a, jnp.bfloat16) for k, a in arrays.items()},
              tmp_path / "half/model.safetensors")  # fmt: skip
    half = pretrained.load(tmp_path / "half")
    expected = arrays["classifier.weight"].astype(ml_dtypes.bfloat16).astype(np.float32).T
    np.testing.assert_array_equal(half.params["head"]["kernel"], expected)
    assert half.params["head"]["kernel"].dtype == jnp.float32
    assert actions(half)["head/bias"] == "transformed"


def test_from_two_encoders_to_one_is_refused_in_words(tmp_path):
    config, params = small()
    folder = pretrained.export(tmp_path / "x", config, params)
    for family in ("joint", "divided", "factorised_self_attention"):
        with pytest.raises(ValueError, match="unexpected: stage_1.layer_0"):
            pretrained.load(folder, family=family)


def test_an_export_holds_the_model_that_was_built(tmp_path):
    """A stage may have other sizes than the model, and parameters may be of another config."""
    stage = {"depth": 3, "attentions": ("joint",), "pool": "cls", "heads": 3, "mlp_dim": 8}
    config, params = small(stages=(stage,), depth=1)
    folder = pretrained.export(tmp_path / "x", config, params, to="hf_vivit")
    back = pretrained.load(folder)
    jax.tree.map(np.testing.assert_array_equal, back.params, params)
    clips = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 3))
    apply = lambda c, p: vivit.build(c).apply({"params": p}, clips)
    np.testing.assert_array_equal(apply(config, params), apply(back.model_config, back.params))
    with pytest.raises(ValueError, match="problems with the parameters for this config") as caught:
        pretrained.export(tmp_path / "y", {**config, "stages": (), "family": "joint"}, params)
    assert "unexpected: stage_0/layer_2" in str(caught.value)
    assert not (tmp_path / "y").exists()


def test_a_readout_of_another_kind_is_newly_initialised(tmp_path):
    config, params = small(family="joint", readout="vjepa2_pool")
    folder = pretrained.export(tmp_path / "x", config, params)
    loaded = pretrained.load(folder, model={"readout": "map_head"})
    pool = {p: a for p, a in actions(loaded).items() if "/pool/" in p}
    assert set(pool.values()) == {"fresh"}
    assert loaded.report.dropped["stage_0.pool.query_token"] == "the model reads 'map_head'"


def test_a_published_clip_is_not_mistaken_for_the_wanted_one():
    """32 x 224 x 224 and 8 x 448 x 448 have as many tubelets of 2 x 16 x 16."""
    from vivit.pretrained.scenic import _joint_clip
    from vivit.pretrained.sources import LoadHints

    clip, note = _joint_clip(3136, (2, 16, 16), LoadHints(None, (8, 448, 448)))
    assert clip == (32, 224, 224)
    assert "(32, 224, 224) assumed" in note
    with pytest.raises(ValueError, match="has 1568 tubelets .* the file has 3136"):
        _joint_clip(3136, (2, 16, 16), LoadHints((16, 224, 224)))


@pytest.mark.parametrize("form", ["vision_transformer", "big_vision"])
def test_image_models_of_other_than_square_grids(form, tmp_path):
    config, params = small(
        clip=(1, 12, 20), tubelet=(1, 4, 4), family="joint", readout="cls", depth=1
    )
    stage, renamed = params["stage_0"], {}
    for name, array in scenic_names(params, ("Transformer",)).items():
        name = name.replace("attention_joint", "MultiHeadDotProductAttention_0")
        renamed[name.replace("norm_joint", "LayerNorm_0")] = array
    for name in ("Transformer/class_token", "Transformer/position/class_token"):
        del renamed[name]
    rows = [stage["position"]["class_token"], stage["position"]["table"]]
    renamed["Transformer/posembed_input/pos_embedding"] = np.concatenate(rows)[None]
    renamed["cls"] = np.asarray(stage["class_token"])[0]
    renamed["embedding/kernel"] = renamed["embedding/kernel"][0]
    write = {"vision_transformer": write_vision_transformer, "big_vision": write_big_vision}[form]
    loaded = pretrained.load(write(tmp_path / "a.npz", renamed), source_clip=(1, 12, 20))
    images = jax.random.normal(jax.random.key(0), (2, 1, 12, 20, 3))
    apply = lambda c, p: vivit.build(c).apply({"params": p}, images)
    np.testing.assert_allclose(
        apply(config, params), apply(loaded.model_config, loaded.params), atol=1e-5
    )
