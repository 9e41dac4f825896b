"""Methods that read attention, against NumPy on weights and gradients of a kernel of their own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.test_model import CLIPS, NO_CLASS_TOKEN, TINY, init, with_head
from vivit.analysis import attribute, capture, rollout
from vivit.attention import KERNELS
from vivit.attention.kernels import kernel
from vivit.model import stack_layers
from vivit.model.settings import FAMILIES

CLASSES = jnp.array([1, 2])
ADDED, MADE = [], []  # to the weights of each call, and these


@pytest.fixture(scope="module", autouse=True)
def recorded():
    @kernel("recorded", general=True)
    def attend(q, k, v, *, soft_cap=None):
        scores = jnp.einsum("...nhk,...mhk->...hnm", q, k) * q.shape[-1] ** -0.5
        MADE.append(jax.nn.softmax(scores, axis=-1))
        weights = MADE[-1] + (ADDED[len(MADE) - 1] if ADDED else 0)
        return jnp.einsum("...hnm,...mhc->...nhc", weights, v)

    yield
    del KERNELS._items["recorded"]


def score(model, params, clips=CLIPS):
    logits = model.apply({"params": params}, clips)
    return jnp.take_along_axis(logits, CLASSES[:, None], axis=1).sum()


@functools.cache
def weights_and_gradients(family, readout):
    """[(A, dA)] of every call of the kernel, in order; A is [B, sets..., h, n, m]."""
    model = vivit.build({**TINY, "family": family, "readout": readout, "kernel": "recorded"})
    params = with_head(model)

    def with_added(added):
        ADDED[:], MADE[:] = added, []
        try:
            return score(model, params), list(MADE)
        finally:
            ADDED.clear()

    _, weights = with_added([])
    zeros = [jnp.zeros_like(x) for x in weights]
    gradients, weights = jax.jit(jax.grad(with_added, has_aux=True))(zeros)
    return [(np.asarray(a), np.asarray(g)) for a, g in zip(weights, gradients, strict=True)]


def positive(pair):
    weights, gradient = pair
    return np.maximum(weights * gradient, 0).mean(axis=-3)


def propagated(pairs):
    total = np.eye(pairs[0][0].shape[-1])
    for pair in pairs:
        total = total + positive(pair) @ total
    return total


def row_of_readout(matrix, readout):
    """Of the clip's tokens; the mean readout of what tokens have of others."""
    return matrix[..., 0, 1:] if readout == "cls" else matrix.mean(axis=-2)


def ours(method, family, readout):
    model = vivit.build({**TINY, "family": family, "readout": readout})
    return np.asarray(attribute(method, model, with_head(model), CLIPS, CLASSES))


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_methods_of_a_joint_model_are_products_of_its_matrices(readout):
    pairs = weights_and_gradients("joint", readout)
    whole = propagated(pairs) - np.eye(pairs[0][0].shape[-1])
    expected = {
        "relevance": whole,
        "gradient_attention": positive(pairs[-1]),
        "attention": pairs[-1][0].mean(axis=-3),
    }
    for method, matrix in expected.items():
        row = row_of_readout(matrix, readout).reshape(2, 2, 4)
        assert row.std() > 1e-6
        np.testing.assert_allclose(
            ours(method, "joint", readout), row, rtol=1e-4, atol=1e-7, err_msg=method
        )


def test_methods_of_a_factorised_encoder_go_through_both_stages():
    pairs = weights_and_gradients("factorised_encoder(2)", "cls")
    space, time = pairs[:2], pairs[2:]

    def through(of_stage):
        by_place = row_of_readout(of_stage(space), "cls")  # [B, T, S]
        by_step = row_of_readout(of_stage(time), "cls").reshape(2, -1)  # [B, 1, T]
        return by_step[:, :, None] * by_place

    for method, of_stage in {
        "relevance": propagated,
        "gradient_attention": lambda pairs: positive(pairs[-1]),
        "attention": lambda pairs: pairs[-1][0].mean(axis=-3),
    }.items():
        expected = through(of_stage)
        result = ours(method, "factorised_encoder(2)", "cls")
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-9, err_msg=method)


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_grad_cam_is_the_weighted_sum_of_the_last_blocks_tokens(readout):
    model = vivit.build({**TINY, "family": "joint", "readout": readout})
    params = with_head(model)

    def scored(added):
        seen = []

        def add(next_fun, args, kwargs, context):
            if context.module.name == "layer_1" and context.method_name == "__call__":
                carry, at = args
                seen.append(carry.x)
                args = (carry._replace(x=carry.x + added), at)
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(add):
            return score(model, params), seen[0]

    extra = readout == "cls"
    shape = (2, 1, 9, 8) if extra else (2, 2, 4, 8)
    gradient, tokens = jax.jit(jax.grad(scored, has_aux=True))(jnp.zeros(shape))
    gradient, tokens = (np.asarray(x).reshape(2, -1, 8)[:, extra:] for x in (gradient, tokens))
    expected = np.maximum((gradient.mean(axis=1, keepdims=True) * tokens).sum(-1), 0)
    np.testing.assert_allclose(
        ours("grad_cam", "joint", readout), expected.reshape(2, 2, 4), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("family", ["joint", "divided", "factorised_encoder(2)"])
@pytest.mark.parametrize("scan", [False, True])
def test_value_norms_multiply_weights(family, scan):
    model = vivit.build({**TINY, "family": family, "readout": "cls"})
    params = init(model)
    _, kept = model.apply({"params": params}, CLIPS, capture_intermediates=True)
    plain = capture(model, params, CLIPS)
    scanned = model.with_settings(scan=scan)
    stacked = stack_layers(params) if scan else params
    weighted = capture(scanned, stacked, CLIPS, value_norms=True)
    for one, other in zip(plain.attentions, weighted.attentions, strict=True):
        stage = model.config.stages[one.stage]
        name = f"attention_{stage.block.attention_name(one.pattern)}"
        path = f"stage_{one.stage}", f"layer_{one.layer}", name
        of, inside = params, kept["intermediates"]
        for part in path:
            of, inside = of[part], inside[part]
        added = jnp.einsum("BTShc,hcD->BTShD", inside["value"]["__call__"][0], of["out"]["kernel"])
        if "projection" in of:
            added = added @ of["projection"]["kernel"]
        norms = one.layout.remove(jnp.linalg.norm(added, axis=-1))  # [B, T, S, h]
        expected = one.weights() * jnp.moveaxis(norms, 3, 1)[:, :, None, None]
        np.testing.assert_allclose(other.weights(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="capture without value_norms"):
        rollout(weighted)


def test_value_norms_of_shared_keys_are_those_of_each_head():
    model = vivit.build({**TINY, "family": "joint", "readout": "mean", "kv_heads": 1})
    weighted = capture(model, init(model), CLIPS, value_norms=True).attentions[0]
    plain = capture(model, init(model), CLIPS).attentions[0]
    norms = jnp.moveaxis(weighted.value_norms, 3, 1)
    assert np.abs(norms[:, 0] - norms[:, 1]).max() > 0.01
    expected = plain.weights() * norms[:, :, None, None]
    np.testing.assert_allclose(weighted.weights(), expected, atol=1e-5)
    np.testing.assert_allclose(weighted.rows([(1, 2)])[:, :, 0], expected[:, :, 1, 2], atol=1e-5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "joint"])
def test_relevance_of_every_family_is_that_of_its_scanned_layers(family):
    readout = "mean" if family in NO_CLASS_TOKEN else "cls"
    model = vivit.build({**TINY, "family": family, "readout": readout})
    params = with_head(model)
    for method in ("relevance", "grad_cam"):
        plain = attribute(method, model, params, CLIPS, CLASSES)
        assert plain.shape == (2, 2, 4)
        assert np.max(plain) > 0
        scanned = model.with_settings(scan=True, kernel="chunked")
        other = attribute(method, scanned, stack_layers(params), CLIPS, CLASSES)
        np.testing.assert_allclose(plain, other, rtol=1e-3, atol=1e-6)


def test_trajectory_has_no_gradient_by_weights_alone():
    stage = {"depth": 1, "attentions": ("trajectory",), "pool": "mean"}
    model = vivit.build({**TINY, "stages": (stage,)})
    params = with_head(model)
    for method in ("relevance", "gradient_attention"):
        with pytest.raises(ValueError, match="its weights follow its values"):
            attribute(method, model, params, CLIPS, CLASSES)
    assert np.max(attribute("grad_cam", model, params, CLIPS, CLASSES)) > 0
    with pytest.raises(ValueError, match="value_norms: values of 'trajectory' go through more"):
        capture(model, params, CLIPS, value_norms=True)


def test_relevance_of_divided_attention_is_the_product_of_its_matrices():
    """On the grid of T time steps, each with the class token, which is one for all of them."""
    pairs = weights_and_gradients("divided", "cls")
    t, n = 2, 5
    tie = np.eye(t * n)
    tie[::n, ::n] = 1 / t
    total = np.broadcast_to(np.eye(t * n), (2, t * n, t * n))
    for over_time, over_space in (pairs[:2], pairs[2:]):
        for pair, axis in ((over_time, "t"), (over_space, "s")):
            sets = positive(pair)
            step = np.zeros((2, t, n, t, n))
            if axis == "t":  # [B, S, T, T], without the class token
                for s in range(n - 1):
                    step[:, :, s + 1, :, s + 1] = sets[:, s]
            else:  # [B, T, 1 + S, 1 + S]
                for i in range(t):
                    step[:, i, :, i] = sets[:, i]
            total = total + step.reshape(2, t * n, t * n) @ total
            total = tie @ total if axis == "s" else total
    row = total.reshape(2, t, n, t, n)[:, 0, 0, :, 1:]
    np.testing.assert_allclose(ours("relevance", "divided", "cls"), row, rtol=1e-4, atol=1e-7)


def test_relevance_is_that_of_a_class():
    model = vivit.build({**TINY, "family": "joint", "readout": "cls"})
    params = with_head(model)
    one = attribute("relevance", model, params, CLIPS, [1, 2])
    other = attribute("relevance", model, params, CLIPS, [1, 3])
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    assert not np.allclose(one[1], other[1], rtol=1e-2)


def test_grad_cam_of_merged_tokens_is_on_the_clips_grid():
    stage = {"depth": 2, "attentions": ("joint",), "reduce": "token_merging(1)", "pool": "mean"}
    model = vivit.build({**TINY, "stages": (stage,), "registers": 1})
    result = attribute("grad_cam", model, with_head(model), CLIPS, CLASSES)
    assert result.shape == (2, 2, 4)
    assert np.max(result) > 0
