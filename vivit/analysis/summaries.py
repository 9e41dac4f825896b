"""Summaries of attention weights, by name: what of the weights is kept, made without all of them.

A summary is a function of one attention, jitted once for a pattern and shape. `capture(want=...)`
and `AttentionMaps.keep` make those that are named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vivit.analysis.attention import Attention, mean_over
from vivit.model.config import ModelConfig
from vivit.registry import OptionRegistry, Options, options_of


@dataclass(frozen=True)
class Summary:
    """A registered summary.

    make: (attention, config, **options) -> array -> its values, [B, ...]. arrays: name -> the names
    of its axes after the first one of clips: "head", "extra", "rank", and "t" and "s" of queries
    and keys, as "t_q".
    """

    make: Callable[..., dict[str, Array]]
    arrays: dict[str, tuple[str, ...]]
    options: Options = field(default_factory=Options)


SUMMARIES: OptionRegistry[Summary] = OptionRegistry("summary of attention")


def chosen(want: Sequence[str]) -> dict[str, Summary]:
    """Returns name -> entry of the summaries that are wanted.

    Raises ValueError for none, for an unknown one, and for two whose arrays have the same name.
    """
    if isinstance(want, str):
        raise ValueError(f"{want=} is to be a list of names, such as [{want!r}]")
    entries = {name: SUMMARIES[name] for name in want}
    if not entries:
        raise ValueError(f"want names no summary; there are {', '.join(sorted(SUMMARIES))}")
    made: dict[str, str] = {}
    for name, entry in entries.items():
        for array in entry.arrays:
            if array in made:
                raise ValueError(
                    f"{made[array]!r} and {name!r} both make the array {array!r}; want one of them"
                )
            made[array] = name
    return entries


def summary(**arrays: str):
    """Returns a decorator that registers a function as a summary of its name; see `Summary`.

    arrays: name of an array -> its axes, separated by spaces. A function of a single array may
    return it as it is. Keyword-only arguments are options, each with a default.
    """

    def register(make):
        def make_all(attention: Attention, config: ModelConfig, **options) -> dict[str, Array]:
            made = make(attention, config, **options)
            return made if isinstance(made, dict) else {next(iter(arrays)): made}

        axes = {name: tuple(text.split()) for name, text in arrays.items()}
        SUMMARIES.add(make.__name__, Summary(make_all, axes, options_of(make)))
        return make

    return register


@summary(full="head t_q s_q t_k s_k")
def full(attention: Attention, config: ModelConfig) -> Array:
    """All weights: h·(T·S)² numbers per clip."""
    return attention.weights()


@summary(over_time="head t_q t_k")
def over_time(attention: Attention, config: ModelConfig) -> Array:
    """Weights between time steps, summed over keys and averaged over queries in space."""
    return attention.over_time()


@summary(over_space="head s_q s_k")
def over_space(attention: Attention, config: ModelConfig) -> Array:
    """Weights between places, summed over keys and averaged over queries in time."""
    t, s = attention.clip_grid
    sums = attention.sums(np.broadcast_to(np.arange(s), (t, s)))[..., :s]
    return mean_over(attention, sums, "t")


@summary(between="head box_q box_k")
def between(
    attention: Attention, config: ModelConfig, *, steps: int = 4, rows: int = 4, columns: int = 4
) -> Array:
    """Weights between boxes of tokens, summed over the keys of a box and averaged over the queries
    of one; see `boxes_of`."""
    t, s = attention.clip_grid
    boxes = boxes_of((t, *attention.layout.space), (steps, rows, columns))
    count = int(boxes.max()) + 1
    sums = attention.sums(boxes)[..., :count].reshape(*attention.q.shape[:1], -1, t * s, count)
    seen = attention.seen().reshape(-1, 1, t * s, 1) * jax.nn.one_hot(boxes.ravel(), count)
    total = jnp.maximum(seen.sum(axis=2), 1)
    return jnp.einsum("BhNK,BNQ->BhQK", sums, seen[:, 0]) / total[..., None]


def boxes_of(grid: tuple[int, int, int], boxes: tuple[int, int, int]) -> np.ndarray:
    """Returns the number of each token's box [T, S], in row-major order. Each axis of the grid is
    cut into so many parts, as equal as can be; one that has fewer places, into these."""
    counts = [min(n, of) for n, of in zip(boxes, grid, strict=True)]
    of_axis = [np.arange(n) * count // n for n, count in zip(grid, counts, strict=True)]
    t, y, x = np.meshgrid(*of_axis, indexing="ij")
    return ((t * counts[1] + y) * counts[2] + x).reshape(grid[0], -1)


@summary(to_extra="head extra t_q s_q")
def to_extra(attention: Attention, config: ModelConfig) -> Array:
    """What of each query's weights goes to class tokens and registers."""
    return jnp.moveaxis(attention.sums(np.zeros(attention.clip_grid, int))[..., 1:], -1, 2)


@summary(of_extra="head extra t_k s_k")
def of_extra(attention: Attention, config: ModelConfig) -> Array:
    """Where class tokens and registers look; see `Attention.rows_of_extra`."""
    return attention.rows_of_extra()


@summary(to_high_norm="head t_q s_q")
def to_high_norm(attention: Attention, config: ModelConfig, *, times: float = 3.0) -> Array:
    """What of each query's weights goes to tokens of the clip whose norm, as the block gets them,
    is more than `times` the median: the outliers of Darcet et al. (2309.16588), section 2.1, whose
    threshold is a number for one model."""
    assert attention.token_norms is not None
    norms = attention.spread(attention.token_norms)
    seen = attention.on_stage(attention.seen()) > 0  # the clip's, without extra tokens
    median = jnp.nanmedian(jnp.where(seen, norms, jnp.nan), axis=(1, 2), keepdims=True)
    marks = (seen & (norms > times * median)).astype(jnp.float32)[..., None, None]
    sent = attention.mix(jnp.broadcast_to(marks, (*attention.shape, 1)))
    return jnp.moveaxis(attention.on_clip(sent)[..., 0], 3, 1)


@summary(sinks="head")
def sinks(attention: Attention, config: ModelConfig, *, part: float = 0.02) -> Array:
    """The mean weight that the keys of the clip which get the most have together: this part of all
    of them, and at least one. Of even weights it is that part."""
    received = attention.received()
    received = received.reshape(*received.shape[:2], -1)
    keys = max(1, round(part * received.shape[-1]))
    return jax.lax.top_k(received, keys)[0].sum(axis=-1)


@summary(profile="head offset")
def profile(attention: Attention, config: ModelConfig) -> Array:
    """The mean weight on the time step that is -(T - 1), ..., T - 1 after that of the query, over
    the queries' time steps that have one."""
    between = attention.over_time()
    t = between.shape[-1]
    means = [jnp.diagonal(between, offset, 2, 3).mean(axis=-1) for offset in range(1 - t, t)]
    return jnp.stack(means, axis=-1)


@summary(head_similarity="head other")
def head_similarity(attention: Attention, config: ModelConfig) -> Array:
    """The cosine between the maps of two heads, over all queries and keys of the clip."""
    t, s = attention.clip_grid
    b, h = attention.q.shape[0], attention.q.shape[3]

    def add(total: Array, weights: Array, numbers: Array) -> tuple[Array, None]:
        weights = jnp.where(numbers < t * s, weights, 0)  # without extra tokens
        return total + jnp.einsum("BTShc,BTSgc->Bhg", weights, weights), None

    every = np.arange(t * s).reshape(t, s)
    total, _ = attention.fold(add, jnp.zeros((b, h, h)), every)
    sizes = jnp.sqrt(jnp.diagonal(total, axis1=1, axis2=2))
    return total / jnp.maximum(sizes[:, :, None] * sizes[:, None], 1e-12)


@summary(entropy="head t_q s_q")
def entropy(attention: Attention, config: ModelConfig) -> Array:
    """Entropy of each query's weights, as parts of their sum, in nats, with those of class tokens
    and registers; the class tokens of several time steps count as one key."""
    t, s = attention.clip_grid
    b, h = attention.q.shape[0], attention.q.shape[3]

    def add(sums: tuple[Array, Array], weights: Array, _: Array) -> tuple[Any, None]:
        total, logs = sums
        weights = jnp.abs(weights)  # marks may come back as -0.0
        logs = logs + jax.scipy.special.xlogy(weights, weights).sum(axis=-1)
        return (total + weights.sum(axis=-1), logs), None

    every = np.arange(t * s).reshape(t, s)
    (total, logs), _ = attention.fold(add, (jnp.zeros((b, t, s, h)),) * 2, every)
    total = jnp.where(total == 0, 1, total)  # of tokens that were not seen
    return jnp.moveaxis(jnp.log(total) - logs / total, 3, 1)


@summary(distance_in_space="head t_q s_q", distance_in_time="head t_q s_q")
def distance(attention: Attention, config: ModelConfig) -> dict[str, Array]:
    """Mean distance of each query to its keys, by weight: in space in pixels, between the middles
    of tokens, and in time in frames of the clip. ViT (2010.11929), section 4.5, for video. What
    goes to class tokens and registers has no distance and does not count."""
    t, s = attention.clip_grid
    frames, height, width = config.tubelet
    grid = replace(attention.layout.bare, steps=t)  # of all tokens, also where some were not seen
    at = np.asarray(grid.coordinates()) * (frames, height, width)
    places, steps = at[0, :, 1:], at[:, 0, 0]
    apart = jnp.asarray(np.linalg.norm(places[:, None] - places, axis=-1))
    between = jnp.asarray(np.abs(steps[:, None] - steps))
    to_places = attention.sums(np.broadcast_to(np.arange(s), (t, s)))[..., :s]
    to_steps = attention.sums(np.broadcast_to(np.arange(t)[:, None], (t, s)))[..., :t]
    total = to_steps.sum(axis=-1)
    total = jnp.where(total == 0, 1, total)
    return {
        "distance_in_space": jnp.einsum("BhTSP,SP->BhTS", to_places, apart) / total,
        "distance_in_time": jnp.einsum("BhTSU,TU->BhTS", to_steps, between) / total,
    }


@summary(top_weight="head t_q s_q rank", top_place="head t_q s_q rank")
def top(attention: Attention, config: ModelConfig, *, keys: int = 8) -> dict[str, Array]:
    """The keys with the largest weights of each query, from the largest: their weights, and their
    places t·S + s on the stage's grid; all keys of a stage that has fewer. Class tokens and
    registers are not among them."""
    t, s = attention.clip_grid
    b, h = attention.q.shape[0], attention.q.shape[3]
    keys = min(keys, t * s)

    def merge(best: tuple[Array, Array], weights: Array, numbers: Array):
        kept, places = best
        weights = jnp.where(numbers < t * s, weights, -1)
        numbers = jnp.broadcast_to(numbers, weights.shape)
        largest, at = jax.lax.top_k(jnp.concatenate([kept, weights], axis=-1), keys)
        everything = jnp.concatenate([places, numbers], axis=-1)
        return (largest, jnp.take_along_axis(everything, at, axis=-1)), None

    start = (jnp.full((b, t, s, h, keys), -1.0), jnp.zeros((b, t, s, h, keys), jnp.int32))
    every = np.arange(t * s).reshape(t, s)
    (weights, places), _ = attention.fold(merge, start, every)
    return {"top_weight": jnp.moveaxis(weights, 3, 1), "top_place": jnp.moveaxis(places, 3, 1)}
