"""The recipes of docs/design.md, run as they stand: what they register is what runs.

Each is a module that `config.imports` names; a model with it is trained by the command line's
function, captured and rolled out.
"""

import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit
from tests.conftest import ROOT
from tests.test_model import CLIPS, TINY, init, logits
from vivit.analysis import capture, rollout
from vivit.attention import KERNELS, PATTERNS
from vivit.attention.reductions import REDUCTIONS
from vivit.data.augment import AUGMENTATIONS
from vivit.model.embed import EMBEDDINGS, POSITION_EMBEDDINGS
from vivit.model.readout import READOUTS
from vivit.model.settings import FAMILIES, SIZES
from vivit.optim import OPTIMIZERS, SCHEDULES
from vivit.tasks import TASKS
from vivit.train import train

REGISTRIES = (
    PATTERNS, KERNELS, REDUCTIONS, READOUTS, POSITION_EMBEDDINGS, EMBEDDINGS, FAMILIES, SIZES,
    OPTIMIZERS, SCHEDULES, AUGMENTATIONS, TASKS,
)  # fmt: skip
PAGE = (ROOT / "docs/design.md").read_text()
RECIPES = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def sweep" not in b]
ONE_LAYER = {**TINY, "depth": 1, "family": "joint"}


@pytest.fixture(scope="module")
def recipes():
    """The names that the recipes define, registered for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in REGISTRIES:
            patch.setattr(registry, "_items", dict(registry._items))
        module = types.ModuleType("my_parts")
        for text in RECIPES:
            exec(text, vars(module))
        patch.setitem(sys.modules, "my_parts", module)
        yield vars(module)


def stages(**change):
    return [{"depth": 1, "attentions": ("space",), "pool": "mean", **change}]


MODELS = {
    "next_step": {"family": "next_step"},
    "halves": {"kernel": "halves"},
    "every_other": {"stages": stages(reduce="every_other(3)")},
    "softmax_pool": {"readout": "softmax_pool"},
    "gated_pool": {"readout": "gated_pool"},
    "ramp": {"position": "ramp"},
    "first_frame": {"embedding": "first_frame"},
    "two_stages": {"family": "two_stages(temporal_depth=2)"},
}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_fresh_part_is_what_a_model_runs(recipes, name, monkeypatch):
    """And nothing else: each part is replaced by one that counts its calls."""
    model = vivit.build({**ONE_LAYER, **MODELS[name]})
    params = init(model)
    maps = capture(model, params, CLIPS)
    np.testing.assert_allclose(maps.logits, logits(model, params), atol=1e-4)
    np.testing.assert_allclose(rollout(maps).sum(axis=(1, 2)), 1, atol=1e-5)
    plain = vivit.build({**ONE_LAYER, **({"stages": stages()} if name == "every_other" else {})})
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    if shapes(params) == shapes(init(plain)):
        assert not np.allclose(maps.logits, logits(plain, params), atol=1e-4)


def test_a_fresh_pattern_by_hand(recipes):
    q = jnp.arange(4.0).reshape(1, 4, 1, 1, 1)
    out = recipes["next_step"](q, q, q, lambda q, k, v: v)
    assert out.ravel().tolist() == [1, 2, 3, 0]


def test_a_fresh_reduction_gives_its_own_tokens_and_maps(recipes):
    model = vivit.build({**ONE_LAYER, "stages": stages(reduce="every_other(3)")})
    maps = capture(model, init(model), CLIPS)
    (attention,) = maps.attentions
    assert attention.q.shape[2] == 2  # of 4 spatial tokens
    kept = np.asarray(maps.sources[0, -1])
    np.testing.assert_array_equal(kept[0, 0], np.eye(4)[::3])
    seen = np.asarray(rollout(maps)).sum(axis=(0, 1))
    assert (seen[[1, 2]] == 0).all()
    assert (seen[[0, 3]] > 0).all()
    with pytest.raises(ValueError, match=r"'every_other' are written like every_other\(stride=2\)"):
        vivit.build({**ONE_LAYER, "stages": stages(reduce="every_other(tokens=3)")})


def test_a_fresh_readout_has_the_rollout_of_its_gradient(recipes):
    model = vivit.build({**ONE_LAYER, "readout": "softmax_pool"})
    maps = capture(model, init(model), CLIPS)
    (pooled,) = maps.pooled
    gradient = jax.grad(lambda x: recipes["softmax_pool"](x, "ts").sum())(pooled)
    weights = np.abs(gradient).mean(axis=-1)
    expected = rollout(maps, residual=0.999999)
    np.testing.assert_allclose(
        expected, weights / weights.sum(axis=(1, 2), keepdims=True), atol=1e-4
    )


def test_fresh_sizes_and_families_have_their_own_numbers(recipes):
    model = vivit.build(
        {"size": "Mu/4x2", "clip": (4, 8, 8), "classes": 5, "family": "two_stages(3)"}
    )
    assert [stage.depth for stage in model.config.stages] == [2, 3]
    assert model.config.width == 32


TRAINED = (
    "--config.imports=('my_parts',)",
    "--config.model.family=two_stages",
    "--config.model.readout=softmax_pool",
    "--config.model.position=ramp",
    "--config.model.embedding=first_frame",
    "--config.model.kernel=halves",
    "--config.optim.name=signs(scale=0.5)",
    "--config.optim.schedule=halving(every=2)",
    "--config.optim.lr=0.001",
    "--config.optim.warmup_fraction=0",
    "--config.augment.extra=('darken(0.9)',)",
    "--config.task.name=focal",
    "--config.train.steps=4",
)


def test_fresh_parts_train_by_the_command_line(recipes, tmp_path, tiny_config):
    """A sign update changes every parameter by a known amount, or not at all."""
    config = tiny_config(*TRAINED)
    state = train(config, tmp_path / "run")
    rows = (tmp_path / "run/metrics.jsonl").read_text()
    assert '"lr": 0.0005' in rows  # at the third and fourth training step
    loss = json.loads(rows.splitlines()[0])["loss"]  # of two steps; the first has logits of zero
    assert loss == pytest.approx((1 - 1 / 8) ** 2 * np.log(8), rel=0.02)
    head = np.abs(np.asarray(state.params["head"]["bias"]))
    assert set(np.round(head / 0.00025).astype(int).ravel()) <= {0, 2, 4, 6}
    without_darkening = [flag for flag in TRAINED if "augment" not in flag]
    other = train(tiny_config(*without_darkening), tmp_path / "plain")
    assert not np.allclose(state.params["head"]["kernel"], other.params["head"]["kernel"])
