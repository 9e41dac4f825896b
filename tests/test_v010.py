"""Models, public weights, data and runs give the numbers that version 0.1.0 gave for them.

tests/golden/make_v010.py wrote the files with the code of 0.1.0; settings and configs in them have
its names. Numbers are compared to 1e-5 of their size, as releases of JAX and processors differ in
rounding; scratch comparisons on one machine are equal to the bit.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vivit
from tests.golden.v010 import measure
from vivit import pretrained
from vivit.analysis import capture, open_run, rollout
from vivit.config import as_config, read_workdir
from vivit.data.augment import make_augmentation
from vivit.data.pipeline import eval_batches, train_batches
from vivit.data.settings import AugmentSettings, DataSettings
from vivit.data.sources import open_split
from vivit.data.views import make_views
from vivit.evaluate import main as evaluate
from vivit.model.upgrade import upgrade_model
from vivit.records import record
from vivit.train import train
from vivit.upgrade import upgrade

GOLDEN = Path(__file__).parent / "golden"
V010 = GOLDEN / "v010"
TOLERANCE = 1e-5
BATCH_KEYS = {"valid": "mask", "indices": "positions", "label_weight": "share"}


def cases(file, quick, *, having=None):
    """The cases of a file as parameters of a test; those that do not start as one of `quick` are
    slow. having: only cases in which this field is true."""
    names = json.loads((V010 / file).read_text())
    names = {name: case for name, case in names.items() if having is None or case[having]}
    slow = lambda name: () if name.startswith(tuple(quick)) else pytest.mark.slow
    return [pytest.param(name, case, id=name, marks=slow(name)) for name, case in names.items()]


def numbers(file, name):
    with np.load(V010 / file) as arrays:
        start = f"{name}/"
        return {k.removeprefix(start): arrays[k] for k in arrays.files if k.startswith(start)}


def check(ours, theirs, tolerance=TOLERANCE):
    assert sorted(ours) == sorted(theirs)
    for name, expected in theirs.items():
        array = np.asarray(ours[name])
        assert array.shape == expected.shape, name
        size = np.abs(expected).max(initial=0)
        if expected.ndim == 2 and name.endswith(measure.TREES):  # one row per parameter
            size = np.maximum(expected[:, :1], 0.01 * size)
        np.testing.assert_allclose(
            array / np.maximum(size, 1e-3), expected / np.maximum(size, 1e-3),
            rtol=0, atol=tolerance, err_msg=name,
        )  # fmt: skip


@pytest.fixture(scope="module")
def trees():
    return json.loads(lzma.decompress((V010 / "trees.json.xz").read_bytes()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, which has the data sets and runs of 0.1.0: their paths are relative."""
    for name in ("data.tar.xz", "runs.tar.xz"):
        with tarfile.open(V010 / name) as archive:
            archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- models ---


def build(model):
    return vivit.build(upgrade_model(model))


QUICK = (
    "family factorised_encoder", "cls and registers divided", "readout attentive in two",
    "rope 3d and cls", "kernel chunked(5) with all", "reduction token_merging(3) mean",
    "stages divided", "training split", "pattern trajectory",
)  # fmt: skip
QUICK_START = ("pattern trajectory",)
QUICK_MAPS = ("cls and registers divided", "reduction token_learner(3) mean")


def check_model(name, ours):
    """Compares a part of a model's numbers: what `ours` holds of them."""
    theirs = numbers("models.npz", name)
    tolerance = 0.02 if "bfloat16" in name else TOLERANCE  # of 8 bits
    ours = measure.shorten(ours)
    check(ours, {key: theirs[key] for key in ours}, tolerance)


@pytest.mark.parametrize(("name", "case"), cases("models.json", QUICK))
def test_a_model_has_the_same_logits_and_gradients(name, case):
    how = {key: case[key] for key in ("train", "uint8", "gradients") if key in case}
    check_model(name, measure.outputs(build(case["model"]), tuple(case["model"]["clip"]), **how))


@pytest.mark.parametrize(("name", "case"), cases("models.json", QUICK_START, having="init"))
def test_a_model_starts_with_the_same_parameters(name, case):
    check_model(name, measure.initial(build(case["model"]), tuple(case["model"]["clip"])))


@pytest.mark.parametrize(("name", "case"), cases("models.json", QUICK_MAPS, having="maps"))
def test_a_model_has_the_same_maps(name, case):
    check_model(name, measure.maps(build(case["model"]), tuple(case["model"]["clip"])))


@pytest.mark.parametrize(("name", "case"), cases("models.json", ("",), having="init"))
def test_a_model_has_the_same_parameters(name, case, trees):
    shapes = measure.shapes_of(build(case["model"]), tuple(case["model"]["clip"]))
    assert measure.describe(shapes) == trees[case["tree"]]


# --- public weights ---


def load_options(options):
    """Options of `pretrained.load` in the names of this version."""
    options = {("position_resize" if k == "positions" else k): v for k, v in options.items()}
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    family = {"family": options.pop("family")} if "family" in options else {}
    model = upgrade_model({**options.pop("model", {}), **family})
    return {**options, "family": model.pop("family", None), "model": model}


def source_numbers(case, folder):
    path = measure.source_file(case, folder, GOLDEN)
    return measure.loaded(pretrained.load(path, **load_options(case["options"])), vivit.build)


SOURCES = ("hf_vjepa2_encoder", "hf_timesformer_divided", "import_token_fe_tile encoder")


@pytest.mark.parametrize(("name", "case"), cases("sources.json", SOURCES))
def test_public_weights_give_the_same_numbers(name, case, tmp_path):
    check(measure.shorten(source_numbers(case, tmp_path)), numbers("sources.npz", name))


# --- data ---


BATCHES = ("digits strong", "h264", "jpeg", "raw", "files")


def batch_numbers(case):
    """What make_v010.batch_numbers returns, by this version."""
    config = json.loads((V010 / "losses.json").read_text())["adamw"]["config"]
    new = upgrade({**config, "data": case["data"], "augment": case["augment"]})
    settings, (frames, *size) = record(DataSettings, new["data"]), case["clip"]
    split, held_out = open_split(settings, "train"), open_split(settings, "validation")
    augment = make_augmentation(
        record(AugmentSettings, new["augment"]), split, tuple(size), canvas=settings.canvas
    )
    found = {}

    def keep(at, batch):
        found.update({f"{at}/{BATCH_KEYS.get(k, k)}": np.asarray(v) for k, v in batch.items()})

    batches = train_batches(settings, split, frames=frames, seed=5, start=1)
    for step in (1, 2):
        batch = next(batches)
        keep(f"train {step}", batch)
        keep(f"augmented {step}", jax.jit(augment)(batch, jax.random.key(step), {}))
    batches.close()
    predict = make_views(settings.views, held_out, tuple(size))
    see = jax.jit(lambda clips, extents: predict(measure.see, clips, extents))
    batches = eval_batches(settings, held_out, frames=frames)
    for i, batch in enumerate(batches):
        keep(f"evaluation {i}", batch)
        found[f"evaluation {i}/seen"] = np.asarray(see(batch["clips"], batch["extents"]))
    batches.close()
    return found


@pytest.mark.parametrize(("name", "case"), cases("batches.json", BATCHES))
def test_data_sets_give_the_same_batches(name, case, folder):
    """Prepared by 0.1.0, or listed in its manifest."""
    ours, theirs = measure.shorten_clips(name, batch_numbers(case)), numbers("batches.npz", name)
    ours = {key.removeprefix(f"{name}/"): value for key, value in ours.items()}
    assert sorted(ours) == sorted(theirs)
    for key, expected in theirs.items():
        assert ours[key].dtype.kind == expected.dtype.kind, key
        if key.endswith("/clips"):  # augmentation and colours round to whole numbers
            apart = np.abs(ours[key].astype(int) - expected)
            assert apart.max() <= (key.startswith("augmented") or "digits" not in name), key
            assert (apart > 0).mean() < 0.01, key
        else:
            tolerance = 0.01 if key.endswith("mean") else TOLERANCE
            np.testing.assert_allclose(ours[key], expected, rtol=0, atol=tolerance, err_msg=key)


# --- training ---

CONFIG = """
import json
from vivit.config import as_config, as_config_dict
from vivit.upgrade import upgrade


def get_config():
    with open("config.json") as file:
        return as_config_dict(as_config(upgrade(json.load(file))))
"""


def run_numbers(workdir):
    """Returns loss and gradient norm of every step of a run, and its validation scores."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["loss"], row["grad_norm"]) for row in rows if row["split"] == "train"]
    scores = [(row["loss"], row["top1"]) for row in rows if row["split"] == "validation"]
    return {"steps": steps, "scores": scores}


def train_again(case):
    """Trains with a config of 0.1.0 in the current folder; returns the numbers of the run."""
    if case["devices"] == 1:
        train(as_config(upgrade(case["config"])), "run")
    else:
        Path("config.json").write_text(json.dumps(case["config"]))
        Path("config.py").write_text(CONFIG)
        environment = {
            "JAX_NUM_CPU_DEVICES": str(case["devices"]),
            "PYTHONPATH": str(GOLDEN.parents[1]),
        }
        command = [sys.executable, "-m", "vivit.train", "--config=config.py", "--workdir=run"]
        subprocess.run(command, check=True, env={**os.environ, **environment}, capture_output=True)
    return run_numbers(Path("run"))


@pytest.mark.parametrize(("name", "case"), cases("losses.json", ("mixed",)))
def test_a_training_run_has_the_same_losses(name, case, folder):
    found = train_again(case)
    for key in ("steps", "scores"):
        np.testing.assert_allclose(found[key], case[key], rtol=1e-4, err_msg=key)
    np.testing.assert_allclose(found["steps"][:10], case["steps"][:10], rtol=TOLERANCE)


# --- runs ---


def opened_numbers(name):
    """What make_v010.run_numbers returns of a run in the current folder, by this version."""
    run = open_run(Path("runs", name), checkpoint="latest")
    clips, labels = run.clips(run.one_of_each_class(4))
    maps = capture(run.model, run.params, clips)
    flat = flatten_dict(run.params, sep="/")
    found = {f"params/{path}": np.asarray(flat[path]) for path in sorted(flat)}
    found |= {"logits": maps.logits, "rollout": rollout(maps), "labels": labels}
    return measure.shorten({key: np.asarray(value) for key, value in found.items()})


@pytest.mark.parametrize("name", ["plain", "stages"])
def test_a_run_opens_and_gives_the_same_maps(name, folder):
    # The clips are resized on the device: under JAX 0.12 a few pixels round to the next grey level,
    # which moves logits by 3.4e-5 and rollout by 7e-4 of its largest value.
    check(opened_numbers(name), numbers("runs.npz", name), tolerance=2e-3)


@pytest.mark.parametrize("name", ["plain", "stages"])
def test_a_run_is_a_source_of_weights(name, folder):
    loaded = pretrained.load(f"runs/{name}", checkpoint="latest")
    flat = flatten_dict(loaded.params, sep="/")
    found = {"params": np.array([measure.fingerprint(flat[path]) for path in sorted(flat)])}
    check(found, {"params": numbers("runs.npz", name)["params"]})
    vivit.build(loaded.model_config)


@pytest.mark.parametrize(
    ("name", "options"),
    [("plain", ["--views=1x3", "--checkpoint=3"]), ("stages", ["--checkpoint=latest"])],
)
def test_a_run_is_evaluated_to_the_same_scores(name, options, folder):
    before = Path("runs", name, "eval").rename("before")
    evaluate([f"--workdir=runs/{name}", *options])
    (path,) = Path("runs", name, "eval").glob("*.json")
    old = before / path.name
    if not old.exists():  # 0.1.0 did not name the config's views
        old = before / f"{path.stem.rpartition('_')[0]}.json"
    ours, theirs = (json.loads(p.read_text()) for p in (path, old))
    for key in ("loss", "top1", "top5"):
        assert ours[key] == pytest.approx(theirs[key], rel=TOLERANCE)
    for key in ("split", "views", "step", "clips", "confusion", "per_class", "damaged", "data"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize("name", ["plain", "stages"])
def test_an_interrupted_run_resumes(name, folder):
    workdir = Path("runs", name)
    config, before = read_workdir(workdir), run_numbers(workdir)
    shutil.rmtree(workdir / "checkpoints" / str(config.train.steps))
    train(config, workdir)
    after = run_numbers(workdir)
    for key in ("steps", "scores"):
        np.testing.assert_allclose(after[key], before[key], rtol=TOLERANCE, err_msg=key)


def test_a_stage_without_an_equal_is_refused():
    stage = {"depth": 1, "mixers": ("divided_time", "time"), "pool": ""}
    with pytest.raises(ValueError, match="of version 0.1.0 has no equal"):
        upgrade_model({"stages": (stage,)})
