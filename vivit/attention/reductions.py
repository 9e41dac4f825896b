"""Token reduction: fewer tokens per time step, each a weighted mean of spatial tokens.

A reduction is a matrix `source` [B, T, R, S] whose rows sum to 1: token r of a time step is
source[r] @ tokens. It records which grid positions each token came from, so `vivit.analysis` puts
maps of reduced tokens back on the grid. Reductions work within each time step.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit.axes import Grid, HeadGrid, KeyGrid, NewGrid
from vivit.registry import OptionRegistry, Options, keyword_defaults

Source = Float[Array, "B T R S"]
Sizes = Float[Array, "B T S"]

# What a reduction may take, by keyword-only arguments of these names: the tokens x [B, T, S, D];
# scores [B, T, S, R] by an MLP of the normed tokens, whose parameters the model owns; keys
# [B, T, S, k] of the layer's attention, averaged over heads, and sizes [B, T, S], how many spatial
# tokens each token stands for (both only in a reduction of each layer); a random key, None in
# evaluation.
INPUTS = ("x", "scores", "keys", "sizes", "key")


@dataclass(frozen=True)
class Reduction:
    """A registered reduction.

    matrix: its inputs and options, by keyword -> the matrix `source`.
    inputs: which of INPUTS it takes.
    tokens_left: (spatial tokens, layer of the stage, **options) -> tokens per time step after that
        layer; raises ValueError where that cannot be. Layer -1 is the start of the stage.
    learned_scores: options -> R of the learned scores that it takes, 0 for none.
    each_layer: whether it runs in every block, between attention and MLP, instead of once before
        the first block.
    slots: whether token r means the same in every time step, so that patterns may mix along time.
    """

    name: str
    matrix: Callable[..., Source]
    inputs: tuple[str, ...]
    tokens_left: Callable[..., int]
    learned_scores: Callable[..., int] = lambda **options: 0
    each_layer: bool = False
    slots: bool = False
    options: Options = field(default_factory=Options)

    def __call__(self, **inputs: Any) -> Source:
        """Returns the matrix; of the inputs it takes those that it declares."""
        return self.matrix(**{name: inputs[name] for name in self.inputs}, **self.options)

    @property
    def scores_per_token(self) -> int:
        return self.learned_scores(**self.options)


REDUCTIONS: OptionRegistry[Reduction] = OptionRegistry("reduction")


def reduction(
    name: str,
    *,
    tokens_left: Callable[..., int],
    learned_scores: Callable[..., int] = lambda **options: 0,
    each_layer: bool = False,
    slots: bool = False,
) -> Callable[[Callable[..., Source]], Callable[..., Source]]:
    """Returns a decorator that registers a function as a reduction; any stage may then name it.

    The function's keyword-only arguments without a default are its inputs, the others are options.
    See Reduction for the arguments. Raises ValueError for an input that it cannot get.
    """

    def register(matrix: Callable[..., Source]) -> Callable[..., Source]:
        arguments = keyword_defaults(matrix)
        inputs = tuple(k for k, v in arguments.items() if v is inspect.Parameter.empty)
        options = Options({k: v for k, v in arguments.items() if k not in inputs})
        available = ("x", "keys", "sizes", "key") if each_layer else ("x", "scores", "key")
        unknown = [k for k in inputs if k not in available]
        if unknown:
            raise ValueError(
                f"reduction {name!r} takes {', '.join(unknown)}; with {each_layer=} there are: "
                f"{', '.join(available)}; options need a default"
            )
        entry = Reduction(
            name, matrix, inputs, tokens_left, learned_scores, each_layer, slots, options
        )
        REDUCTIONS.add(name, entry)
        return matrix

    return register


# What a stage without a reduction has.
NO_REDUCTION = Reduction("", lambda x: x, (), lambda spatial_tokens, layer: spatial_tokens)


def apply_source(source: Source, x: Grid) -> NewGrid:
    """Returns the reduced tokens [B, T, R, D] of a grid."""
    return jnp.einsum("BTRS,BTSD->BTRD", source.astype(x.dtype), x)


def keep_tokens(spatial_tokens: int, layer: int, *, tokens: int) -> int:
    """Returns `tokens`, for reductions to that number. Raises ValueError if there are fewer."""
    if tokens > spatial_tokens:
        raise ValueError(
            f"{tokens=} of a reduction are more than a time step's {spatial_tokens} spatial tokens"
        )
    return tokens


@reduction(
    "token_learner", tokens_left=keep_tokens, learned_scores=lambda tokens: tokens, slots=True
)
def token_learner(*, scores: Float[Array, "B T S R"], tokens: int = 8) -> Source:
    """Learned tokens, each a softmax-weighted mean of a time step's spatial tokens.

    TokenLearner (2106.11297), section 3, in the form of its second release (v1.1): scores are an
    MLP of the normed tokens.
    """
    return jax.nn.softmax(jnp.swapaxes(scores, 2, 3).astype(jnp.float32), axis=-1)


@reduction("random_dropping", tokens_left=keep_tokens)
def random_dropping(*, x: Grid, key: Array | None, tokens: int = 8) -> Source:
    """A random `tokens` of every time step's spatial tokens, in their order.

    PatchDropout (2208.07220), but in evaluation too, where all clips keep the same spatial tokens,
    so that evaluation is a function; the baseline that most selectors of video tokens do not beat
    (2411.13626).
    """
    b, t, s, _ = x.shape
    draws = jax.random.uniform(
        jax.random.key(0) if key is None else key, (1 if key is None else b, t, s)
    )
    kept = jnp.sort(jnp.argsort(draws, axis=-1)[..., :tokens], axis=-1)
    return jnp.broadcast_to(jax.nn.one_hot(kept, s), (b, t, tokens, s))


def _after_merging(spatial_tokens: int, layer: int, *, remove: int) -> int:
    for _ in range(layer + 1):
        if remove > spatial_tokens // 2 or spatial_tokens - remove < 1:
            raise ValueError(
                f"token_merging({remove}) per layer leaves nothing to merge: {spatial_tokens} "
                f"tokens are left before layer {layer}, of which at most {spatial_tokens // 2} can "
                "be merged"
            )
        spatial_tokens -= remove
    return spatial_tokens


@reduction("token_merging", tokens_left=_after_merging, each_layer=True)
def token_merging(*, keys: Float[Array, "B T S k"], sizes: Sizes, remove: int = 8) -> Source:
    """Merges the `remove` most similar pairs of a time step's tokens, by their keys.

    Token merging (2210.09461), section 3: tokens go alternately into two sets, each of the first
    set is paired with the most similar one of the second (cosine similarity of keys, averaged over
    heads), and the `remove` most similar pairs are merged as means weighted by size. No gradient is
    taken through the choice.
    """
    b, t, s, _ = keys.shape
    keys = jax.lax.stop_gradient(keys.astype(jnp.float32))
    keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True).clip(1e-12)
    first, second = keys[:, :, ::2], keys[:, :, 1::2]
    similarity = jnp.einsum("BTik,BTjk->BTij", first, second)
    partner, strength = similarity.argmax(axis=-1), similarity.max(axis=-1)
    order = jnp.argsort(-strength, axis=-1)
    merged, kept = order[..., :remove], jnp.sort(order[..., remove:], axis=-1)
    # Tokens of the result: those of the first set that stay, then the second set.
    stay = jax.nn.one_hot(2 * kept, s)
    base = jnp.broadcast_to(jax.nn.one_hot(2 * jnp.arange(s // 2) + 1, s), (b, t, s // 2, s))
    target = jax.nn.one_hot(jnp.take_along_axis(partner, merged, axis=-1), s // 2)  # [B,T,r,s//2]
    joined = jnp.einsum("BTrj,BTrS->BTjS", target, jax.nn.one_hot(2 * merged, s))
    members = jnp.concatenate([stay, base + joined], axis=2)
    return normalise_rows(members, sizes)


def normalise_rows(members: Source, sizes: Sizes) -> Source:
    """Returns rows that sum to 1, from each token's members and the members' sizes."""
    source = members * jax.lax.stop_gradient(sizes)[:, :, None, :]
    return source / source.sum(axis=-1, keepdims=True)


def add_sizes(source: Source, sizes: Sizes) -> Float[Array, "B T R"]:
    """Returns how many spatial tokens each merged token stands for."""
    return jnp.einsum("BTRS,BTS->BTR", (source > 0).astype(sizes.dtype), sizes)


SIZE_CHANNELS = 8  # additional channels of queries and keys: cuDNN wants multiples of 8


def add_log_sizes(
    q: HeadGrid, k: KeyGrid, sizes: Sizes
) -> tuple[Float[Array, "B T S h wider"], Float[Array, "B T S g wider"]]:
    """Returns queries and keys whose scores are larger by the logarithm of each key's size.

    Proportional attention, token merging (2210.09461), equation 1: a token that stands for s
    others weighs as s equal ones. One additional channel carries it, so it goes through every
    pattern and every kernel.
    """
    channels = q.shape[-1]
    wider = ((0, 0),) * 4 + ((0, SIZE_CHANNELS),)
    grow = ((channels + SIZE_CHANNELS) / channels) ** 0.5  # kernels scale by the channels they see
    q = jnp.pad(q * grow, wider).at[..., channels].set(1)
    log_sizes = jnp.log(sizes) * (channels + SIZE_CHANNELS) ** 0.5
    k = jnp.pad(k, wider).at[..., channels].set(log_sizes[..., None].astype(k.dtype))
    return q, k
