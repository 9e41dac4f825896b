"""Masked autoencoding of pixels: VideoMAE (2203.12602), and V2's dual masking (2303.16727)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vivit.axes import Clips, NewGrid
from vivit.model.config import ModelConfig
from vivit.model.layers import Dense
from vivit.model.network import Network
from vivit.model.places import Places
from vivit.model.resolve import resolve
from vivit.model.stage import Stage
from vivit.model.vivit import ViViT
from vivit.objective import Sums
from vivit.pretraining.masks import MASKS, Counts, Wanted, hidden_from
from vivit.pretraining.objective import Pretraining, narrow_layers, with_hidden, with_layers
from vivit.pretraining.pictures import (
    GREY,
    Frames,
    Patches,
    frames_of,
    patches_of,
    picked,
    replaced,
)
from vivit.ramps import Strength
from vivit.tasks.objective import Batch, Values, weighted_sums

DECODE = 1  # folded into a clip's key for what is predicted, as its mask draws from the key itself

Pixels = Float[Array, "B M P"]  # of a tubelet, channels last


class Reconstruction(NamedTuple):
    """What the decoder says of the wanted tokens, what they are, and what is watched."""

    predicted: Pixels
    target: Pixels
    watched: dict[str, Array] | None = None


class MaskedAutoencoder(nn.Module):
    """An encoder of the tokens that are seen, and a narrow decoder that predicts pixels of others.

    config: of the encoder. decoder_config: of the decoder's layers. counts: of the tokens that are
    seen and predicted. norm_epsilon: of the norm after the decoder's layers.
    """

    config: ModelConfig
    decoder_config: ModelConfig
    counts: Counts
    norm_epsilon: float

    def setup(self) -> None:
        width, dtype = self.decoder_config.width, self.config.dtype
        self.encoder = ViViT(self.config)
        self.narrow = Dense((width,), dtype, use_bias=False)
        self.mask_token = self.param("mask_token", nn.initializers.truncated_normal(0.02), (width,))
        self.decoder = Stage(self.decoder_config, 0)
        self.norm = nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32)
        self.pixels = nn.Dense(math.prod(self.config.tubelet) * 3, dtype=jnp.float32)

    def __call__(self, clips: Clips, seen: Places, wanted: Wanted) -> Pixels:
        x = self.narrow(self.encoder.encode(clips, seen))
        _, x = with_hidden(self.decoder, x, self.mask_token, seen, wanted)
        return self.pixels(self.norm(x))

    def encode(self, clips: Clips) -> NewGrid:
        return self.encoder.encode(clips)

    @nn.nowrap
    def example(self) -> tuple[Array, ...]:
        """Returns what `init` and `apply` take, of one clip."""
        return jnp.zeros((1, *self.config.clip, 3)), *self.counts.example()

    @nn.nowrap
    def with_settings(self, **changes: Any) -> "MaskedAutoencoder":
        """Returns the network around the model of the same settings but for `changes`."""
        return self.clone(
            config=resolve(replace(self.config.settings, **changes)),
            decoder_config=with_layers(self.decoder_config, changes),
        )


def pixels_of(clips: Clips, wanted: Wanted, config: ModelConfig, *, normalise: bool) -> Pixels:
    """Returns the pixels of some tubelets, from 0 to 1, or normalised as VideoMAE's code does: each
    colour by its mean and its unbiased standard deviation over the tubelet, plus 1e-6."""
    pixels = picked(patches_of(clips, config), wanted)
    if normalise:
        mean, std = statistics(pixels)
        pixels = (pixels - mean) / std
    return rearrange(pixels, "B M p C -> B M (p C)").astype(jnp.float32)


def statistics(pixels: Patches) -> tuple[Array, Array]:
    """Returns mean and standard deviation of each colour of each tubelet."""
    mean = pixels.mean(axis=2, keepdims=True)
    return mean, pixels.std(axis=2, ddof=1, keepdims=True) + 1e-6


class Mae(Pretraining):
    """The task `mae`: an encoder of the tokens that are seen, a narrow decoder, and the squared
    error of the pixels of tokens that are hidden."""

    name = "mae"

    def __init__(
        self,
        labels: Mapping[str, int] | None = None,
        *,
        mask: str = "tube(0.9)",
        decode: str = "",
        width: int = 384,
        depth: int = 4,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        normalise: bool = True,
        norm_epsilon: float = 1e-6,
        probe: str = "",
    ) -> None:
        """mask: of MASKS, what the encoder does not see. decode: of MASKS, what is not predicted
        either (2303.16727, section 3.2); "" where all that is hidden is predicted.

        width, depth, heads, mlp_ratio: of the decoder; its MLPs have mlp_ratio * width channels,
        rounded.
        normalise: whether the pixels of each tubelet are normalised. norm_epsilon: of the norm
        after the decoder's layers.
        probe: a label of the validation split, on which the features are probed.
        """
        self.masks, self.decode = (MASKS[mask],), MASKS[decode] if decode else None
        self.probe, self.normalise = probe, normalise
        sizes = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        self._decoder = partial(narrow_layers, **sizes, norm=False)
        self._norm_epsilon = norm_epsilon

    def network(self, model: ViViT) -> MaskedAutoencoder:
        config, grid = model.config, model.config.grid
        self.check_model(config)
        counts = self.masks[0].counts(grid)
        if self.decode:
            decoded = self.decode.counts(grid)
            counts = counts._replace(wanted=decoded.steps * decoded.places)
        return MaskedAutoencoder(config, self._decoder(config), counts, self._norm_epsilon)

    def prepare(self, network: Network, batch: Batch, key: Array) -> Batch:
        """Adds the tokens that are "seen" and "wanted" of each clip, and which of those wanted are
        hidden from the encoder, so that they are "scored"."""
        grid, keys = network.config.grid, self.keys(batch, key)
        seen, wanted = self.masks[0](keys, grid)
        if self.decode is None:
            return {**batch, "seen": seen, "wanted": wanted, "scored": jnp.ones(wanted.shape)}
        hidden = hidden_from(seen, math.prod(grid))
        keys = jax.vmap(partial(jax.random.fold_in, data=DECODE))(keys)
        wanted = self.decode(keys, grid).seen.reshape(len(seen), -1)
        scored = jax.vmap(jnp.isin)(wanted, hidden).astype(jnp.float32)
        return {**batch, "seen": seen, "wanted": wanted, "scored": scored}

    def inputs(self, batch: Batch) -> tuple[Array, ...]:
        return batch["clips"], batch["seen"], batch["wanted"]

    def outputs(
        self, network: Network, params: Any, batch: Batch, *, teacher: Any, rngs: Any = None
    ) -> Reconstruction:
        predicted: Any = network.apply({"params": params}, *self.inputs(batch), rngs=rngs)
        clips, _, wanted = self.inputs(batch)
        target = pixels_of(clips, wanted, network.config, normalise=self.normalise)
        return Reconstruction(predicted, target)

    def pictures(self, network: Network, params: Any, batch: Batch) -> dict[str, Frames]:
        """Returns masked clips, and these with the predicted pixels. Normalised pixels get the mean
        and standard deviation of the true ones back, which are not predicted."""
        config, patches = network.config, patches_of(batch["clips"], network.config)
        masked = replaced(patches, hidden_from(batch["seen"], patches.shape[1]), GREY)
        outputs = self.outputs(network, params, batch, teacher=params)
        predicted = rearrange(outputs.predicted, "B M (p C) -> B M p C", C=3)
        if self.normalise:
            mean, std = statistics(picked(patches, batch["wanted"]))
            predicted = predicted * std + mean
        made = replaced(masked, batch["wanted"], predicted)
        seen = batch["seen"].reshape(len(patches), -1)
        made = replaced(made, seen, picked(patches, seen))
        return {"what it sees": frames_of(masked, config), "prediction": frames_of(made, config)}

    def losses(
        self, outputs: Reconstruction, batch: Batch, *, label_smoothing: Strength = 0.0
    ) -> list[Values]:
        """Returns the mean squared error of each clip's scored tokens."""
        error = ((outputs.predicted - outputs.target) ** 2).mean(axis=2)
        return [self._mean(error, batch["scored"])]

    def sums(self, losses: list[Values], outputs: Reconstruction, batch: Batch) -> Sums:
        scored = batch["scored"]
        middle = self._mean(outputs.target.mean(axis=2), scored)[:, None, None]
        spread = self._mean(((outputs.target - middle) ** 2).mean(axis=2), scored)
        explained = 1 - losses[0] / jnp.maximum(spread, 1e-12)
        return weighted_sums({"loss": losses[0], "explained": explained}, batch["valid"])

    def _mean(self, x: Float[Array, "B M"], scored: Float[Array, "B M"]) -> Values:
        return (x * scored).sum(axis=1) / jnp.maximum(scored.sum(axis=1), 1)
