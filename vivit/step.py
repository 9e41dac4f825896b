"""The state of a training run and the two pure steps: training and evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vivit.model import ViViT
from vivit.objective import cross_entropy, metric_sums

Params = Any
Leaf = Any  # an array; in a tree of shapes or of shardings, what describes it
Step = Callable[..., Any]
AUGMENTATION = 2**31  # folded into the run's key, as no step is


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "opt_state", "averaged", "rng"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on, besides its data's position, which is the step.

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
        return self.params if self.averaged is None else self.averaged


def make_init(
    model: ViViT, optimizer: optax.GradientTransformation, *, average_decay: float | None
) -> Callable[[int], TrainState]:
    """A jittable seed -> TrainState at step 0."""

    def init(seed):
        init_rng, rng = jax.random.split(jax.random.key(seed))
        clips = jnp.zeros((1, *model.clip, 3))
        params = model.init(init_rng, clips)["params"]
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
    """A state at step 0 with these parameters, placed as its own were."""
    place = lambda new, old: jax.device_put(jnp.asarray(new, old.dtype, copy=True), old.sharding)
    averaged = None if state.averaged is None else jax.tree.map(place, params, state.averaged)
    return replace(state, params=jax.tree.map(place, params, state.params), averaged=averaged)


def make_train_step(
    model: ViViT,
    optimizer: optax.GradientTransformation,
    *,
    label_smoothing: float,
    average_decay: float | None,
    augment: Callable[..., Mapping[str, jax.Array]] | None = None,
) -> Step:
    """step(state, batch, *, axis_name=None) -> (state, metric sums).

    augment: (batch, key) -> batch, of clips as the model takes them; see vivit.data.augment.

    Under jit the batch is the global one. Under pmap it is a device's part and `axis_name` the
    devices' axis: gradients and metrics are summed over it, and each device draws its own
    dropout. The loss is the mean over all clips of all devices whose mask is 1.
    """

    def step(state: TrainState, batch: Mapping[str, jax.Array], *, axis_name=None):
        total = partial(jax.lax.psum, axis_name=axis_name) if axis_name else lambda x: x
        key = jax.random.wrap_key_data(state.rng)
        if augment is not None:
            batch = augment(batch, jax.random.fold_in(key, AUGMENTATION))
        rng = jax.random.fold_in(key, state.step)
        if axis_name:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        count = total(batch["mask"].sum())

        def loss(params):
            logits = model.apply({"params": params}, batch["clips"], rngs={"dropout": rng})
            losses = cross_entropy(logits, batch["labels"], label_smoothing=label_smoothing)
            if "share" in batch:  # clips that were mixed: of their own label and of another's
                other = cross_entropy(
                    logits, batch["other_labels"], label_smoothing=label_smoothing
                )
                losses = batch["share"] * losses + (1 - batch["share"]) * other
            sums = metric_sums(losses, logits, batch["labels"], batch["mask"])
            return sums["loss"][0] / jnp.maximum(count, 1), sums

        grads, sums = jax.grad(loss, has_aux=True)(state.params)
        grads, sums = total(grads), total(sums)
        sums["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = state.averaged
        if average_decay is not None:
            averaged = optax.incremental_update(params, averaged, 1 - average_decay)
        return replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, averaged=averaged
        ), sums

    return step


def make_eval_step(
    model: ViViT, *, classes: int, through: Callable[..., Any] | None = None
) -> Step:
    """step(params, batch, *, axis_name=None) -> (metric sums, confusion counts [label, class]).

    through: (model, clips [B, V, F, H, W, 3], extents) -> logits, of clips in several views; see
    vivit.data.views.
    """

    def step(params: Params, batch: Mapping[str, jax.Array], *, axis_name=None):
        see = lambda clips: model.apply({"params": params}, clips)
        if through is None:
            logits = see(batch["clips"])
        else:
            logits = through(see, batch["clips"], batch["extents"])
        labels, mask = batch["labels"], batch["mask"]
        sums = metric_sums(cross_entropy(logits, labels), logits, labels, mask)
        confusion = jnp.zeros((classes, classes)).at[labels, logits.argmax(axis=-1)].add(mask)
        out = (sums, confusion)
        return jax.lax.psum(out, axis_name) if axis_name else out

    return step
