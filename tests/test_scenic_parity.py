"""Values and gradients equal Scenic's, for its four families."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests import scenic
from vivit.analysis import capture
from vivit.objective import cross_entropy

TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("kernel", ["dense", "chunked"])
@pytest.mark.parametrize("name", scenic.FAMILIES)
def test_logits_loss_and_gradients(name, kernel):
    arrays, config = scenic.load(name)
    model = vivit.build({**config, "kernel": kernel})
    params = scenic.tree(arrays, "params/", name)
    clips, labels = jnp.asarray(arrays["input"]), jnp.asarray(arrays["label"].argmax(axis=-1))

    @jax.jit
    def run(params):
        def loss(params):
            logits = model.apply({"params": params}, clips)
            return cross_entropy(logits, labels).mean(), logits

        features = model.apply({"params": params}, clips, method="features")
        return *jax.value_and_grad(loss, has_aux=True)(params), features

    (loss, logits), grads, features = run(params)
    np.testing.assert_allclose(logits, arrays["logits"], atol=TOLERANCE)
    np.testing.assert_allclose(features, arrays["prelogits"], atol=TOLERANCE)
    np.testing.assert_allclose(loss, arrays["loss"], atol=TOLERANCE)
    expected = scenic.tree(arrays, "grads/", name)
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), grads, expected)


@pytest.mark.parametrize("name", scenic.FAMILIES)
def test_initial_parameters_have_scenics_tree(name):
    arrays, config = scenic.load(name)
    params = scenic.tree(arrays, "params/", name)
    clips = jnp.asarray(arrays["input"])
    ours = jax.eval_shape(vivit.build(config).init, jax.random.key(0), clips)["params"]
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    assert shapes(ours) == shapes(params)


def test_attention_weights_of_joint():
    arrays, config = scenic.load("spacetime_token")
    params = scenic.tree(arrays, "params/", "spacetime_token")
    maps = capture(vivit.build(config), params, arrays["input"])
    for attention in maps.attentions:
        key = f"encoderblock_{attention.layer}/MultiHeadDotProductAttention_0/attention_weights"
        expected = arrays[f"attn/Transformer/{key}"][:, :, 1:, 1:].reshape(2, 4, 4, 16, 4, 16)
        np.testing.assert_allclose(attention.weights(), expected, atol=TOLERANCE)


def test_attention_weights_of_factorised_self_attention():
    name = "factorized_self_attention_time_space"
    arrays, config = scenic.load(name)
    maps = capture(vivit.build(config), scenic.tree(arrays, "params/", name), arrays["input"])
    for attention in maps.attentions:
        key = (
            f"encoderblock_{attention.layer}/MultiHeadDotProductAttention_{attention.pattern.name}"
        )
        expected = arrays[f"attn/Transformer/{key}/attention_weights"]
        ours = np.asarray(attention.weights())  # [B, h, Tq, Sq, Tk, Sk]
        if attention.pattern.name == "space":
            weights = np.stack([ours[:, :, t, :, t] for t in range(4)], axis=1)  # [B, T, h, Sq, Sk]
        else:
            weights = np.stack([ours[:, :, :, s, :, s] for s in range(16)], axis=1)
        np.testing.assert_allclose(weights.reshape(expected.shape), expected, atol=TOLERANCE)
        assert ours.sum() == pytest.approx(weights.sum(), rel=1e-5)  # none outside the sets
