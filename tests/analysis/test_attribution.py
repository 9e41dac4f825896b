"""Attributions of pixels to the logit of a class, against explicit loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import TINY, with_head
from vivit.analysis import attribute

CLASSES = np.array([1, 2])


@pytest.fixture(scope="module")
def model():
    return vivit.build({**TINY, "family": "factorised_encoder", "readout": "cls"})


@pytest.fixture(scope="module")
def params(model):
    return with_head(model)


@pytest.fixture(scope="module")
def clips(model):
    return np.random.default_rng(0).uniform(-1, 1, (2, *model.config.clip, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def scores(model, params):
    logits = jax.jit(lambda x: model.apply({"params": params}, x))
    return lambda x: np.asarray(logits(jnp.asarray(x, jnp.float32)))[np.arange(2), CLASSES]


@pytest.mark.parametrize("region", ["tokens", "tubes", "steps"])
def test_occlusion_is_the_fall_of_the_score(model, params, clips, scores, region):
    (t, h, w), (steps, rows, columns) = model.config.tubelet, model.config.grid
    ours = attribute(f"occlusion(region={region!r})", model, params, clips, CLASSES)
    assert ours.shape == (2, steps, rows * columns)
    whole = scores(clips)
    for step in range(steps):
        for place in range(rows * columns):
            y, x = divmod(place, columns)
            in_time = slice(None) if region == "tubes" else slice(step * t, (step + 1) * t)
            in_space = slice(y * h, (y + 1) * h), slice(x * w, (x + 1) * w)
            covered = clips.copy()
            if region == "steps":
                covered[:, in_time] = 0
            else:
                covered[:, in_time, *in_space] = 0
            np.testing.assert_allclose(ours[:, step, place], whole - scores(covered), atol=1e-4)


def test_integrated_gradients_add_up_to_the_score(model, params, clips, scores):
    ours = attribute("integrated_gradients(steps=128)", model, params, clips, CLASSES)
    fall = scores(clips) - scores(np.zeros_like(clips))
    assert np.abs(fall).min() > 0.02
    np.testing.assert_allclose(ours.sum(axis=(1, 2)), fall, atol=5e-3 * np.abs(fall).max())


def gradient(model, params, clips):
    def score(x):
        return model.apply({"params": params}, x)[jnp.arange(2), CLASSES].sum()

    return np.asarray(jax.jit(jax.grad(score))(jnp.asarray(clips)))


def of_tokens(pixels, model):
    (t, h, w), (steps, rows, columns) = model.config.tubelet, model.config.grid
    blocks = pixels.reshape(2, steps, t, rows, h, columns, w, 3).sum(axis=(2, 4, 6, 7))
    return blocks.reshape(2, steps, rows * columns)


def test_one_step_and_no_noise_are_gradients(model, params, clips):
    ours = attribute("integrated_gradients(steps=1)", model, params, clips, CLASSES)
    expected = of_tokens(clips * gradient(model, params, clips / 2), model)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    smooth = attribute("smoothgrad(samples=2, noise=0.0)", model, params, clips, CLASSES)
    expected = of_tokens(np.abs(gradient(model, params, clips)), model)
    np.testing.assert_allclose(smooth, expected, atol=1e-5)
    noisy = attribute("smoothgrad(samples=2)", model, params, clips, CLASSES)
    assert not np.allclose(noisy, smooth, atol=1e-3)
    again = attribute("smoothgrad(samples=2)", model, params, clips, CLASSES)
    np.testing.assert_array_equal(noisy, again)


def test_pixels_in_bytes_are_those_in_floats(model, params):
    frames = np.random.default_rng(1).integers(0, 256, (2, *model.config.clip, 3))
    floats = (frames / 127.5 - 1).astype(np.float32)
    for name in ("occlusion", "integrated_gradients(steps=2)"):
        ours = attribute(name, model, params, frames.astype(np.uint8), CLASSES)
        expected = attribute(name, model, params, floats, CLASSES)
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_model_in_half_precision_adds_up_in_single(model, params, clips):
    half = model.with_settings(dtype="bfloat16")
    for name in ("integrated_gradients(steps=2)", "smoothgrad(samples=2)"):
        ours = attribute(name, half, params, clips.astype(np.float32), CLASSES)
        assert ours.dtype == np.float32
        expected = attribute(name, model, params, clips, CLASSES)
        assert np.corrcoef(ours.ravel(), expected.ravel())[0, 1] > 0.98


def test_what_is_not_there_is_refused(model, params, clips):
    with pytest.raises(ValueError, match=r"\[1, 99\] of a model with 5 classes: .* from 0 to 4"):
        attribute("occlusion", model, params, clips, np.array([1, 99]))
    with pytest.raises(ValueError, match=r"2 clips need as many numbers of classes, not int32"):
        attribute("occlusion", model, params, clips, np.array([1]))
    with pytest.raises(ValueError, match="unknown method of attribution 'lime'; known: "):
        attribute("lime", model, params, clips, CLASSES)
    with pytest.raises(ValueError, match="unknown region 'rows'; known: steps, tokens, tubes"):
        attribute("occlusion(region='rows')", model, params, clips, CLASSES)
