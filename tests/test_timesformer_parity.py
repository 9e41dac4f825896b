"""Values, gradients and attention maps of the family "divided" equal HuggingFace's TimeSformer."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.timesformer import from_timesformer
from vivit.analysis import capture
from vivit.objective import cross_entropy

TOLERANCE = 2e-5
MODEL = {
    "family": "divided",
    "readout": "cls",
    "clip": (4, 32, 32),
    "tubelet": (1, 8, 8),
    "classes": 7,
    "width": 48,
    "depth": 3,
    "heads": 4,
    "mlp_dim": 96,
    "position": "learned_space_time",
    "activation": "gelu",
}


@pytest.fixture(scope="module")
def reference():
    arrays = dict(np.load(Path(__file__).parent / "golden" / "timesformer_divided.npz"))
    named = lambda prefix: {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    arrays["clips"] = jnp.asarray(arrays["input"].transpose(0, 1, 3, 4, 2))
    arrays["params"] = from_timesformer(named("params/"), heads=4)
    arrays["grads"] = from_timesformer(named("grads/"), heads=4)
    return arrays


@pytest.mark.parametrize("kernel", ["dense", "chunked"])
def test_logits_loss_and_gradients(reference, kernel):
    model = vivit.build({**MODEL, "kernel": kernel})

    @jax.jit
    def run(params):
        def loss(params):
            logits = model.apply({"params": params}, reference["clips"])
            return cross_entropy(logits, jnp.array([1, 1])).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        (loss, logits), grads = run(reference["params"])
    np.testing.assert_allclose(logits, reference["logits"], atol=TOLERANCE)
    np.testing.assert_allclose(loss, reference["ce_loss_label1"], atol=TOLERANCE)
    expected = reference["grads"]
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), grads, expected)


def test_attention_weights_of_space(reference):
    maps = capture(vivit.build(MODEL), reference["params"], reference["clips"])
    for layer, attention in enumerate(maps.of(pattern="space")):
        ours = attention.weights()  # [B, h, Tq, Sq, Tk, Sk], without the class token
        theirs = reference[f"attentions/{layer:02}"].reshape(2, 4, 4, 17, 17)[..., 1:, 1:]
        for step in range(4):
            np.testing.assert_allclose(ours[:, :, step, :, step], theirs[:, step], atol=TOLERANCE)


def test_the_extra_projection_starts_at_zero_and_learns():
    model = vivit.build({**MODEL, "depth": 1})
    clips = jax.random.normal(jax.random.key(0), (1, 4, 32, 32, 3))
    params = jax.jit(model.init)(jax.random.key(1), clips)["params"]
    params["head"]["kernel"] = jnp.ones_like(params["head"]["kernel"])
    over_time = lambda tree: tree["stage_0"]["layer_0"]["attention_divided_time"]
    kernel = lambda tree: over_time(tree)["projection"]["kernel"]
    assert not kernel(params).any()
    grads = jax.jit(jax.grad(lambda p: model.apply({"params": p}, clips)[0, 0]))(params)
    assert np.abs(kernel(grads)).max() > 0
