"""Prediction of features: V-JEPA (2404.08471), V-JEPA 2 (2506.09985) and 2.1 (2603.14482)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vivit.axes import Clips, Levels, NewGrid
from vivit.cost import count_multiply_adds
from vivit.model.config import ModelConfig
from vivit.model.layers import Dense
from vivit.model.network import Network
from vivit.model.places import Places
from vivit.model.resolve import resolve
from vivit.model.stage import Stage
from vivit.model.vivit import ViViT
from vivit.objective import Sums
from vivit.pretraining.collapse import constant_error
from vivit.pretraining.masks import MASKS, Counts, GridShape, Wanted, hidden_from
from vivit.pretraining.objective import (
    WATCHED,
    Pretraining,
    at_places,
    narrow_layers,
    normalised,
    with_hidden,
    with_layers,
)
from vivit.pretraining.pictures import GREY, Frames, frames_of, patches_of, picked, replaced
from vivit.pretraining.regularisers import REGULARISERS
from vivit.ramps import Strength, is_off
from vivit.registry import Registry
from vivit.tasks.objective import Batch, Values, weighted_sums

ORDER = 2**30  # folded into a clip's key with the number of a mask

Tokens = Float[Array, "B _ _"]  # [B, M, D], of masks of several lengths


@dataclass(frozen=True)
class Target:
    """A registered choice of the parameters that make the targets.

    choose: (parameters, averaged ones) -> those of the targets. averages: whether it needs the
    averaged ones. trained: whether the targets have a gradient.
    """

    choose: Callable[[Any, Any], Any]
    averages: bool = False
    trained: bool = False


TARGETS: Registry[Target] = Registry("target")
TARGETS.add("averaged", Target(lambda params, averaged: averaged, averages=True))
TARGETS.add("stopped", Target(lambda params, averaged: jax.lax.stop_gradient(params)))
TARGETS.add("trained", Target(lambda params, averaged: params, trained=True))


class Latents(NamedTuple):
    """What the predictor says of the wanted tokens of each mask, what they are, the weight and the
    error of what it says of tokens that are seen, a term of the whole batch, the targets of a few
    places, and what is watched."""

    predicted: tuple[Tokens, ...]
    target: tuple[Tokens, ...]
    context: tuple[Strength, Values] | None
    regulariser: Float[Array, ""]
    at_places: Float[Array, "B P D"]
    watched: dict[str, Array] | None = None


class Predictor(nn.Module):
    """A narrow transformer that predicts tokens from those that are seen.

    config: of its layers. width: of the encoder's tokens, of each of its levels. tokens: how many
    mask tokens it has. seen_too: whether it also predicts the tokens that are seen.
    """

    config: ModelConfig
    width: int
    tokens: int
    levels: int
    seen_too: bool

    @nn.compact
    def __call__(
        self, x: Levels, seen: Places, wanted: Wanted, token: int
    ) -> tuple[Tokens, Tokens | None]:
        """Returns what it predicts of the wanted tokens, and of those that are seen.

        x: the encoder's tokens. token: the number of the mask token.
        """
        config = self.config
        if self.levels > 1:
            x = Dense((self.width,), config.dtype, name="fuse")(x)
            x = nn.gelu(x, approximate=False)
        x = Dense((config.width,), config.dtype, name="narrow")(x)
        shape = (self.tokens, config.width)
        mask_tokens = self.param("mask_tokens", nn.initializers.zeros, shape)
        layers = Stage(config, 0, name="stage")
        of_seen, of_wanted = with_hidden(layers, x, mask_tokens[token], seen, wanted)
        wide = partial(nn.Dense, self.levels * self.width, dtype=jnp.float32)
        predicted = wide(name="widen")(of_wanted)
        return predicted, wide(name="widen_seen")(of_seen) if self.seen_too else None


class JointEmbedding(nn.Module):
    """An encoder of the tokens that each mask leaves, and a predictor of others' features.

    config: of the encoder. predictor_config: of the predictor's layers. counts: of the tokens that
    are seen and predicted, by mask. tokens: how many mask tokens there are. token: the number, from
    1, of the one that all masks use; 0: each has its own. levels: of the encoder, which are
    predicted. context: the weight of the error of tokens that are seen.
    """

    config: ModelConfig
    predictor_config: ModelConfig
    counts: tuple[Counts, ...]
    tokens: int
    token: int
    levels: int
    context: Strength

    def setup(self) -> None:
        config, seen_too = self.config, not is_off(self.context)
        self.encoder = ViViT(config)
        self.predictor = Predictor(
            self.predictor_config, config.width, self.tokens, self.levels, seen_too
        )
        norm = partial(nn.LayerNorm, config.norm_epsilon, dtype=jnp.float32)
        self.norms = [norm(name=f"norm_{i}") for i in range(self.levels - 1)]

    def __call__(self, clips: Clips, *places: Array) -> list[tuple[Tokens, Tokens | None]]:
        """Returns of each mask what is predicted of the wanted tokens, and of those seen.

        places: the tokens that are seen and those predicted, of each mask in turn.
        """
        predicted = []
        for i, (seen, wanted) in enumerate(zip(places[::2], places[1::2], strict=True)):
            number = self.token - 1 if self.token else i % self.tokens
            predicted.append(self.predictor(self.levels_of(clips, seen), seen, wanted, number))
        return predicted

    def encode(self, clips: Clips) -> NewGrid:
        return self.encoder.encode(clips)

    def levels_of(self, clips: Clips, places: Places | None = None) -> Levels:
        """Returns the tokens of all levels, normed, side by side."""
        tokens = self.encoder.encode(clips, places, self.levels)
        if not self.norms:
            return tokens
        *parts, last = jnp.split(tokens, self.levels, axis=-1)
        normed = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        return jnp.concatenate([*normed, last], axis=-1)

    @nn.nowrap
    def example(self) -> tuple[Array, ...]:
        """Returns what `init` and `apply` take, of one clip."""
        clips = jnp.zeros((1, *self.config.clip, 3))
        return clips, *(x for counts in self.counts for x in counts.example())

    @nn.nowrap
    def with_settings(self, **changes: Any) -> "JointEmbedding":
        """Returns the network around the model of the same settings but for `changes`."""
        return self.clone(
            config=resolve(replace(self.config.settings, **changes)),
            predictor_config=with_layers(self.predictor_config, changes),
        )


class Jepa(Pretraining):
    """The task `jepa`: an encoder of the tokens that are seen, a predictor of the features of
    others, and the absolute error to those of a slower encoder that sees the whole clip."""

    name = "jepa"

    def __init__(
        self,
        labels: Mapping[str, int] | None = None,
        *,
        masks: tuple[str, ...] = ("blocks(8, 0.15)", "blocks(2, 0.7)"),
        width: int = 384,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        mask_tokens: int = 1,
        mask_token: int = 0,
        levels: int = 1,
        context: float = 0.0,
        target: str = "averaged",
        regulariser: str = "none",
        probe: str = "",
    ) -> None:
        """masks: of MASKS; each has its own pass of the encoder and the predictor.

        width, depth, heads, mlp_ratio: of the predictor; its MLPs have mlp_ratio * width channels.
        mask_tokens: how many there are; mask i uses token i, from the start again if there are
        fewer tokens than masks. mask_token: the number, from 1, of the token that all use instead.
        levels: how many depths of the encoder are predicted, after equal parts of its layers, each
        normed; above 1 an MLP fuses them for the predictor (2603.14482, "deep self-supervision").
        context: the weight of the error of tokens that are seen, each by one over the root of its
        distance in tokens to the nearest that is predicted (2603.14482, "dense predictive loss");
        train.ramps may change it.
        target: a name of TARGETS, the parameters that make the targets: "averaged" by
        train.average_decay; "stopped", those that are trained, without a gradient; or "trained",
        with one, whose features collapse without a regulariser.
        regulariser: of REGULARISERS, what is added to the loss.
        probe: a label of the validation split, on which the features are probed.
        """
        self.masks = tuple(MASKS[name] for name in masks)
        if not self.masks:
            raise ValueError("task jepa: masks=() leaves nothing to predict; name one or two masks")
        if mask_token > mask_tokens:
            raise ValueError(f"task jepa: {mask_token=} is not one of the {mask_tokens=}")
        self._target, self._regulariser = TARGETS[target], REGULARISERS[regulariser]
        self.averages, self.over_batch = self._target.averages, self._regulariser.weight > 0
        if self.over_batch and not self._target.trained:
            raise ValueError(
                f"task jepa: {regulariser=} works on the features of {target=}, which have no "
                "gradient; set target='trained'"
            )
        self.probe = probe
        sizes = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        self._predictor = partial(narrow_layers, **sizes, norm=True)
        if context < 0:
            raise ValueError(f"task jepa: {context=} is a weight of at least 0")
        self._levels, self._context = levels, context
        self._fields: dict[str, Any] = {"tokens": mask_tokens, "token": mask_token,
                                        "levels": levels, "context": context}  # fmt: skip
        self.strengths = ("context",) if context else ()

    def network(self, model: ViViT) -> JointEmbedding:
        config = model.config
        self.check_model(config)
        counts = tuple(mask.counts(config.grid) for mask in self.masks)
        return JointEmbedding(config, self._predictor(config), counts, **self._fields)

    def prepare(self, network: Network, batch: Batch, key: Array) -> Batch:
        """Adds the tokens "seen_I" and "wanted_I" of each clip by mask I."""
        keys, drawn = self.keys(batch, key), {}
        for i, mask in enumerate(self.masks):
            of_mask = jax.vmap(partial(jax.random.fold_in, data=ORDER + i))(keys)
            masked = mask(of_mask, network.config.grid)
            drawn |= {f"seen_{i}": masked.seen, f"wanted_{i}": masked.wanted}
        return {**batch, **drawn}

    def inputs(self, batch: Batch) -> tuple[Array, ...]:
        numbers = range(len(self.masks))
        places = (batch[f"{kind}_{i}"] for i in numbers for kind in ("seen", "wanted"))
        return batch["clips"], *places

    def outputs(
        self, network: Network, params: Any, batch: Batch, *, teacher: Any, rngs: Any = None
    ) -> Latents:
        assert isinstance(network, JointEmbedding)
        predictions: Any = network.apply({"params": params}, *self.inputs(batch), rngs=rngs)
        of_wanted, of_seen = zip(*predictions, strict=True)
        of_targets = {"params": self._target.choose(params, teacher)}
        tokens: Any = network.apply(of_targets, batch["clips"], method="levels_of")
        flat = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
        wanted = [batch[f"wanted_{i}"] for i in range(len(self.masks))]
        target = tuple(normalised(picked(flat, places), self._levels) for places in wanted)
        context = None
        if self._context:
            seen = [batch[f"seen_{i}"].reshape(len(flat), -1) for i in range(len(self.masks))]
            targets_of_seen = [normalised(picked(flat, places), self._levels) for places in seen]
            near = [nearness(*pair, network.config.grid) for pair in zip(seen, wanted, strict=True)]
            context = network.context, _mean_error(of_seen, targets_of_seen, near)
        key = jax.random.fold_in(jax.random.key(0), batch["indices"][0])
        last = tokens[..., -network.config.width :]
        added = self._regulariser(last.mean(axis=(1, 2)), batch["valid"], key)
        return Latents(of_wanted, target, context, added, at_places(tokens, self._levels))

    def more_multiply_adds(self, network: Network) -> int:
        clips = jax.eval_shape(network.example)[:1]
        passes = 3 if self._target.trained else 1
        return passes * count_multiply_adds(network, "levels_of", inputs=clips)

    def kept(self, outputs: Latents) -> dict[str, Array]:
        return {**super().kept(outputs), "targets": outputs.at_places}

    def pictures(self, network: Network, params: Any, batch: Batch) -> dict[str, Frames]:
        """Returns what each mask leaves of clips."""
        config, patches = network.config, patches_of(batch["clips"], network.config)
        made = {}
        for i, mask in enumerate(self.masks):
            hidden = hidden_from(batch[f"seen_{i}"], patches.shape[1])
            made[f"what it sees: {mask.label}"] = frames_of(replaced(patches, hidden, GREY), config)
        return made

    def losses(
        self, outputs: Latents, batch: Batch, *, label_smoothing: Strength = 0.0
    ) -> list[Values]:
        """Returns the mean absolute error of each clip, the mean over the masks, that of tokens
        that are seen, and the term of the batch."""
        weight, errors = self._regulariser.weight, _mean_error(outputs.predicted, outputs.target)
        if outputs.context is not None:
            strength, of_seen = outputs.context
            errors = errors + strength * of_seen
        return [(1 - weight) * errors + weight * outputs.regulariser]

    def sums(self, losses: list[Values], outputs: Latents, batch: Batch) -> Sums:
        values = {"loss": losses[0], "error": _mean_error(outputs.predicted, outputs.target)}
        if outputs.context is not None:
            values["context_error"] = outputs.context[1]
        return weighted_sums(values, batch["valid"])

    def whole_metrics(
        self, rows: Mapping[str, np.ndarray], means: Mapping[str, float]
    ) -> dict[str, float]:
        """Returns also "constant_error", that of the best constant prediction of the targets at
        each place, and "explained": 1 less the error over it, at least -1. A constant error falls
        with the error where features collapse."""
        constant = constant_error(rows["targets"][:WATCHED])
        explained = max(-1.0, 1 - means["error"] / max(constant, 1e-12))
        found = {"constant_error": constant, "explained": explained}
        return {**super().whole_metrics(rows, means), **found}


def _mean_error(
    predicted: Sequence[Array], target: Sequence[Array], weights: Sequence[Array] | None = None
) -> Values:
    """Returns the mean absolute error of each clip, the mean over the masks.

    predicted, target: tokens [B, M, D] of each mask. weights: [B, M] of each mask.
    """
    errors = [jnp.abs(z - h).mean(axis=2) for z, h in zip(predicted, target, strict=True)]
    if weights is not None:
        errors = [error * weight for error, weight in zip(errors, weights, strict=True)]
    return jnp.mean(jnp.stack([error.mean(axis=1) for error in errors]), axis=0)


def nearness(
    places: Int[Array, "B N"], others: Int[Array, "B M"], grid: GridShape
) -> Float[Array, "B N"]:
    """Returns one over the root of each place's distance to the nearest of others, which is
    Euclidean over (t, y, x), in tokens, and counts as 1 at least."""
    at = lambda x: jnp.stack(jnp.unravel_index(x, grid), axis=-1).astype(jnp.float32)
    between = at(places)[:, :, None] - at(others)[:, None]
    squared = (between**2).sum(axis=-1).min(axis=2)
    return jnp.maximum(squared, 1.0) ** -0.25
