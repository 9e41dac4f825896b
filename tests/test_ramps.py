"""Strengths of regularisers that change over the training: `train.ramps`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import TINY
from tests.test_optim import make
from vivit.config import as_config
from vivit.ramps import make_ramps
from vivit.settings import TrainSettings
from vivit.step import make_init, make_train_step
from vivit.tasks import Classify

STEPS = 11
DROPS = {"drop_path": 0.3, "dropout": 0.2, "attention_dropout": 0.4}
# Chunks of several blocks, a scan and rematerialisation: each traces the rates on its own.
MODELS = {
    "dense": {"kernel": "dense"},
    "scan": {"kernel": "chunked(2)", "scan": True, "remat": "full"},
    "attention": {"kernel": "chunked(2)", "remat": "attention"},
}


def factors_of(text, steps=STEPS):
    ramps = make_ramps({"dropout": text}, steps=steps)
    return [round(float(ramps(jnp.int32(step))["dropout"]), 6) for step in range(steps + 2)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("falling", [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0, 0]),
        ("falling(until=0.5)", [1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("rising(0.2)", [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("before(0.3)", [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("falling(1.25)", [1 - 0.08 * i for i in range(11)] + [0.12, 0.04]),
        (
            "rising_cosine(0.5)",
            [
                0.5,
                0.512236,
                0.547746,
                0.603054,
                0.672746,
                0.75,
                0.827254,
                0.896946,
                0.952254,
                0.987764,
                1,
                0.987764,
                0.952254,
            ],
        ),
        ("after", [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_ramp_is_a_factor_of_each_step(text, expected):
    assert factors_of(text) == pytest.approx(expected)


def train_step(model, ramps):
    settings = TrainSettings(steps=STEPS, label_smoothing=0.2, ramps=ramps)
    optimizer, _ = make(lr=0.0)
    state = jax.jit(make_init(model, optimizer, average_decay=None))(0)
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), state.params
    )
    step = jax.jit(make_train_step(model, optimizer, Classify({"label": 5}), settings))
    rng = np.random.default_rng(0)
    batch = {
        "clips": jnp.asarray(rng.integers(0, 256, (4, *model.config.clip, 3)), jnp.uint8),
        "labels": jnp.arange(4, dtype=jnp.int32),
        "valid": jnp.ones(4),
    }

    def sums_at(number):
        return step(replace(state, params=params, step=jnp.int32(number)), batch)[1]

    return sums_at


@pytest.mark.parametrize("name", MODELS)
def test_rates_at_a_factor_are_those_of_a_model_with_these_rates(name):
    """Half of the rates on the way, and none at the end, under every way of building the layers."""
    base = {**TINY, **MODELS[name]}
    ramps = dict.fromkeys([*DROPS, "label_smoothing"], "falling")
    ramped = train_step(vivit.build({**base, **DROPS}), ramps)
    half = {rate: value / 2 for rate, value in DROPS.items()}
    for number, rates in ((5, half), (10, {})):
        # Without dropout's factor label smoothing has its own.
        plain = train_step(vivit.build({**base, **rates}), {"label_smoothing": "falling"})
        for metric in ("loss", "grad_norm"):
            ours, expected = (float(f(number)[metric][0]) for f in (ramped, plain))
            assert ours == pytest.approx(expected, rel=2e-5), (number, metric)
    logged = ramped(5)
    assert float(logged["dropout_ramp"][0]) == 0.5
    assert float(ramped(0)["loss"][0]) != pytest.approx(float(logged["loss"][0]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ramps": {"drop_paths": "falling"}}, "no strength 'drop_paths'; known: attention_drop"),
        ({"ramps": {"mixup": "falling"}}, "mixup is 0 or changes nothing"),
        ({"ramps": {"magnitude": "falling"}}, "magnitude is 0 or changes nothing"),
        ({"ramps": {"colour_jitter": "falling"}}, "colour_jitter is 0 or changes nothing"),
    ],
)
def test_a_ramp_of_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        as_config({"train": values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("falls", "unknown ramp 'falls'; known: after, before"),
        ("falling(until=3)", "not in .0, 2."),
        ("falling(until=nan)", "are written like falling"),
        ("before(end=0.3)", "are written like before"),
    ],
)
def test_an_unknown_ramp_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make_ramps({"dropout": text}, steps=STEPS)


@pytest.mark.parametrize("name", ["sgd(momentum=0.0, weight_decay={})", "muon(weight_decay={})"])
def test_weight_decay_and_averaging_have_ramps(name):
    """At a factor they are those of settings with these rates."""
    model = vivit.build(TINY)
    rng = np.random.default_rng(0)
    batch = {
        "clips": jnp.asarray(rng.integers(0, 256, (2, *model.config.clip, 3)), jnp.uint8),
        "labels": jnp.arange(2, dtype=jnp.int32),
        "valid": jnp.ones(2),
    }

    def after(decay, average, **ramps):
        settings = TrainSettings(steps=STEPS, ramps=ramps, average_decay=average)
        optimizer, _ = make(lr=0.1, name=name.format(decay), warmup_steps=0, clip_norm=None)
        state = jax.jit(make_init(model, optimizer, average_decay=average))(0)
        step = jax.jit(make_train_step(model, optimizer, Classify({"label": 5}), settings))
        state, _ = step(replace(state, step=jnp.int32(5)), batch)  # where half of a line is left
        return state.params, state.averaged

    ours = after(0.8, 0.6, weight_decay="falling", averaging="falling")
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6)
    jax.tree.map(close, ours, after(0.4, 0.8))
    assert np.abs(jax.flatten_util.ravel_pytree(ours)[0]
                  - jax.flatten_util.ravel_pytree(after(0.8, 0.6))[0]).max() > 1e-4  # fmt: skip
