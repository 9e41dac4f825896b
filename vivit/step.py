"""The state of a training run and the two pure steps: training and evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vivit.model.network import Network
from vivit.model.settings import RATES
from vivit.parallel import place_on
from vivit.ramps import Factors, make_ramps
from vivit.settings import TrainSettings
from vivit.tasks import Objective

Params = Any
Leaf = Any  # an array; in a tree of shapes or of shardings, what describes it
Step = Callable[..., Any]
AUGMENTATION, PREPARATION = 2**31, 2**31 + 1  # folded into the run's key, as no step is


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "opt_state", "averaged", "rng"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """The complete state of training; the data's position follows from `step`.

    averaged: exponential moving average of params, or None. rng: raw key data, never changed;
    step i draws from `fold_in(rng, i)`.
    """

    step: Leaf
    params: Params
    opt_state: optax.OptState
    averaged: Params | None
    rng: Leaf

    @property
    def eval_params(self) -> Params:
        """The averaged parameters if the run averages them, else the parameters."""
        return self.params if self.averaged is None else self.averaged


def make_init(
    network: Network, optimizer: optax.GradientTransformation, *, average_decay: float | None
) -> Callable[[int], TrainState]:
    """Returns a jittable function: seed -> TrainState at step 0."""

    def init(seed):
        init_rng, rng = jax.random.split(jax.random.key(seed))
        params = network.init(init_rng, *network.example())["params"]
        averaged = None if average_decay is None else jax.tree.map(jnp.copy, params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            averaged=averaged,
            rng=jax.random.key_data(rng),
        )

    return init


def start_from(state: TrainState, params: Params) -> TrainState:
    """Returns a state whose parameters are replaced by others, placed on the same devices."""

    def place(new: Leaf, old: Leaf) -> Leaf:
        return old if new is old else place_on(np.array(new, old.dtype), old.sharding)

    params = jax.tree.map(place, params, state.params)
    averaged = None if state.averaged is None else jax.tree.map(jnp.copy, params)
    return replace(state, params=params, averaged=averaged)


def resume_optimizer(state: TrainState, saved: TrainState) -> TrainState:
    """Returns a state at its first step with the parameters and the optimiser of a saved one; the
    schedule of the learning rate starts again."""
    begins = lambda x: isinstance(x, optax.ScaleByScheduleState)
    choose = lambda old, new: new if begins(new) else old
    opt_state = jax.tree.map(choose, saved.opt_state, state.opt_state, is_leaf=begins)
    return replace(state, params=saved.params, averaged=saved.averaged, opt_state=opt_state)


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    task: Objective,
    settings: TrainSettings,
    *,
    augment: Callable[..., Mapping[str, jax.Array]] | None = None,
) -> Step:
    """Returns step(state, batch, *, axis_name=None) -> (state, metric sums).

    network: of the task, `task.network(model)`.
    augment: (batch, key, factors of its strengths) -> a batch with clips of the model's size; see
        vivit.data.augment.

    Under jit the batch is the global one. Under pmap it is a device's part and `axis_name` is the
    devices' axis: gradients and metrics are summed over it, and each device draws its own
    dropout. The loss is the mean over all valid clips of all devices, and of all parts of the batch
    if settings.accumulate has several.
    """
    if settings.label_smoothing and not task.heads:
        raise ValueError(f"train.label_smoothing={settings.label_smoothing}: there are no labels")
    if task.averages and settings.average_decay is None:
        raise ValueError(
            "the task learns from averaged parameters: set train.average_decay, such as 0.998"
        )
    if task.over_batch and settings.accumulate > 1:
        raise ValueError(
            f"train.accumulate={settings.accumulate}: the task's loss is one of the whole batch, "
            "not of its parts; set accumulate=1"
        )
    if "context" in settings.ramps and "context" not in task.strengths:
        raise ValueError("train.ramps: context is 0 in task.name; set context=0.5 there")
    ramps = make_ramps(settings.ramps, steps=settings.steps)

    def step(state: TrainState, batch: Mapping[str, jax.Array], *, axis_name=None):
        if axis_name and task.over_batch:
            raise ValueError(
                "parallel.mode='pmap': the task's loss is one of the whole batch, which no device "
                "has; use 'jit'"
            )
        total = partial(jax.lax.psum, axis_name=axis_name) if axis_name else lambda x: x
        key = jax.random.wrap_key_data(state.rng)
        factors = ramps(state.step)
        if augment is not None:
            batch = augment(batch, jax.random.fold_in(key, AUGMENTATION), factors)
        batch = task.prepare(network, batch, jax.random.fold_in(key, PREPARATION))
        trained = _at_strength(network, task, factors)
        teacher = state.eval_params
        smoothing = settings.label_smoothing * factors.get("label_smoothing", 1)
        rng = jax.random.fold_in(key, state.step)
        if axis_name:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        count = total(batch["valid"].sum())

        def loss(params, part, rng):
            outputs = task.outputs(trained, params, part, teacher=teacher, rngs={"dropout": rng})
            losses = task.losses(outputs, part, label_smoothing=smoothing)
            sums = task.sums(losses, outputs, part)
            return sums["loss"][0] / jnp.maximum(count, 1), sums

        gradient = partial(jax.grad(loss, has_aux=True), state.params)
        grads, sums = total(accumulated(gradient, batch, rng, parts=settings.accumulate))
        sums["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        sums |= {f"{name}_ramp": (factor, jnp.ones(())) for name, factor in factors.items()}
        decay = {"decay_factor": factors["weight_decay"]} if "weight_decay" in factors else {}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **decay)
        params = optax.apply_updates(state.params, updates)
        averaged: Any = state.averaged
        if settings.average_decay is not None:
            moved = (1 - settings.average_decay) * factors.get("averaging", 1)
            averaged = optax.incremental_update(params, averaged, moved)
        return replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, averaged=averaged
        ), sums

    return step


def _at_strength(network: Network, task: Objective, factors: Factors) -> Network:
    """Returns the network with what changes over the training times its factors: the model's rates
    of dropout and drop path, and the task's strengths."""
    config = network.config
    rates = {name: getattr(config, name) * factors[name] for name in RATES if name in factors}
    weights = {name: getattr(network, name) * factors[name]
               for name in task.strengths if name in factors}  # fmt: skip
    changed = {**weights, "config": replace(config, **rates)} if rates else weights
    return network.clone(**changed) if changed else network


def accumulated(gradient: Callable[..., Any], batch: Any, rng: Any, *, parts: int) -> Any:
    """Returns the sum of gradient(part, rng) over equal parts of a batch, one after another.

    With dropout each part draws its own.
    """
    if parts == 1:
        return gradient(batch, rng)
    # Every parts-th clip, so that each part is spread over all devices that the batch is on.
    split = jax.tree.map(
        lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total, numbered):
        i, part = numbered
        return jax.tree.map(jnp.add, total, gradient(part, jax.random.fold_in(rng, i))), None

    first = jax.tree.map(lambda x: x[0], split)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, first, rng)
    )
    return jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]


def make_eval_step(
    network: Network, task: Objective, *, predict_views: Callable[..., Any] | None = None
) -> Step:
    """Returns step(params, batch, *, axis_name=None) -> (metric sums, and of each clip of all
    devices its "labels", "valid", "indices" and what `task.kept` keeps, such as "logits").

    predict_views: (predict, clips [B, V, F, H, W, 3], extents) -> logits averaged over views; see
    vivit.data.views. None for batches of clips [B, F, H, W, 3].
    """

    def step(params: Params, batch: Mapping[str, jax.Array], *, axis_name=None):
        batch = task.prepare(network, batch, jax.random.key(0))  # always the same

        def predict(clips):
            return task.evaluated(network, params, {**batch, "clips": clips})

        if predict_views is None:
            outputs = predict(batch["clips"])
        else:
            outputs = predict_views(predict, batch["clips"], batch["extents"])
        sums = task.sums(task.losses(outputs, batch), outputs, batch)
        of_clips = {k: batch[k] for k in ("labels", "valid", "indices")} | task.kept(outputs)
        if axis_name:
            sums = jax.lax.psum(sums, axis_name)
            of_clips = jax.lax.all_gather(of_clips, axis_name, tiled=True)
        return sums, of_clips

    return step
