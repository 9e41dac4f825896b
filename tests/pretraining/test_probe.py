"""Probes of frozen features."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from tests.conftest import ROOT
from tests.pretraining.test_mae import config_of
from vivit.encoder import Encoder, encoder_of_run
from vivit.features import FeatureFolder, write_features
from vivit.features import main as features_main
from vivit.pretrained import export
from vivit.pretraining.attentive import attentive, attentive_head
from vivit.pretraining.probes import (
    PROBES,
    Features,
    KeptTokens,
    ProbeKind,
    Rows,
    Training,
    fit,
    linear,
    nearest,
)
from vivit.probe import main, probe, probe_folders
from vivit.run import Run
from vivit.train import main as train_main
from vivit.train import train

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 6))


def drawn(count, noise=0.6, views=1):
    classes = RNG.integers(0, 3, count)
    values = CENTRES[classes][:, None] + noise * RNG.normal(size=(count, views, 6))
    return Features(values, classes)


TRAIN, VALIDATION, TEST = drawn(60), drawn(40), drawn(50)
FITTED = Training(Rows(TRAIN.values[:, 0], None), TRAIN.classes, 3)
OTHERS = Rows(TEST.values[:, 0], None)


def test_linear_is_ridge_regression():
    values = TRAIN.values[:, 0]
    mean, std = values.mean(axis=0), values.std(axis=0) + 1e-6
    found = linear(FITTED, OTHERS)
    assert len(found) == 7
    for name, scores in found.items():
        penalty = float(name.removeprefix("penalty "))
        ridge = Ridge(alpha=penalty).fit((values - mean) / std, np.eye(3)[TRAIN.classes])
        expected = ridge.predict((OTHERS.values - mean) / std)
        np.testing.assert_allclose(scores, expected, atol=1e-8)


def test_nearest_is_the_weighted_vote_of_the_nearest():
    found = nearest(FITTED, OTHERS)
    for name, votes in found.items():
        weigh = lambda distance: np.exp((1 - distance) / 0.07)
        k = int(name.removeprefix("k "))
        vote = KNeighborsClassifier(k, metric="cosine", weights=weigh)
        expected = vote.fit(FITTED.rows.values, TRAIN.classes).predict(OTHERS.values)
        np.testing.assert_array_equal(votes.argmax(axis=1), expected)


def given(scores, monkeypatch):
    entry = ProbeKind("given", lambda train, others: scores, tokens=False)
    monkeypatch.setattr(PROBES, "_items", {"given": entry})


def test_the_option_is_chosen_on_validation(monkeypatch):
    right = np.concatenate([VALIDATION.classes, TEST.classes])
    wrong, half = (right + 1) % 3, right.copy()
    half[: len(VALIDATION.classes) // 2] = wrong[: len(VALIDATION.classes) // 2]
    options = {"half": half, "none": wrong, "first": np.where(np.arange(90) < 40, right, wrong)}
    given({k: np.eye(3)[v] for k, v in options.items()}, monkeypatch)
    # Whatever test says, which the last number shows.
    assert fit("given", TRAIN, VALIDATION, TEST) == ("first", 1.0, 0.0, 1.0)


def test_scores_are_averaged_over_views(monkeypatch):
    clips = Features(np.zeros((1, 3, 6)), np.array([1]))
    none = Features(np.zeros((0, 3, 6)), np.zeros(0, int))
    by_view = np.array([[0.6, 0.4], [0.6, 0.4], [0.0, 1.0]])  # two views of three are wrong
    given({"all": np.concatenate([by_view, by_view])}, monkeypatch)
    assert fit("given", none._replace(values=np.zeros((1, 1, 6)), classes=np.array([0])),
               clips, clips).test == 1.0  # fmt: skip


def test_an_attentive_probe_learns_which_token_counts():
    """The class is in one token of a random place, which a mean over tokens nearly loses."""
    rng, keys = np.random.default_rng(0), np.eye(8, dtype=np.float32)

    def tokens(count):
        classes = rng.integers(0, 3, count)
        found = 0.5 * rng.normal(size=(count, 2, 4, 8)).astype(np.float32)
        at = np.arange(count), rng.integers(0, 2, count), rng.integers(0, 4, count)
        found[at] += 4 * (keys[classes] + keys[7])
        return found, classes

    (train_tokens, classes), (test, expected) = tokens(400), tokens(100)
    rows = lambda x: Rows(x.mean(axis=(1, 2)), (KeptTokens(x[:, None]),))
    training = Training(rows(train_tokens), classes, 3)
    options = {"blocks": 1, "heads": 2, "rates": (3e-2, 1e-12), "decays": (0.01,)}
    found = attentive(training, rows(test), **options)
    right = {k: (v.argmax(axis=1) == expected).mean() for k, v in found.items()}
    assert right["rate 0.03, decay 0.01"] > 0.95
    assert right["rate 1e-12, decay 0.01"] < 0.7  # the grid's rates are those of the heads
    np.testing.assert_allclose(found["rate 0.03, decay 0.01"].sum(axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="tokens of 8 channels have no heads=3"):
        attentive_head((2, 4, 8), 3, blocks=1, heads=3)


def test_a_run_is_probed_next_to_random_parameters(tiny_run, capsys):
    arguments = [f"--workdir={tiny_run}", "--label=digit", "--checkpoint=latest", "--clips=20"]
    main(arguments)
    assert "random" in capsys.readouterr().out
    (path,) = (tiny_run / "probe").glob("digit_00000006_20_1x1.json")
    found = json.loads(path.read_text())
    assert set(found["trained"]) == set(found["random 0"]) == {"linear", "knn"}
    assert set(found["pixels"]) == set(found["frame differences"]) == {"linear", "knn"}
    main([*arguments, "--random-seed=1", "--probes", "knn(  )"])  # is added to the file
    assert {"random 0", "random 1"} < set(json.loads(path.read_text()))
    encoder = encoder_of_run(Run(tiny_run, "latest"))
    again = probe(encoder, label="digit", clips=20)
    assert again["random 0"]["linear"].test == found["random 0"]["linear"]["test"]
    # Parameters that are random make both rows alike.
    kinds = ("pixels", "differences")
    rows = encoder.read(encoder.open("test"), kinds)
    assert [rows[kind].shape[2] for kind in kinds] == [16 * 64, 15 * 64]
    video = encoder.open("test").reader.open(3)
    frames = video.read(np.arange(16), None)
    grey = np.asarray(frames).astype(np.float32).mean(axis=-1)
    blocks = grey.reshape(16, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.corrcoef(rows["pixels"][3, 0], blocks.ravel())[0, 1] > 0.95
    differences = np.abs(np.diff(rows["pixels"][3, 0].reshape(16, 64), axis=0))
    np.testing.assert_allclose(rows["differences"][3, 0], differences.ravel(), atol=1e-3)
    same = probe(encoder.with_random_parameters(0), label="digit", clips=20)
    assert same["trained"] == same["random 0"] == again["random 0"]


def test_tokens_of_a_stream_are_those_in_memory(tiny_run, monkeypatch):
    encoder = encoder_of_run(Run(tiny_run, "latest"))
    options = {"label": "digit", "clips": 20, "views": "1x1"}
    kind = "attentive(blocks=1, heads=2, epochs=3, batch=8, rates=(1e-2,), decays=(0.1,))"
    kept = probe(encoder, probes=[kind], **options)
    with monkeypatch.context() as patch:
        patch.setattr("vivit.encoder.AT_ONCE", 2**10)
        patch.setattr("vivit.probe.MEMORY", 0)
        with pytest.raises(ValueError, match="give fewer --clips, or --stream to encode them"):
            probe(encoder, probes=[kind], **options)
        assert probe(encoder, probes=[kind], stream=True, **options) == kept
    tokens = encoder.tokens(encoder.open("test"))
    order = np.array([3, 0, 2])
    expected = encoder.read(encoder.open("test"), ("token",))["token"]
    first, second = tokens.batches(order, 2)
    np.testing.assert_allclose(np.concatenate([first, second]), expected[order], atol=1e-6)
    assert tokens.shape == expected.shape
    with pytest.raises(ValueError, match="--stream encodes clips, and --features has no encoder"):
        main(["--features", "folder", "--label=motion", "--stream"])


def test_what_cannot_be_probed_is_refused(tiny_run):
    encoder = encoder_of_run(Run(tiny_run, "latest"))
    with pytest.raises(ValueError, match="no label 'colour'; it has: motion, digit"):
        probe(encoder, label="colour")
    with pytest.raises(ValueError, match="99 clips are wanted of split 'train' .* which has 32"):
        probe(encoder, label="motion", clips=99)


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "clips"
    features_main([f"--workdir={tiny_run}", "--checkpoint=latest", f"--out={out}"])
    return out


def test_features_are_written_and_probed(tiny_run, folder, tmp_path, capsys):
    encoder = encoder_of_run(Run(tiny_run, "latest"))
    rows = encoder.read(encoder.open("test"), ("clip", "token"))
    values, classes, names = FeatureFolder(folder).read("test", "motion")
    np.testing.assert_array_equal(values, rows["clip"])
    split = encoder.open("test")
    assert classes.tolist() == [split.reader.label(i, "motion") for i in range(len(split))]
    assert names == split.classes["motion"].names
    # By tokens, in half precision, as npz, in parts of one batch; an encoder of a file.
    weights = export(tmp_path / "weights", encoder.model.config.settings, encoder.params)
    config = ["--config=configs/moving_digits.py", f"--config.data.root={encoder.data.root}",
              "--config.data.batch_size=8"]  # fmt: skip
    arguments = [f"--weights={weights}", *config, "--kind=token", "--dtype=float16"]
    features_main([*arguments, f"--out={tmp_path / 'tokens'}", "--format=npz", "--split=test"])
    tokens, *_ = FeatureFolder(tmp_path / "tokens").read("test", "motion")
    assert tokens.dtype == np.float16
    np.testing.assert_allclose(tokens, rows["token"], atol=4e-3)
    random = tmp_path / "random"
    features_main([f"--workdir={tiny_run}", f"--out={random}", "--random-seed=0"])
    main([f"--features={folder}", "--label=motion"])
    main(["--features", str(folder), str(random), "--label=motion", "--clips=20"])
    assert "random" in capsys.readouterr().out
    folders = {"a": FeatureFolder(folder), "b": FeatureFolder(random)}
    splits = ("train", "validation", "test")
    of_folders = probe_folders(folders, label="motion", splits=splits, clips=20)
    of_encoder = probe(encoder, label="motion", clips=20)
    for ours, expected in (("a", "trained"), ("b", "random 0")):
        assert of_folders[ours]["knn"] == of_encoder[expected]["knn"]


def test_features_resume_and_are_not_mixed(tiny_run, folder, monkeypatch, tmp_path):
    monkeypatch.setattr("vivit.features.PART_CLIPS", 8)
    encoder = encoder_of_run(Run(tiny_run, "latest"))
    out = tmp_path / "parts"
    write_features(encoder, out, splits=["train"])
    parts = sorted((out / "train").glob("part_*"))
    assert len(parts) == 4
    parts[2].unlink()
    kept = parts[0].stat().st_mtime_ns
    write_features(encoder, out, splits=["train"])
    assert parts[2].exists()
    assert parts[0].stat().st_mtime_ns == kept
    ours, expected = (FeatureFolder(x).read("train", "digit") for x in (out, folder))
    np.testing.assert_allclose(ours[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(ours[1], expected[1])
    with pytest.raises(ValueError, match="has features of another encoder; name a new folder"):
        write_features(encoder.with_random_parameters(0), out, splits=["train"])
    other = dataclasses.replace(encoder.open("train"), digest="other")
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "open", lambda self, split: other)
        with pytest.raises(ValueError, match="of other clips: the data of split 'train' have"):
            write_features(encoder, out, splits=["train"])
    with pytest.raises(ValueError, match="no features of the whole split 'test'; it has .*: train"):
        FeatureFolder(out).read("test", "digit")
    with pytest.raises(ValueError, match="has no label 'colour'; it has: motion, digit"):
        FeatureFolder(out).read("train", "colour")
    with pytest.raises(ValueError, match="no features in .*; write them with"):
        _ = FeatureFolder(tmp_path).about
    (tmp_path / "own").mkdir()
    (tmp_path / "own/file").touch()
    with pytest.raises(ValueError, match="has other files; name a new folder"):
        write_features(encoder, tmp_path / "own", splits=["train"])


def test_features_of_another_model_are_refused(folder, tmp_path, data_root):
    train(config_of(data_root, "--config.train.steps=2"), tmp_path / "mae")
    features_main([f"--workdir={tmp_path / 'mae'}", f"--out={tmp_path / 'other'}"])
    with pytest.raises(ValueError, match="are of another model than those in"):
        probe_folders(
            {"a": FeatureFolder(folder), "b": FeatureFolder(tmp_path / "other")},
            label="motion",
            splits=("train", "validation", "test"),
        )


def test_views_have_features_each(tmp_path):
    """The middle one of three crops is the one view; the others are other pixels."""
    config = str(ROOT / "configs/mae_films.py")
    train_main(["--config", config, "--quicktest", "--workdir", str(tmp_path / "films")])
    encoder = encoder_of_run(Run(tmp_path / "films", "latest"))
    split = encoder.open("test")
    one, three = (encoder.read(split, ("clip",), views=views)["clip"] for views in ("1x1", "1x3"))
    assert (one.shape, three.shape) == ((3, 1, 48), (3, 3, 48))
    np.testing.assert_allclose(three[:, 1], one[:, 0], atol=5e-3)
    assert np.abs(three[:, 0] - one[:, 0]).max() > 2e-2
    assert np.abs(three[:, 2] - three[:, 0]).max() > 2e-2
