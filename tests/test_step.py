import jax
import jax.numpy as jnp
import numpy as np

import vivit
from tests.test_model import TINY
from tests.test_optim import make
from vivit.settings import TrainSettings
from vivit.step import make_init, make_train_step
from vivit.tasks import Classify


def test_each_step_draws_its_own_dropout_and_repeats_it():
    model = vivit.build({**TINY, "dropout": 0.5, "depth": 1, "family": "factorised_encoder(1)"})
    optimizer, _ = make(lr=0.0)
    step = jax.jit(make_train_step(model, optimizer, Classify({"label": 5}), TrainSettings()))
    state = jax.jit(make_init(model, optimizer, average_decay=None))(0)
    head = jax.random.normal(jax.random.key(1), state.params["head"]["kernel"].shape)
    state.params["head"]["kernel"] = head  # zero at first: the loss would not see dropout
    rng = np.random.default_rng(0)
    batch = {
        "clips": jnp.asarray(rng.integers(0, 256, (4, *model.config.clip, 3)), jnp.uint8),
        "labels": jnp.zeros(4, jnp.int32),
        "valid": jnp.ones(4),
    }
    first, sums = step(state, batch)
    _, again = step(state, batch)
    _, second = step(first, batch)
    assert int(first.step) == 1
    assert float(sums["loss"][0]) == float(again["loss"][0])
    assert float(sums["loss"][0]) != float(second["loss"][0])
    assert float(sums["loss"][1]) == 4
