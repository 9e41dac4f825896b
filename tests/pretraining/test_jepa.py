"""Prediction of features, against transformers' V-JEPA 2 layers and against itself."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import vivit
from tests.conftest import ROOT
from tests.pretraining.golden import as_ours, loaded_network
from tests.test_train import stop_after
from vivit.config import read_config
from vivit.cost import count, count_training
from vivit.metrics_log import MetricsLog
from vivit.pretrained import load
from vivit.pretrained.runs import read_state
from vivit.pretraining.jepa import TARGETS, Jepa, JointEmbedding, Latents, Target
from vivit.pretraining.regularisers import REGULARISERS
from vivit.run import Run
from vivit.settings import TrainSettings
from vivit.step import make_init, make_train_step
from vivit.train import train

GOLDEN = ROOT / "tests/golden/hf_vjepa2_pretraining"
PREDICTOR = {"width": 12, "depth": 2, "heads": 2, "mask_tokens": 3, "mask_token": 2}
TOLERANCE = 2e-5
RUN = [
    "--config.task.name=jepa(masks=('blocks(2, 0.3)', 'tube(0.5)'), width=12, depth=1, heads=2)",
    "--config.model.tubelet=(4, 8, 8)", "--config.model.width=24", "--config.model.depth=1",
    "--config.model.heads=2", "--config.model.mlp_dim=32", "--config.data.batch_size=8",
    "--config.train.steps=6", "--config.train.log_every=2", "--config.train.eval_every=6",
    "--config.train.checkpoint_every=2", "--config.train.average_decay=0.9",
]  # fmt: skip


def given_batch(arrays):
    """A batch with the mask of the file instead of a drawn one."""
    return {
        "clips": jnp.asarray(arrays["input"]),
        "seen_0": jnp.asarray(arrays["seen"], jnp.int32)[:, None],
        "wanted_0": jnp.asarray(arrays["wanted"], jnp.int32),
        "indices": jnp.arange(2, dtype=jnp.uint32),
        "valid": jnp.ones(2),
    }


def test_features_loss_and_gradients_are_those_of_transformers(tmp_path):
    arrays = np.load(GOLDEN / "pretraining.npz")
    task = Jepa(masks=("random(0.5)",), **PREDICTOR)
    network, params = loaded_network(task, GOLDEN)
    batch = given_batch(arrays)

    def loss(trained):
        outputs = task.outputs(network, trained, batch, teacher=params)
        return task.losses(outputs, batch)[0].mean(), outputs

    gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(params)
    encoder = vivit.build({**load(GOLDEN).model_config, "classes": 0})
    variables = {"params": params["encoder"]}
    encoded = encoder.apply(variables, batch["clips"], batch["seen_0"], method="encode")
    np.testing.assert_allclose(encoded[:, 0], arrays["encoded"], atol=TOLERANCE)
    np.testing.assert_allclose(outputs.target[0], arrays["target"], atol=TOLERANCE)
    np.testing.assert_allclose(outputs.predicted[0], arrays["predicted"], atol=TOLERANCE)
    ours = task.losses(outputs, batch)[0].mean()
    assert float(ours) == pytest.approx(float(arrays["loss"]), abs=TOLERANCE)
    named = {k.removeprefix("grads/"): arrays[k] for k in arrays.files if k.startswith("grads/")}
    expected = flatten_dict(as_ours(named, GOLDEN, tmp_path / "gradients"), sep="/")
    found = flatten_dict(gradients, sep="/")
    assert set(found) == set(expected)
    for path, value in found.items():
        np.testing.assert_allclose(value, expected[path], atol=TOLERANCE, err_msg=path)
    assert np.abs(expected["predictor/mask_tokens"][1]).max() > 1e-3
    assert not np.asarray(expected["predictor/mask_tokens"])[[0, 2]].any()


def small(model=None, **options):
    task = Jepa(**{"width": 12, "depth": 1, "heads": 2, **options})
    model = vivit.build({
        "clip": (4, 16, 16), "classes": 0, "width": 24, "depth": 1, "heads": 2, "mlp_dim": 32,
        "tubelet": (2, 4, 4), "family": "joint", "position": "none", "rope": "3d", **(model or {}),
    })  # fmt: skip
    network = task.network(model)
    params = jax.jit(network.init)(jax.random.key(0), *network.example())["params"]
    rng = np.random.default_rng(0)
    batch = {
        "clips": jnp.asarray(rng.integers(0, 256, (4, 4, 16, 16, 3)).astype(np.uint8)),
        "indices": jnp.arange(4, dtype=jnp.uint32),
        "valid": jnp.ones(4),
    }
    return task, network, params, task.prepare(network, batch, jax.random.key(0))


def test_the_loss_is_the_mean_over_masks_and_targets_have_no_gradient():
    task, network, params, batch = small(masks=("blocks(2, 0.3)", "tube(0.5)"), mask_tokens=2)
    other = jax.tree.map(lambda x: x + 0.1, params)

    def loss(params, teacher):
        outputs = task.outputs(network, params, batch, teacher=teacher)
        return task.losses(outputs, batch)[0].mean(), outputs

    differentiated = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (ours, outputs), gradients = differentiated(params, other)
    masks = [np.abs(z - h).mean() for z, h in zip(outputs.predicted, outputs.target, strict=True)]
    assert float(ours) == pytest.approx(np.mean(masks), abs=1e-6)
    tokens = network.apply({"params": other}, batch["clips"], method="encode").reshape(4, 32, 24)
    picked = np.take_along_axis(np.asarray(tokens), batch["wanted_1"][..., None], axis=1)
    centred = picked - picked.mean(-1, keepdims=True)
    expected = centred / np.sqrt(picked.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(outputs.target[1], expected, atol=1e-5)
    # Each mask has a token of its own, and learns it.
    moved = np.abs(np.asarray(gradients["predictor"]["mask_tokens"])).max(axis=1)
    assert (moved > 0).all()
    # Targets of the trained parameters, stopped: as those of an equal teacher.
    stopped, *_ = small(masks=("blocks(2, 0.3)", "tube(0.5)"), mask_tokens=2, target="stopped")
    of_stopped = jax.jit(jax.grad(
        lambda p: stopped.losses(stopped.outputs(network, p, batch, teacher=other), batch)[0].mean()
    ))(params)  # fmt: skip
    of_averaged = differentiated(params, params)[1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), of_stopped, of_averaged)


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_levels_are_the_tokens_after_equal_parts_of_the_layers(scan):
    shape = {"clip": (4, 16, 16), "classes": 0, "width": 24, "depth": 4, "heads": 2, "mlp_dim": 32,
             "tubelet": (2, 8, 8), "family": "joint", "registers": 2, "scan": scan}  # fmt: skip
    model = vivit.build(shape)
    clips = jax.random.uniform(jax.random.key(1), (2, 4, 16, 16, 3), minval=-1)
    params = jax.jit(model.init)(jax.random.key(0), clips)["params"]
    places = jnp.array([[[0, 3, 5]], [[1, 2, 7]]])

    @partial(jax.jit, static_argnums=(0, 2))
    def encoded(model, params, levels):
        return model.apply({"params": params}, clips, places, levels, method="encode")

    first, last = jnp.split(encoded(model, params, 2), 2, axis=-1)
    whole = encoded(model, params, 1)
    np.testing.assert_allclose(last, whole, atol=1e-6)
    stage = params["stage_0"]
    if scan:
        layers = {"layers": jax.tree.map(lambda x: x[:2], stage["layers"])}
    else:
        layers = {name: stage[name] for name in ("layer_0", "layer_1")}
    others = {k: v for k, v in stage.items() if not k.startswith("layer")}
    short = {**params, "stage_0": {**others, **layers}}
    half = vivit.build({**shape, "depth": 2})
    expected = encoded(half, short, 1)
    np.testing.assert_allclose(layer_norm(np.asarray(first)), expected, atol=2e-5)


def test_the_loss_of_tokens_that_are_seen_is_weighted_by_their_distance():
    """Against NumPy: V-JEPA 2.1's dense loss and its levels."""
    deep = {"depth": 4}
    masks = ("blocks(2, 0.3)", "random(0.5)")
    task, network, params, batch = small(deep, masks=masks, levels=2, context=0.5)
    params = jax.tree.map(lambda x: x + 0.01, params)
    variables = {"params": params}

    @jax.jit
    def loss_of(params):
        outputs = task.outputs(network, params, batch, teacher=variables["params"])
        losses = task.losses(outputs, batch)
        return losses[0].sum(), (losses[0], task.sums(losses, outputs, batch))

    gradients, (losses, sums) = jax.jit(jax.grad(loss_of, has_aux=True))(params)
    applied = jax.jit(network.apply, static_argnames="method")
    tokens = np.asarray(applied(variables, batch["clips"], method="levels_of"))
    whole = applied(variables, batch["clips"], method="encode")
    np.testing.assert_allclose(tokens[..., 24:], whole, atol=1e-6)
    wide = tokens.reshape(4, 32, 2, 24)
    centred = wide - wide.mean(-1, keepdims=True)
    targets = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    targets = targets.reshape(4, 32, 48)
    at = np.stack(np.unravel_index(np.arange(32), (2, 4, 4)), -1).astype(float)
    predictions = jax.tree.map(np.asarray, applied(variables, *task.inputs(batch)))
    loss = np.zeros(4)
    for i, (of_wanted, of_seen) in enumerate(predictions):
        for clip in range(4):
            wanted = np.asarray(batch[f"wanted_{i}"][clip])
            seen = np.asarray(batch[f"seen_{i}"][clip]).reshape(-1)
            loss[clip] += np.abs(of_wanted[clip] - targets[clip, wanted]).mean() / 2
            nearest = [min(np.linalg.norm(at[a] - at[b]) for b in wanted) for a in seen]
            errors = np.abs(of_seen[clip] - targets[clip, seen])
            loss[clip] += 0.5 * (errors / np.sqrt(nearest)[:, None]).mean() / 2
    np.testing.assert_allclose(losses, loss, rtol=1e-5)
    assert float(sums["loss"][0]) == pytest.approx(loss.sum(), rel=1e-5)
    parts = sums["error"][0] + 0.5 * sums["context_error"][0]
    assert float(parts) == pytest.approx(loss.sum(), rel=1e-5)
    flat = flatten_dict(gradients, sep="/")
    still = [path for path, gradient in flat.items() if not np.abs(gradient).max() > 0]
    assert not still
    assert {"norm_0/scale", "predictor/fuse/kernel", "predictor/widen_seen/bias"} <= set(flat)


def test_the_weight_of_tokens_that_are_seen_may_rise():
    task, network, params, batch = small(masks=("tube(0.5)",), context=0.5)
    batch |= {"labels": jnp.zeros((4, 0))}
    averaging = {"average_decay": 0.9, "steps": 5}
    first = {}
    for ramp in ("rising_later(0.5, 1.0)", "after(0.5)", None):
        ramps = {"context": ramp} if ramp else {}
        settings = TrainSettings(**averaging, ramps=ramps)
        optimizer = optax.sgd(0.1)
        state = make_init(network, optimizer, average_decay=0.9)(0)
        step = jax.jit(make_train_step(network, optimizer, task, settings))
        found = []
        for _ in range(5):
            state, sums = step(state, batch)
            loss, error = (float(sums[name][0]) for name in ("loss", "error"))
            found.append((loss - error) / float(sums["context_error"][0]))
        first[ramp] = np.array(found)
    close = partial(np.testing.assert_allclose, atol=1e-5)
    close(first[None], 0.5)
    close(first["rising_later(0.5, 1.0)"], [0, 0, 0, 0.25, 0.5])
    close(first["after(0.5)"], [0, 0, 0.5, 0.5, 0.5])
    backwards = TrainSettings(**averaging, ramps={"context": "rising_later(0.5, 0.25)"})
    with pytest.raises(ValueError, match="since=0.5 is not before until=0.25"):
        make_train_step(network, optax.sgd(0.1), task, backwards)
    without, other, *_ = small(masks=("tube(0.5)",))
    settings = TrainSettings(**averaging, ramps={"context": "rising"})
    with pytest.raises(ValueError, match="context is 0 in task.name; set context=0.5"):
        make_train_step(other, optax.sgd(0.1), without, settings)


def test_multiply_adds_of_training_have_the_pass_that_makes_the_targets():
    task, network, *_ = small(masks=("tube(0.5)",))
    counts = count_training(network, task)
    whole = count(vivit.build(network.config.settings))["multiply_adds"]
    assert counts["training_multiply_adds"] == 3 * counts["multiply_adds"] + whole
    trained, *_ = small(masks=("tube(0.5)",), target="trained", regulariser="sigreg")
    assert trained.more_multiply_adds(network) == 3 * whole


def test_sigreg_is_the_statistic_of_epps_and_pulley():
    rng = np.random.default_rng(0)
    term = REGULARISERS["sigreg(directions=3)"]
    assert (term.weight, REGULARISERS["sigreg(0.5)"].weight) == (0.02, 0.5)
    key, features = jax.random.key(1), rng.normal(size=(6, 4)).astype(np.float32)
    valid = np.array([1, 1, 1, 1, 1, 0], np.float32)
    drawn = np.asarray(jax.random.normal(key, (4, 3)))
    t, total = np.linspace(0, 3, 17), []
    for direction in (drawn / np.linalg.norm(drawn, axis=0)).T:
        x = features[:5] @ direction
        normal = np.exp(-(t**2) / 2)
        found = np.abs(np.exp(1j * np.outer(t, x)).mean(axis=1) - normal) ** 2
        total.append(5 * 2 * np.trapezoid(found * normal, t))
    ours = term(jnp.asarray(features), jnp.asarray(valid), key)
    assert float(ours) == pytest.approx(np.mean(total), rel=1e-4)
    normal = jnp.asarray(rng.normal(size=(256, 4)), jnp.float32)
    lowest, *others = (float(term(x * normal, jnp.ones(256), key)) for x in (1, 2, 0.5, 0))
    assert lowest < min(others)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_root):
    workdir = tmp_path_factory.mktemp("jepa") / "run"
    train(config_of(data_root), workdir)
    return workdir


def config_of(data_root, *more):
    overrides = [*RUN, f"--config.data.root={data_root}", *more]
    return read_config(str(ROOT / "configs/jepa_digits.py"), overrides)


def test_a_stopped_run_ends_as_one_that_was_not(run, tmp_path, data_root, monkeypatch):
    """The averaged parameters, which make the targets, are part of the state."""
    workdir = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", stop_after(2))
        assert int(train(config_of(data_root), workdir).step) < 6
    train(config_of(data_root), workdir)
    ours, expected = (Run(x, "latest").network_params for x in (workdir, run))
    assert set(ours) == {"encoder", "predictor"}
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_what_is_watched_is_in_the_log(run, data_root, tmp_path):
    *_, row = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert {"feature_rank", "token_spread", "explained", "raw_feature_rank"} <= set(row)
    explained = max(-1, 1 - row["error"] / row["constant_error"])
    assert row["explained"] == pytest.approx(explained)
    assert 1 <= row["feature_rank"] <= 24
    assert "probe" not in row
    name = RUN[0].removesuffix(")") + ", probe='motion')"
    train(config_of(data_root, name, "--config.train.steps=2"), tmp_path / "probed")
    *_, row = map(json.loads, (tmp_path / "probed/metrics.jsonl").read_text().splitlines())
    assert 0 <= row["probe"] <= 1
    assert Run(tmp_path / "probed").step == 2  # the best by its probe


def test_pre_training_resumes_from_encoder_and_predictor(run, tmp_path, data_root):
    start = [f"--config.init.path={run}", "--config.init.checkpoint=latest"]
    still = ["--config.optim.lr=0.0", "--config.train.steps=2", "--config.optim.name=sgd"]
    train(config_of(data_root, *start, *still), tmp_path / "on")
    ours, expected = (Run(x, "latest").network_params for x in (tmp_path / "on", run))
    close = partial(np.testing.assert_allclose, atol=1e-7)  # averages of equal numbers round
    jax.tree.map(close, ours, expected)
    wider = RUN[0].replace("width=12", "width=16")
    with pytest.raises(ValueError, match="another decoder or predictor: .* set the options"):
        train(config_of(data_root, *start, wider), tmp_path / "other")


def test_a_cool_down_resumes_the_optimiser(run, tmp_path, data_root):
    """Clips of half the length, and a schedule of its own; moments and averages are the run's."""
    on = [f"--config.init.path={run}", "--config.init.checkpoint=latest",
          "--config.init.optimizer=True", "--config.model.clip=(8, 32, 32)",
          "--config.optim.schedule=constant", "--config.optim.warmup_steps=0",
          "--config.optim.warmup_fraction=0.0", "--config.train.steps=2"]  # fmt: skip
    state = train(config_of(data_root, *on), tmp_path / "on")
    is_kind = lambda x: isinstance(x, (optax.ScaleByAdamState, optax.ScaleByScheduleState))
    states = filter(is_kind, jax.tree.leaves(state.opt_state, is_leaf=is_kind))
    counts = {type(x): int(x.count) for x in states}
    assert counts == {optax.ScaleByAdamState: 8, optax.ScaleByScheduleState: 2}
    still = [*on, "--config.optim.lr=0.0", "--config.train.average_decay=0.0"]
    held = train(config_of(data_root, *still), tmp_path / "still")
    averaged = Run(run, "latest").network_params
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), held.params, averaged)
    assert max(jax.tree.leaves(moved)) > 1e-5
    anew = [x for x in still if "init.optimizer" not in x]
    new = train(config_of(data_root, *anew), tmp_path / "new")
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-7), new.params, averaged)


def test_the_command_of_the_cool_down_is_a_config():
    on = ["--config.init.path=runs/vjepa2_l", "--config.init.optimizer=True"]
    assert read_config(str(ROOT / "configs/vjepa2_l_cooldown_k400.py"), on).init.optimizer


def test_an_optimiser_that_does_not_fit_is_refused(run, tmp_path, data_root):
    on = [f"--config.init.path={run}", "--config.init.checkpoint=latest",
          "--config.init.optimizer=True"]  # fmt: skip
    with pytest.raises(ValueError, match="init.optimizer=True needs the arrays of .* optim.name"):
        train(config_of(data_root, *on, "--config.optim.name=sgd"), tmp_path / "other")
    with pytest.raises(ValueError, match="takes all parameters as they are, so head would do"):
        config_of(data_root, *on, "--config.init.head=replace")
    assert not (tmp_path / "other/config.json").exists()
    with pytest.raises(ValueError, match="init.optimizer=True needs init.path"):
        config_of(data_root, "--config.init.optimizer=True")
    with pytest.raises(
        ValueError, match="is not a run of vivit.train, so it has no optimiser to resume"
    ):
        read_state(str(tmp_path), None, checkpoint="latest")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.model.classes=8", "task jepa has no classes"),
        ("--config.task.name=jepa(masks=())", "leaves nothing to predict"),
        ("--config.task.name=jepa(mask_tokens=2, mask_token=3)", "mask_token=3 is not one of"),
        ("--config.task.name=jepa(masks=('blocks(8, 1.0)',))", r"scale=1.0, is not in \(0, 1\)"),
        ("--config.task.name=jepa(masks=('blocks(9, 0.9)',))", "no token is seen of a grid"),
        ("--config.task.name=jepa(target='mean')", "unknown target 'mean'; known: averaged"),
        ("--config.task.name=jepa(regulariser='sigreg')", "set target='trained'"),
        ("--config.task.name=jepa(masks=('tube',), probe='colour')", "no label 'colour'; it has:"),
        ("--config.task.name=jepa(masks=('tube(0.5)',), levels=2)", "levels=2 does not divide the"),
        ("--config.task.name=jepa(masks=('tube(0.5)',), context=-1.0)", "context=-1.0 is a weight"),
        ("--config.optim.layer_decay=0.9", "the task trains more than a model"),
    ],
)
def test_a_config_that_cannot_be_is_refused(override, message, tmp_path, data_root):
    with pytest.raises(ValueError, match=message):
        train(config_of(data_root, override), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_targets_of_averaged_parameters_need_some(tmp_path, data_root):
    config = config_of(data_root)
    config = replace(config, train=replace(config.train, average_decay=None))
    with pytest.raises(ValueError, match="learns from averaged parameters: set train.average"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_a_loss_of_the_whole_batch_is_refused_by_parts(tmp_path, data_root):
    name = "--config.task.name=jepa(masks=('tube(0.5)',), width=12, depth=1, heads=2, target=" + (
        "'trained', regulariser='sigreg')"
    )
    for override, message in (
        ("--config.train.accumulate=2", "not of its parts; set accumulate=1"),
        ("--config.parallel.mode=pmap", "which no device has; use 'jit'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config_of(data_root, name, override), tmp_path / "run")
    train(config_of(data_root, name, "--config.train.steps=2"), tmp_path / "whole")


def test_explained_is_zero_for_the_best_constant():
    task = Jepa(masks=("tube(0.5)",))
    rows = {"features": np.eye(4, 3), "at_places": np.zeros((4, 1, 3))}
    rows["at_places"][0] = 1
    rows["targets"] = rows["at_places"]
    tokens = jnp.asarray(rows["at_places"])
    outputs = Latents((jnp.zeros((4, 1, 3)),), (tokens,), None, jnp.zeros(()), tokens)
    batch = {"valid": jnp.ones(4)}
    sums = task.sums(task.losses(outputs, batch), outputs, batch)
    means = {k: float(a / b) for k, (a, b) in sums.items()}
    assert task.whole_metrics(rows, means)["explained"] == pytest.approx(0.0, abs=1e-6)


class WithoutPredictor(JointEmbedding):
    """Predicts the mean of the tokens that are seen, everywhere."""

    def __call__(self, clips, *places):
        found = []
        for seen, wanted in zip(places[::2], places[1::2], strict=True):
            mean = self.encoder.encode(clips, seen).mean(axis=(1, 2))
            found.append((jnp.tile(mean[:, None], (1, wanted.shape[1], 1)), None))
        return found


@pytest.mark.slow
def test_collapse_shows_in_what_is_watched(tmp_path, data_root, monkeypatch):
    """Targets that learn too, and a mean instead of a predictor, make features that are alike for
    all clips; constant targets are explained by a constant, and targets of averaged parameters do
    neither."""
    name = "jepa(masks=('frame(0.5)',), width=12, depth=1, heads=2, target='{}')"
    long = ["--config.train.steps=200", "--config.train.eval_every=200", "--config.optim.lr=3e-3",
            "--config.train.checkpoint_every=200"]  # fmt: skip
    monkeypatch.setattr(TARGETS, "_items", dict(TARGETS._items))
    TARGETS.add("constant", Target(lambda params, _: jax.tree.map(jnp.zeros_like, params)))
    found = {}
    for kind in ("averaged", "trained", "constant", "without predictor"):
        target = kind if kind in TARGETS else "stopped"  # without averaging
        override = f"--config.task.name={name.format(target)}"
        with monkeypatch.context() as patch:
            if target == "stopped":
                patch.setattr("vivit.pretraining.jepa.JointEmbedding", WithoutPredictor)
            train(config_of(data_root, override, *long), tmp_path / kind)
        lines = (tmp_path / kind / "metrics.jsonl").read_text().splitlines()
        found[kind] = json.loads(lines[-1])
    healthy = found["averaged"]
    for kind in ("trained", "constant"):
        assert found[kind]["raw_loss"] < 0.5 * healthy["raw_loss"]  # though they learned nothing
    spread, cosine = (
        {k: v[name] for k, v in found.items()}
        for name in ("raw_token_spread", "raw_feature_cosine")
    )
    for kind in ("trained", "without predictor"):
        assert spread[kind] < 0.5 * spread["averaged"]
        assert 1 - cosine[kind] < 0.5 * (1 - cosine["averaged"])
    assert found["constant"]["raw_constant_error"] < 1e-6
    assert found["constant"]["raw_explained"] == -1
