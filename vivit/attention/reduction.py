"""Token reduction: fewer tokens a step, each a weighted mean of places.

A reduction is a matrix `source` [B, T, R, S] whose rows sum to 1: token r of a step is
source[r] @ tokens. It keeps the grid's book: `vivit.analysis` puts maps of reduced tokens back on
the places that they came from. Reductions work within each step, so steps stay what they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.axes import Grid, NewGrid
from vivit.registry import OptionRegistry, Options

Source = Float[Array, "B T R S"]
Sizes = Float[Array, "B T S"]


@dataclass(frozen=True)
class Reduction:
    """A registered reduction.

    left: (places, layer of the stage, **options) -> tokens a step after that layer; ValueError
        where it can't be. Layer -1 is the stage's start.
    source: the function that makes the matrix. each_layer: in every block, between attention and
        MLP, instead of once before the first. slots: whether token r means the same in every step,
        so that patterns may mix along time.
    """

    name: str
    source: Callable[..., Source]
    left: Callable[..., int]
    each_layer: bool = False
    slots: bool = False
    options: Options = field(default_factory=Options)


REDUCTIONS: OptionRegistry[Reduction] = OptionRegistry("reduction")


def apply_source(source: Source, x: Grid) -> NewGrid:
    return jnp.einsum("BTRS,BTSD->BTRD", source.astype(x.dtype), x)


def _keep_tokens(places: int, layer: int, *, tokens: int) -> int:
    if tokens > places:
        raise ValueError(f"{tokens=} of a reduction are more than a step's {places} places")
    return tokens


def token_learner(scores: Float[Array, "B T S R"]) -> Source:
    """Learned tokens, each a softmax-weighted mean of a step's places.

    TokenLearner (2106.11297), section 3, in the form of its second release (v1.1): scores are an
    MLP of the normed tokens. They come from the caller, who owns the parameters.
    """
    return jax.nn.softmax(jnp.swapaxes(scores, 2, 3).astype(jnp.float32), axis=-1)


REDUCTIONS.add(
    "token_learner",
    Reduction(
        "token_learner", token_learner, _keep_tokens, slots=True, options=Options({"tokens": 8})
    ),
)


def random_dropping(key: Array, shape: tuple[int, int, int], *, tokens: int) -> Source:
    """A random `tokens` of every step's places, in their order; shape is [B, T, S].

    PatchDropout (2208.07220), but in evaluation too, where the places are the same for all clips
    and steps' places drawn once; the baseline that most selectors of video tokens don't beat
    (2411.13626).
    """
    order = jnp.argsort(jax.random.uniform(key, shape), axis=-1)
    kept = jnp.sort(order[..., :tokens], axis=-1)
    return jax.nn.one_hot(kept, shape[-1])


REDUCTIONS.add(
    "random_dropping",
    Reduction("random_dropping", random_dropping, _keep_tokens, options=Options({"tokens": 8})),
)


def token_merging(keys: Float[Array, "B T S k"], sizes: Sizes, *, remove: int) -> Source:
    """Merges the `remove` most alike pairs of a step's tokens, by their keys.

    Token merging (2210.09461), section 3: tokens are dealt alternately into two sets, each of the
    first set is tied to its most alike in the second (cosine similarity of keys, averaged over
    heads), the `remove` strongest ties are merged as means weighted by size. Its gradient is not
    taken through the choice.
    """
    b, t, s, _ = keys.shape
    keys = jax.lax.stop_gradient(keys.astype(jnp.float32))
    keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True).clip(1e-12)
    first, second = keys[:, :, ::2], keys[:, :, 1::2]
    alike = jnp.einsum("BTik,BTjk->BTij", first, second)
    partner, strength = alike.argmax(axis=-1), alike.max(axis=-1)
    order = jnp.argsort(-strength, axis=-1)
    merged, kept = order[..., :remove], jnp.sort(order[..., remove:], axis=-1)
    # Tokens of the result: those of the first set that stay, then the second set.
    stay = jax.nn.one_hot(2 * kept, s)
    base = jnp.broadcast_to(jax.nn.one_hot(2 * jnp.arange(s // 2) + 1, s), (b, t, s // 2, s))
    target = jax.nn.one_hot(jnp.take_along_axis(partner, merged, axis=-1), s // 2)  # [B,T,r,s//2]
    joined = jnp.einsum("BTrj,BTrS->BTjS", target, jax.nn.one_hot(2 * merged, s))
    members = jnp.concatenate([stay, base + joined], axis=2)
    return weigh(members, sizes)


def weigh(members: Source, sizes: Sizes) -> Source:
    """Rows that sum to 1, from what belongs to what and the places that each token stands for."""
    source = members * jax.lax.stop_gradient(sizes)[:, :, None, :]
    return source / source.sum(axis=-1, keepdims=True)


def add_sizes(source: Source, sizes: Sizes) -> Float[Array, "B T R"]:
    """The places that each merged token stands for."""
    return jnp.einsum("BTRS,BTS->BTR", (source > 0).astype(sizes.dtype), sizes)


def _after_merging(places: int, layer: int, *, remove: int) -> int:
    for _ in range(layer + 1):
        if remove > places // 2 or places - remove < 1:
            raise ValueError(
                f"token_merging({remove}) a layer leaves nothing to merge: {places} tokens are "
                f"left before layer {layer}, of which at most {places // 2} can go"
            )
        places -= remove
    return places


REDUCTIONS.add(
    "token_merging",
    Reduction(
        "token_merging",
        token_merging,
        _after_merging,
        each_layer=True,
        options=Options({"remove": 8}),
    ),
)

EXTRA = 8  # further channels of queries and keys: cuDNN wants multiples of 8


def add_log_sizes(q: Any, k: Any, sizes: Sizes) -> tuple[Any, Any]:
    """Queries and keys whose scores are larger by the logarithm of each key's size.

    Proportional attention, token merging (2210.09461), equation 1: a token that stands for s
    places weighs as s equal ones. One further channel carries it, so it goes through every
    pattern and every kernel as it is.
    """
    channels = q.shape[-1]
    wider = ((0, 0),) * 4 + ((0, EXTRA),)
    grow = ((channels + EXTRA) / channels) ** 0.5  # kernels scale by the channels they see
    q = jnp.pad(q * grow, wider).at[..., channels].set(1)
    log_sizes = jnp.log(sizes) * (channels + EXTRA) ** 0.5
    k = jnp.pad(k, wider).at[..., channels].set(log_sizes[..., None].astype(k.dtype))
    return q, k
