"""Masked autoencoding, against transformers' VideoMAEForPreTraining and against itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vivit
from tests.conftest import ROOT
from tests.pretraining.golden import as_ours, loaded_network
from tests.test_train import stop_after
from vivit.config import read_config
from vivit.evaluate import evaluate
from vivit.metrics_log import MetricsLog
from vivit.pretrained import load
from vivit.pretraining.mae import Mae, Reconstruction, pixels_of
from vivit.run import Run
from vivit.train import train

GOLDEN = ROOT / "tests/golden/hf_videomae_pretraining"
DECODER = {"width": 12, "depth": 1, "heads": 2, "mlp_ratio": 4 / 3, "norm_epsilon": 1e-5}
TOLERANCE = 2e-5
KEYS = ("seen", "wanted", "scored")
SMALL = {
    "clip": (4, 16, 16), "classes": 0, "width": 48, "depth": 1, "heads": 2, "mlp_dim": 64,
    "tubelet": (2, 4, 4), "family": "joint",
}  # fmt: skip
RUN = [
    "--config.task.name=mae(mask='tube(0.5)', width=12, depth=1, heads=2)",
    "--config.model.tubelet=(4, 8, 8)", "--config.model.width=24", "--config.model.depth=1",
    "--config.model.heads=2", "--config.model.mlp_dim=32", "--config.data.batch_size=8",
    "--config.train.steps=6", "--config.train.log_every=2", "--config.train.eval_every=6",
    "--config.train.checkpoint_every=2",
]  # fmt: skip


def given_batch(arrays):
    """The batch with the masks of the file instead of drawn ones."""
    hidden = arrays["hidden"]
    steps, half = 2, hidden.shape[1] // 4
    seen = np.stack([np.flatnonzero(~row) for row in hidden]).reshape(len(hidden), steps, half)
    return {
        "clips": jnp.asarray(arrays["input"]),
        "seen": jnp.asarray(seen, jnp.int32),
        "wanted": jnp.stack([jnp.flatnonzero(row) for row in hidden]).astype(jnp.int32),
        "scored": jnp.ones((2, hidden.sum(axis=1)[0])),
        "valid": jnp.ones(2),
    }


@pytest.mark.parametrize("kind", ["normalised", "raw"])
def test_loss_predictions_and_gradients_are_those_of_transformers(kind, tmp_path):
    arrays = np.load(GOLDEN / "pretraining.npz")
    task = Mae(**DECODER, mask="tube(0.5)", normalise=kind == "normalised")
    network, params = loaded_network(task, GOLDEN)
    batch = given_batch(arrays)

    def loss(params):
        outputs = task.outputs(network, params, batch, teacher=params)
        return task.losses(outputs, batch)[0].mean(), outputs

    gradients, outputs = jax.grad(loss, has_aux=True)(params)
    assert float(loss(params)[0]) == pytest.approx(float(arrays[f"{kind}/loss"]), abs=TOLERANCE)
    np.testing.assert_allclose(outputs.predicted, arrays[f"{kind}/logits"], atol=TOLERANCE)
    start = f"{kind}/grads/"
    named = {k.removeprefix(start): arrays[k] for k in arrays.files if k.startswith(start)}
    expected = flatten_dict(as_ours(named, GOLDEN, tmp_path / "gradients"), sep="/")
    ours = flatten_dict(gradients, sep="/")
    assert set(ours) == set(expected)
    for path, value in ours.items():
        np.testing.assert_allclose(value, expected[path], atol=TOLERANCE, err_msg=path)


def test_targets_are_normalised_per_colour_as_videomae_does():
    clips = np.random.default_rng(0).integers(0, 256, (1, 4, 16, 16, 3)).astype(np.uint8)
    model = vivit.build(SMALL)
    wanted = jnp.array([[1, 7]])
    ours = pixels_of(clips, wanted, model.config, normalise=True)
    for at, (y, x) in enumerate(((0, 1), (1, 3))):
        tubelet = clips[0, :2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(-1, 3) / 255
        expected = (tubelet - tubelet.mean(0)) / (tubelet.std(0, ddof=1) + 1e-6)
        np.testing.assert_allclose(ours[0, at], expected.reshape(-1), atol=1e-5)
    scaled = clips / 127.5 - 1
    raw = [pixels_of(x, wanted, model.config, normalise=False) for x in (clips, scaled)]
    np.testing.assert_allclose(raw[0], raw[1], atol=1e-6)


def test_dual_masking_scores_what_is_wanted_and_hidden():
    """2303.16727, section 3.2: half of the tokens is decoded, and those that the encoder has seen
    do not count."""
    task = Mae(mask="tube(0.5)", decode="running_cell", width=8, depth=1, heads=2)
    network = task.network(vivit.build(SMALL))
    batch = {"indices": jnp.arange(3, dtype=jnp.uint32), "clips": jnp.zeros((3, 4, 16, 16, 3))}
    batch = task.prepare(network, batch, jax.random.key(0))
    assert batch["wanted"].shape == (3, 16)
    for seen, wanted, scored in zip(*(np.asarray(batch[k]) for k in KEYS), strict=True):
        assert scored.tolist() == [place not in seen for place in wanted]
    one = {"indices": jnp.array([2], jnp.uint32)}
    alone = task.prepare(network, one, jax.random.key(0))
    np.testing.assert_array_equal(alone["seen"][0], batch["seen"][2])  # by its index alone
    params = network.init(jax.random.key(0), *network.example())["params"]
    outputs = task.outputs(network, params, batch, teacher=params)
    errors = ((outputs.predicted - outputs.target) ** 2).mean(axis=2)
    expected = [e[s > 0].mean() for e, s in zip(errors, batch["scored"], strict=True)]
    np.testing.assert_allclose(task.losses(outputs, batch)[0], expected, rtol=1e-6)


def test_what_is_explained_is_one_minus_the_error_over_the_variance():
    target = jax.random.normal(jax.random.key(0), (2, 6, 5))
    task, batch = Mae(), {"scored": jnp.ones((2, 6)), "valid": jnp.ones(2)}
    for predicted, expected in ((target, 1.0), (target.mean(axis=(1, 2), keepdims=True), 0.0)):
        outputs = Reconstruction(jnp.broadcast_to(predicted, target.shape), target)
        total, count = task.sums(task.losses(outputs, batch), outputs, batch)["explained"]
        assert float(total / count) == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_root):
    workdir = tmp_path_factory.mktemp("mae") / "run"
    train(config_of(data_root), workdir)
    return workdir


def config_of(data_root, *more):
    overrides = [*RUN, f"--config.data.root={data_root}", *more]
    return read_config(str(ROOT / "configs/mae_digits.py"), overrides)


def test_a_stopped_run_ends_as_one_that_was_not(run, tmp_path, data_root, monkeypatch):
    workdir = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", stop_after(2))
        assert int(train(config_of(data_root), workdir).step) < 6
    train(config_of(data_root), workdir)
    ours, expected = (Run(x, "latest").network_params for x in (workdir, run))
    assert set(ours) == {"encoder", "decoder", "narrow", "mask_token", "norm", "pixels"}
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_the_encoder_is_what_a_classifier_starts_from(run, tmp_path, data_root):
    found = Run(run, "latest")
    loaded = load(run, checkpoint="latest")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, found.params)
    settings = {**dataclasses.asdict(found.config.model), "classes": 8}
    model = vivit.build(settings)
    classifier = load(run, model=settings, checkpoint="latest")
    assert set(classifier.params) == {*found.params, "head"}
    clips = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 32, 3)).astype(np.uint8)
    features = model.apply({"params": classifier.params}, clips, method="features")
    tokens = found.model.apply({"params": loaded.params}, clips, method="encode")
    np.testing.assert_allclose(features, tokens.mean(axis=(1, 2)), atol=1e-5)
    # Pre-training resumes from the run's decoder; a decoder of another shape is an error.
    start = [f"--config.init.path={run}", "--config.init.checkpoint=latest"]
    lr = ["--config.optim.lr=0.0", "--config.train.steps=2", "--config.optim.name=sgd"]
    train(config_of(data_root, *start, *lr), tmp_path / "on")
    ours = Run(tmp_path / "on", "latest").network_params
    jax.tree.map(np.testing.assert_array_equal, ours, found.network_params)
    wider = "--config.task.name=mae(mask='tube(0.5)', width=16, depth=1, heads=2)"
    with pytest.raises(
        ValueError, match="the weights have another decoder or predictor: .* set the options"
    ):
        train(config_of(data_root, *start, wider), tmp_path / "other")
    assert not (tmp_path / "other/config.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.model.classes=8", "task mae has no classes: set model.classes=0"),
        ("--config.model.readout=map_head", "trains no readout with parameters"),
        ("--config.model.family=factorised_encoder", "stage 0 pools 's' before the last stage"),
        ("--config.augment.mixup=0.2", "the loss of task Mae is not linear in its targets"),
        ("--config.train.label_smoothing=0.1", "label_smoothing=0.1: there are no labels"),
        ("--config.task.name=mae(mask='tubes')", "unknown mask 'tubes'; known: blocks"),
        ("--config.task.name=mae(mask='tube(0.01)')", "every token is seen of a grid"),
        ("--config.task.name=mae(ratio=0.5)", "the options of task 'mae' are written like"),
        ("--config.data.label=motion", "learns from clips alone: set data.label=''"),
    ],
)
def test_a_config_that_cannot_be_is_refused(override, message, tmp_path, data_root):
    with pytest.raises(ValueError, match=message):
        train(config_of(data_root, override), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_a_run_without_labels_has_nothing_to_evaluate(run):
    with pytest.raises(ValueError, match="predicts no labels, so there is nothing to score"):
        evaluate(run, checkpoint="latest")
