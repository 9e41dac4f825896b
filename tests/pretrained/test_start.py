"""Runs that start from weights: config.init, freezing, layer-wise decay; the command line."""

import json
import shutil
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import vivit
from tests.scenic import GOLDEN
from tests.test_model import TINY, init
from vivit import pretrained
from vivit.checkpoint import Checkpoints
from vivit.model.params import stack_layers, unstack_layers
from vivit.optim import make_optimizer
from vivit.pretrained.__main__ import main
from vivit.settings import OptimSettings
from vivit.train import train

TO_START = ("--config.train.steps=2", "--config.optim.warmup_fraction=0.5")


def flat(tree):
    return flatten_dict(tree, sep="/")


def params_at(workdir, step):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return flat(checkpoints.read_params(step))


def best_step(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.resolve("best")


def test_a_run_of_ours_is_a_source(tiny_run):
    best, step = pretrained.load(tiny_run), best_step(tiny_run)
    ours = flat(best.params)
    for path, array in params_at(tiny_run, step).items():
        np.testing.assert_array_equal(array, ours[path])
    assert set(best.report.sha256) == {"config.json", f"checkpoints/{step}"}
    latest = pretrained.load(tiny_run, checkpoint="latest")
    by_path = pretrained.load(tiny_run / "checkpoints/6")
    jax.tree.map(np.testing.assert_array_equal, latest.params, by_path.params)
    with pytest.raises(ValueError, match="no checkpoint '5' in .* use latest, best or"):
        pretrained.load(tiny_run, checkpoint="5")
    larger = pretrained.load(tiny_run, clip=(8, 64, 32))
    assert vivit.build(larger.model_config).config.grid == (2, 4, 2)


@pytest.mark.parametrize("change", ["model.scan=False", "model.scan=True", "parallel.mode=pmap"])
def test_a_run_starts_from_weights(change, tiny_run, tiny_config, tmp_path):
    """Frozen ones stay; the files' hashes are in the run's config."""
    config = tiny_config(
        f"--config.init.path={tiny_run}",
        "--config.optim.freeze=('tubelet', 'stage_0/position')",
        "--config.train.steps=2",
        "--config.optim.warmup_fraction=0.5",
        f"--config.{change}",
    )
    state = train(config, tmp_path / "run")
    source = flat(pretrained.load(tiny_run, model={"scan": False}).params)
    after = flat(unstack_layers(state.params))  # not their average, which rounds
    for path, array in after.items():
        frozen = path.startswith(("tubelet", "stage_0/position"))
        assert np.array_equal(array, source[path]) == frozen, path
        np.testing.assert_allclose(array, source[path], atol=0.02)  # two small steps away
    assert int(state.step) == 2
    recorded = json.loads((tmp_path / "run/config.json").read_text())["init"]["sha256"]
    assert [line.split()[0] for line in recorded] == [
        "config.json",
        f"checkpoints/{best_step(tiny_run)}",
    ]
    assert "loaded" in (tmp_path / "run/init.txt").read_text()


def test_a_run_that_started_from_weights_resumes_without_them(tiny_run, tiny_config, tmp_path):
    """And ends with the same parameters as one that was never interrupted."""
    weights = tmp_path / "weights"
    shutil.copytree(tiny_run, weights)
    options = (
        f"--config.init.path={weights}",
        "--config.train.checkpoint_every=1",
        "--config.train.keep_checkpoints=4",
        "--config.train.steps=4",
    )
    whole = train(tiny_config(*options), tmp_path / "whole")
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"whole/checkpoints/{step}")
    shutil.rmtree(weights)
    again = train(tiny_config(*options), tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_weights_that_mean_something_else_are_refused(tiny_run, tiny_config, tmp_path):
    options = (f"--config.init.path={tiny_run}", "--config.model.activation=gelu")
    with pytest.raises(ValueError, match="--config.model.activation='gelu_tanh', not 'gelu'"):
        train(tiny_config(*options), tmp_path / "a")
    assert not (tmp_path / "a/config.json").exists()
    allowed = tiny_config(*options, "--config.init.allow=('activation',)", "--config.train.steps=3")
    assert int(train(allowed, tmp_path / "b").step) == 3


def test_another_architecture_is_explained_first_and_can_be_taken(tiny_run, tiny_config, tmp_path):
    options = (f"--config.init.path={tiny_run}", *TO_START, "--config.model.width=32",
               "--config.model.mlp_dim=8")  # fmt: skip
    with pytest.raises(ValueError, match="config.init: another architecture: width 16 in the") as e:
        train(tiny_config(*options), tmp_path / "a")
    first = str(e.value).splitlines()[0]
    assert "width 16 in the file, 32, mlp_dim 16 in the file, 8 in the config" in first
    assert "--config.model.width=16 --config.model.mlp_dim=16, or" in first
    assert "--config.init.model=from_file takes the file's" in first
    config = tiny_config(*options, "--config.init.model=from_file")
    state = train(config, tmp_path / "b")
    recorded = json.loads((tmp_path / "b/config.json").read_text())["model"]
    assert (recorded["width"], recorded["mlp_dim"]) == (16, 16)
    assert state.params["head"]["kernel"].shape == (16, 8)
    # Started again it is the same run.
    again = train(config, tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    with pytest.raises(ValueError, match="init.model='from_file' needs init.path"):
        tiny_config("--config.init.model=from_file")


def test_files_that_changed_since_a_run_began_are_noticed(tiny_run, tiny_config, tmp_path):
    config = tiny_config(f"--config.init.path={tiny_run}", "--config.train.steps=3")
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")  # as after a kill before the first checkpoint
    other = json.loads((tmp_path / "run/config.json").read_text())
    other["init"]["sha256"][0] = "config.json 00"
    (tmp_path / "run/config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"init.sha256"):
        train(config, tmp_path / "run")


def test_a_checkpoint_that_was_never_whole_is_none(tiny_run, tiny_config, tmp_path):
    """A run that is killed while it saves for the first time starts from the weights again."""
    config = tiny_config(f"--config.init.path={tiny_run}", "--config.train.steps=3")
    whole = train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/checkpoints/2.orbax-checkpoint-tmp/state").mkdir(parents=True)
    again = train(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_other_fixed_positions_mean_something_else(tiny_config, tmp_path):
    fixed = (*TO_START, "--config.model.position=sinusoidal")
    train(tiny_config(*fixed), tmp_path / "fixed")
    other = (f"--config.init.path={tmp_path / 'fixed'}", "--config.model.position=none")
    with pytest.raises(ValueError, match="--config.model.position='sinusoidal', not 'none'"):
        train(tiny_config(*other), tmp_path / "other")


def test_classes_of_the_weights_are_named_in_a_config(tiny_config, tmp_path):
    config = tiny_config()
    model = asdict(config.model)
    names = [f"class {i}" for i in range(9)]
    params = init(vivit.build({**model, "classes": 9}))
    weights = pretrained.export(tmp_path / "w", {**model, "classes": 9}, params, labels=names)
    head = tuple(names[:8])
    run = tiny_config(f"--config.init.path={weights}", f"--config.init.head={head}", *TO_START)
    assert train(run, tmp_path / "run").params["head"]["kernel"].shape == (16, 8)
    assert "sliced" in (tmp_path / "run/init.txt").read_text()


def test_a_missing_file_is_refused_before_anything_is_written(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="no file or folder 'nowhere.npz'"):
        train(tiny_config("--config.init.path=nowhere.npz"), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def updates(params, **options):
    settings = OptimSettings(
        name="sgd(momentum=0.0, weight_decay=0.0)", lr=0.1, clip_norm=None, **options
    )
    optimizer, _ = make_optimizer(settings, steps=10, batch_size=8)
    grads = jax.tree.map(jnp.ones_like, params)
    return flat(optimizer.update(grads, optimizer.init(params), params)[0])


def test_layers_learn_at_decaying_rates():
    model = vivit.build({**TINY, "family": "factorised_encoder(3)", "readout": "cls", "depth": 2})
    params = init(model)
    steps = updates(params, layer_decay=0.5)
    rate = lambda path: float(-steps[path].reshape(-1)[0] / 0.1)
    expected = {
        "head/kernel": 1,
        "stage_1/norm/scale": 0.5,
        "stage_1/layer_2/mlp/up/kernel": 0.5,
        "stage_1/layer_0/norm_mlp/scale": 0.5**3,
        "stage_1/class_token": 0.5**4,
        "stage_0/norm/bias": 0.5**4,
        "stage_0/layer_1/norm_mlp/scale": 0.5**4,
        "stage_0/layer_0/norm_mlp/scale": 0.5**5,
        "stage_0/position/table": 0.5**6,
        "tubelet/kernel": 0.5**6,
    }
    assert {path: rate(path) for path in expected} == pytest.approx(expected)
    scanned = updates(stack_layers(params), layer_decay=0.5)
    stacked = flat(stack_layers({k: v for k, v in vivit_tree(steps).items()}))
    for path, array in stacked.items():
        np.testing.assert_allclose(array, scanned[path], rtol=1e-6)


def vivit_tree(steps):
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(steps, sep="/")


def test_what_is_frozen_stays_and_has_no_state():
    params = init(vivit.build({**TINY, "family": "joint", "depth": 2}))
    settings = OptimSettings(lr=0.1, freeze=(r"^tubelet", r"layer_0/"), clip_norm=1.0)
    optimizer, _ = make_optimizer(settings, steps=10, batch_size=8)
    state = optimizer.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    moved = flat(optimizer.update(grads, state, params)[0])
    for path, update in moved.items():
        assert bool(update.any()) != path.startswith(("tubelet", "stage_0/layer_0/")), path
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if hasattr(x, "size"))
    thawed = optax.tree.norm({k: v for k, v in flat(grads).items() if moved[k].any()})
    assert count(state) < 2 * count(params)
    assert float(thawed) > 1  # so that the norm was clipped, by the thawed gradients alone


def test_a_pattern_that_freezes_nothing_is_refused():
    params = init(vivit.build({**TINY, "family": "joint"}))
    optimizer, _ = make_optimizer(OptimSettings(freeze=("tubelets",)), steps=10, batch_size=8)
    with pytest.raises(ValueError, match=r"optim.freeze has \['tubelets'\], found in no path"):
        optimizer.init(params)
    with pytest.raises(ValueError, match=r"layer_decay=0.0 is not in \(0, 1\]"):
        make_optimizer(OptimSettings(layer_decay=0.0), steps=10, batch_size=8)


def test_the_command_line(tmp_path, capsys):
    main(["inspect", str(GOLDEN / "hf_timesformer_divided")])
    out = capsys.readouterr().out
    assert "hf_timesformer, 26 loaded" in out
    assert "--config.model.family=divided" in out
    folder = str(tmp_path / "portable")
    main(["convert", str(GOLDEN / "hf_vivit"), folder, "--clip", "8x16x32", "--classes", "3"])
    assert "-> " in capsys.readouterr().out
    assert pretrained.load(folder).model_config["clip"] == (8, 16, 32)
    main(["export", folder, str(tmp_path / "theirs"), "--to", "hf_vivit"])
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    assert (config["num_frames"], config["image_size"]) == (8, [16, 32])
    with pytest.raises(ValueError, match="exists already"):
        main(["convert", str(GOLDEN / "hf_vivit"), folder])
    with pytest.raises(SystemExit):
        main(["inspect", folder, "--clip", "8x16"])
    assert "not like 32x224x224" in capsys.readouterr().err


def test_fields_on_the_command_line(capsys):
    path = str(GOLDEN / "hf_vivit")
    main(["inspect", path, "--model", "readout=mean", "--model", "tubelet=(4, 8, 8)"])
    out = capsys.readouterr().out
    assert "inflated" in out
    assert "the model reads 'mean'" in out
