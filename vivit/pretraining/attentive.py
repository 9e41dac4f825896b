"""The attentive probe: learned queries that attend to frozen tokens."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from vivit.axes import Grid, Logits
from vivit.model.config import ModelConfig
from vivit.model.resolve import resolve
from vivit.model.settings import ModelSettings, StageSettings
from vivit.model.stage import Stage
from vivit.pretraining.probes import Rows, Scores, Training, probe_kind

SCORED = 64  # views at a time


class AttentiveHead(nn.Module):
    """The attentive pooler of V-JEPA 2 and a linear map to the classes."""

    config: ModelConfig
    classes: int

    @nn.compact
    def __call__(self, tokens: Grid) -> Logits:
        pooled = Stage(self.config, 0, name="pooler")(tokens.astype(jnp.float32))
        return nn.Dense(self.classes, name="head")(pooled.reshape(len(tokens), -1))


def attentive_head(shape: tuple[int, int, int], classes: int, *, blocks: int, heads: int) -> Any:
    """Returns the head for tokens [B, T, S, D]; shape: (T, S, D). Raises ValueError for a width
    that the heads do not divide."""
    steps, space, width = shape
    if width % heads:
        raise ValueError(f"probe attentive: tokens of {width} channels have no {heads=}")
    attentions = ("joint",) if blocks > 1 else ()
    settings = ModelSettings(
        clip=(steps, space, 1),
        tubelet=(1, 1, 1),
        classes=0,
        width=width,
        depth=blocks,
        heads=heads,
        mlp_dim=4 * width,
        position="none",
        stages=(StageSettings(blocks - 1, attentions, pool="vjepa2_pool"),),
    )
    return AttentiveHead(resolve(settings), classes)


@probe_kind("attentive", tokens=True)
def attentive(
    train: Training,
    others: Rows,
    *,
    blocks: int = 4,
    heads: int = 16,
    epochs: int = 20,
    batch: int = 64,
    rates: tuple[float, ...] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4),
    decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8),
) -> dict[str, Scores]:
    """V-JEPA 2's probe (2506.09985, section 4; released code): `blocks` of which the last is one
    query's cross-attention and the others are self-attention, for each learning rate and weight
    decay, all trained at once by AdamW with a cosine to 0."""
    (known,) = train.rows.tokens
    clips, _, steps, space, width = known.shape
    head = attentive_head((steps, space, width), train.count, blocks=blocks, heads=heads)
    grid = list(itertools.product(rates, decays))
    rate, decay = (jnp.array(x) for x in zip(*grid, strict=True))
    drawn = head.init(jax.random.key(0), jnp.zeros((1, steps, space, width)))["params"]
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(grid), *x.shape)), drawn)
    adam = optax.scale_by_adam()
    state = adam.init(params)
    logits = jax.vmap(lambda p, x: head.apply({"params": p}, x), in_axes=(0, None))

    @jax.jit
    def step(params: Any, state: Any, x: Array, y: Array, scale: Float[Array, ""]) -> Any:
        def loss(params):
            every = logits(params, x)
            targets = jnp.broadcast_to(y, every.shape[:2])
            return optax.softmax_cross_entropy_with_integer_labels(every, targets).mean(1).sum()

        updates, state = adam.update(jax.grad(loss)(params), state)
        wide = lambda x, like: x.reshape(-1, *(1,) * (like.ndim - 1))
        move = lambda p, u: p - scale * wide(rate, p) * (u + wide(decay, p) * p)
        return jax.tree.map(move, params, updates), state

    rng, batch = np.random.default_rng(0), min(batch, clips)
    whole = clips // batch * batch  # the last batch of an epoch is left out if it is smaller
    order = np.concatenate([rng.permutation(clips)[:whole] for _ in range(epochs)])
    total = len(order) // batch
    classes = train.classes[order].reshape(total, batch)
    for i, (x, y) in enumerate(zip(known.batches(order, batch), classes, strict=True)):
        scale = jnp.float32(0.5 * (1 + np.cos(np.pi * i / total)))
        params, state = step(params, state, jnp.asarray(x[:, 0]), jnp.asarray(y), scale)
    score = jax.jit(lambda params, x: jax.nn.softmax(logits(params, x)))
    found = []
    for part in others.tokens:
        size = max(1, SCORED // part.shape[1])  # in clips
        for x in part.batches(np.arange(part.shape[0]), size):
            of_views = jnp.asarray(x.reshape(-1, steps, space, width))
            found.append(np.asarray(score(params, of_views)))
    scores = np.concatenate(found, axis=1)
    return {f"rate {a:g}, decay {b:g}": x for (a, b), x in zip(grid, scores, strict=True)}
