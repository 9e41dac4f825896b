"""Probes of frozen features."""

import json

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from vivit.pretraining.probes import PROBES, Features, fit, linear, nearest
from vivit.probe import main, probe
from vivit.run import Run

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 6))


def drawn(count, noise=0.6):
    classes = RNG.integers(0, 3, count)
    return Features(CENTRES[classes] + noise * RNG.normal(size=(count, 6)), classes)


TRAIN, VALIDATION, TEST = drawn(60), drawn(40), drawn(50)


def test_linear_is_ridge_regression():
    mean, std = TRAIN.values.mean(axis=0), TRAIN.values.std(axis=0) + 1e-6
    found = linear(TRAIN, TEST.values)
    assert len(found) == 7
    for penalty, classes in found.items():
        ridge = Ridge(alpha=penalty).fit((TRAIN.values - mean) / std, np.eye(3)[TRAIN.classes])
        expected = ridge.predict((TEST.values - mean) / std).argmax(axis=1)
        np.testing.assert_array_equal(classes, expected)


def test_nearest_is_the_weighted_vote_of_the_nearest():
    found = nearest(TRAIN, TEST.values)
    for k, classes in found.items():
        weigh = lambda distance: np.exp((1 - distance) / 0.07)
        vote = KNeighborsClassifier(int(k), metric="cosine", weights=weigh)
        expected = vote.fit(TRAIN.values, TRAIN.classes).predict(TEST.values)
        np.testing.assert_array_equal(classes, expected)


def test_the_option_is_chosen_on_validation(monkeypatch):
    monkeypatch.setattr(PROBES, "_items", {"given": lambda train, others: options})
    right = np.concatenate([VALIDATION.classes, TEST.classes])
    half = right.copy()
    half[: len(VALIDATION.classes) // 2] = 3
    options = {1.0: half, 2.0: np.full(90, 3), 3.0: np.where(np.arange(90) < 40, right, 3)}
    assert fit("given", TRAIN, VALIDATION, TEST) == (3.0, 1.0, 0.0)  # whatever test says


def test_a_run_is_probed_next_to_random_parameters(tiny_run, capsys):
    arguments = [f"--workdir={tiny_run}", "--label=digit", "--checkpoint=latest", "--clips=20"]
    main(arguments)
    assert "random" in capsys.readouterr().out
    (path,) = (tiny_run / "probe").glob("digit_00000006_20.json")
    found = json.loads(path.read_text())
    assert set(found["trained"]) == set(found["random"]) == {"linear", "knn"}
    run = Run(tiny_run, "latest")
    again = probe(run, label="digit", clips=20)
    assert again["random"]["linear"].test == found["random"]["linear"]["test"]
    # Parameters that are random make both rows alike.
    model = run.model.with_settings(classes=0)
    drawn = model.init(jax.random.key(0), *model.example())["params"]
    run.__dict__["params"] = jax.device_get(drawn)
    same = probe(run, label="digit", clips=20)
    assert same["trained"] == same["random"]


def test_what_cannot_be_probed_is_refused(tiny_run):
    run = Run(tiny_run, "latest")
    with pytest.raises(ValueError, match="no label 'colour'; it has: motion, digit"):
        probe(run, label="colour")
    with pytest.raises(ValueError, match="data.train_clips=99, but split 'train' .* has 32 clips"):
        probe(run, label="motion", clips=99)
