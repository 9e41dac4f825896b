"""Readouts with parameters, against their formulas; V-JEPA 2's and VideoPrism's are in goldens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

import vivit
from tests.test_model import CLIPS, TINY, init
from vivit.analysis import capture, rollout
from vivit.model.readout import READOUTS

CONFIG = vivit.build({**TINY, "mlp_dim": 12, "family": "joint"}).config
WITH_PARAMETERS = [name for name in READOUTS if READOUTS[name].module]
GRID = jax.random.normal(jax.random.key(0), (3, 2, 4, 8))


def made(name):
    """(module, parameters drawn so that none is zero)"""
    module = READOUTS[name].module(CONFIG, 0)
    shapes = jax.eval_shape(lambda key: module.init(key, GRID, "ts"), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    draws = [np.random.default_rng(i).normal(size=x.shape) for i, x in enumerate(leaves)]
    return module, jax.tree.unflatten(tree, [jnp.asarray(x, jnp.float32) for x in draws])


@pytest.mark.parametrize("axes", ["s", "t", "ts"])
@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_each_set_is_pooled_on_its_own(name, axes):
    module, params = made(name)
    out, weights = module.apply({"params": params}, GRID, axes)
    expected = {"s": (3, 2, 1, 8), "t": (3, 1, 4, 8), "ts": (3, 1, 1, 8)}[axes]
    assert out.shape == expected
    sets = {
        "s": "B T S D -> (B T) 1 S D",
        "t": "B T S D -> (B S) T 1 D",
        "ts": "B T S D -> B T S D",
    }
    alone = module.apply({"params": params}, rearrange(GRID, sets[axes]), axes).out
    np.testing.assert_allclose(out.reshape(-1, 8), alone.reshape(-1, 8), atol=1e-5)
    dims = tuple("ts".index(a) + 1 for a in axes)
    np.testing.assert_allclose(weights.sum(axis=dims), 1, atol=1e-5)


def test_attention_pooling_as_big_vision_writes_it():
    """Its MAPHead: attention of a probe, then x + mlp(norm(x))."""
    module, params = made("map_head")
    x = np.asarray(GRID).reshape(3, 8, 8)
    p = jax.tree.map(np.asarray, params)
    project = lambda part, y: np.einsum("...d,dhk->...hk", y, p[part]["kernel"]) + p[part]["bias"]
    q, k, v = project("query", p["query_token"][0]), project("key", x), project("value", x)
    scores = np.exp(np.einsum("hk,bnhk->bhn", q, k) / np.sqrt(4))
    mixed = np.einsum("bhn,bnhk->bhk", scores / scores.sum(-1, keepdims=True), v)
    y = np.einsum("bhk,hkd->bd", mixed, p["out"]["kernel"]) + p["out"]["bias"]
    normed = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    normed = normed * p["norm_mlp"]["scale"] + p["norm_mlp"]["bias"]
    up = np.asarray(jax.nn.gelu(normed @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]))
    expected = y + up @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    out = module.apply({"params": params}, GRID, "ts").out
    np.testing.assert_allclose(out[:, 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_mean_then_norm_is_not_norm_then_mean():
    module, params = made("mean_then_norm")
    mean = np.asarray(GRID).mean(axis=(1, 2))
    normed = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-5)
    expected = normed * params["norm"]["scale"] + params["norm"]["bias"]
    out = module.apply({"params": params}, GRID, "ts").out[:, 0, 0]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    model = vivit.build({**TINY, "family": "joint", "readout": "mean_then_norm"})
    assert "norm" not in init(model)["stage_0"]


@pytest.mark.parametrize("family", ["joint", "factorised_encoder"])
@pytest.mark.parametrize("name", list(READOUTS))
def test_every_readout_has_a_rollout(name, family):
    model = vivit.build({**TINY, "family": family, "readout": name})
    params = init(model)
    maps = capture(model, params, CLIPS)
    np.testing.assert_allclose(maps.logits, model.apply({"params": params}, CLIPS), atol=1e-5)
    shares = np.asarray(rollout(maps))
    assert shares.shape == (2, 2, 4)
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), 1, atol=1e-5)
    weighs = name in ("mean_then_norm", "vjepa2_pool", "videoprism_pool", "map_head")
    assert all((given is not None) == weighs for given in maps.weights_of_readout)
