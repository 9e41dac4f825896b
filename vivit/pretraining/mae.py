"""Masked autoencoding of pixels: VideoMAE (2203.12602), and V2's dual masking (2303.16727)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from vivit.axes import Clips
from vivit.model.config import ModelConfig
from vivit.model.layers import Dense
from vivit.model.network import Network
from vivit.model.places import Places, check_places, take
from vivit.model.resolve import resolve
from vivit.model.settings import StageSettings
from vivit.model.stage import Stage
from vivit.model.vivit import ViViT
from vivit.objective import Sums
from vivit.pretraining.masks import MASKS, Mask, hidden_from
from vivit.ramps import Strength
from vivit.tasks.objective import Batch, Objective, Values, weighted_sums

# What the decoder's layers do not take over from the encoder: a plain stack over fixed positions.
NOT_IN_DECODER: dict[str, Any] = {
    "size": "",
    "classes": 0,
    "family": "joint",
    "kv_heads": None,
    "position": "sinusoidal_interleaved",
    "rope": "none",
    "readout": "mean",
    "pre_logits": None,
    "registers": 0,
    "pre_norm": False,
    "drop_path": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
DECODE = 1  # folded into a clip's key for what is predicted, as its mask draws from the key itself

Wanted = Int[Array, "B M"]  # the tokens that are predicted
Pixels = Float[Array, "B M P"]  # of a tubelet, channels last


class Reconstruction(NamedTuple):
    """What the decoder says of the wanted tokens, and what they are."""

    predicted: Pixels
    target: Pixels


class MaskedAutoencoder(nn.Module):
    """An encoder of the tokens that are seen, and a narrow decoder that predicts pixels of others.

    config: of the encoder. decoder_config: of the decoder's layers. normalise: whether the pixels
    of each tubelet are normalised. norm_epsilon: of the norm after the decoder's layers.
    """

    config: ModelConfig
    decoder_config: ModelConfig
    mask: Mask
    wanted: int
    normalise: bool
    norm_epsilon: float

    def setup(self) -> None:
        width, dtype = self.decoder_config.width, self.config.dtype
        self.encoder = ViViT(self.config)
        self.narrow = Dense((width,), dtype, use_bias=False)
        self.mask_token = self.param("mask_token", nn.initializers.truncated_normal(0.02), (width,))
        self.decoder = Stage(self.decoder_config, 0)
        self.norm = nn.LayerNorm(self.norm_epsilon, dtype=jnp.float32)
        self.pixels = nn.Dense(math.prod(self.config.tubelet) * 3, dtype=jnp.float32)

    def __call__(self, clips: Clips, seen: Places, wanted: Wanted) -> Reconstruction:
        x = self.narrow(self.encoder.encode(clips, seen))
        x = x.reshape(x.shape[0], 1, -1, x.shape[-1])
        hidden = jnp.broadcast_to(self.mask_token, (*wanted.shape, x.shape[-1]))[:, None]
        places = jnp.concatenate([seen.reshape(*x.shape[:3]), wanted[:, None]], axis=2)
        x = jnp.concatenate([x, hidden.astype(x.dtype)], axis=2)
        x = self.decoder(x, places, pool=False)[:, 0, -wanted.shape[1] :]
        target = pixels_of(clips, wanted, self.config, normalise=self.normalise)
        return Reconstruction(self.pixels(self.norm(x)), target)

    @nn.nowrap
    def example(self) -> tuple[Array, ...]:
        """Returns what `init` and `apply` take, of one clip."""
        steps, places = self.mask.shape(self.config.grid)
        seen = jnp.arange(steps * places).reshape(1, steps, places)
        return jnp.zeros((1, *self.config.clip, 3)), seen, jnp.arange(self.wanted)[None]

    @nn.nowrap
    def with_settings(self, **changes: Any) -> "MaskedAutoencoder":
        """Returns the network around the model of the same settings but for `changes`."""
        decoder = {k: v for k, v in changes.items() if k in ("kernel", "remat", "scan", "dtype")}
        return self.clone(
            config=resolve(replace(self.config.settings, **changes)),
            decoder_config=resolve(replace(self.decoder_config.settings, **decoder)),
        )


def with_encoder(params: Any, encoder: Any, around: Mapping[str, Any]) -> Any:
    """Returns a network's parameters with those of an encoder and, where there are any, of what is
    around it."""
    kept = {name: encoder[name] for name in params["encoder"]}  # without the parts of a readout
    if not around:
        return {**params, "encoder": kept}
    shapes = [flatten_dict(jax.tree.map(np.shape, dict(x)), sep="/") for x in (around, params)]
    found, wanted = shapes[0], {k: v for k, v in shapes[1].items() if not k.startswith("encoder/")}
    if found != wanted:
        other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise ValueError(
            f"the weights have another decoder: {other[0]} is {found.get(other[0])}, and "
            f"{wanted.get(other[0])} in this config; set the options of task.name to those of the "
            "weights, or start from weights without a decoder (python -m vivit.pretrained export)"
        )
    return {**around, "encoder": kept}


def pixels_of(clips: Clips, wanted: Wanted, config: ModelConfig, *, normalise: bool) -> Pixels:
    """Returns the pixels of some tubelets, from 0 to 1, or normalised as VideoMAE's code does: each
    colour by its mean and its unbiased standard deviation over the tubelet, plus 1e-6."""
    if clips.dtype == jnp.uint8:
        frames = jnp.asarray(clips, jnp.float32) / 255
    else:
        frames = jnp.asarray(clips) * np.array(config.pixel_std) + np.array(config.pixel_mean)
    t, h, w = config.tubelet
    form = "B (T t) (Y h) (X w) C -> B T (Y X) (t h w) C"
    pixels = take(rearrange(frames, form, t=t, h=h, w=w), wanted[:, None])[:, 0]
    if normalise:
        mean = pixels.mean(axis=2, keepdims=True)
        pixels = (pixels - mean) / (pixels.std(axis=2, ddof=1, keepdims=True) + 1e-6)
    return rearrange(pixels, "B M p C -> B M (p C)").astype(jnp.float32)


class Mae(Objective):
    """The task `mae`: an encoder of the tokens that are seen, a narrow decoder, and the squared
    error of the pixels of tokens that are hidden."""

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
    ) -> None:
        """mask: of MASKS, what the encoder does not see. decode: of MASKS, what is not predicted
        either (2303.16727, section 3.2); "" where all that is hidden is predicted.

        width, depth, heads, mlp_ratio: of the decoder; its MLPs have mlp_ratio * width channels,
        rounded.
        normalise: whether the pixels of each tubelet are normalised. norm_epsilon: of the norm
        after the decoder's layers.
        """
        self.mask, self.decode = MASKS[mask], MASKS[decode] if decode else None
        stage = StageSettings(depth, ("joint",), pool="mean", norm=False)
        mlp_dim = round(mlp_ratio * width)
        sizes = {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
        self._decoder: dict[str, Any] = {**NOT_IN_DECODER, **sizes, "stages": (stage,)}
        self._options = {"normalise": normalise, "norm_epsilon": norm_epsilon}

    @property
    def best(self) -> str:
        return "explained"

    def columns(self) -> dict[str, str]:
        return {"explained": "explained variance"}

    def network(self, model: ViViT) -> MaskedAutoencoder:
        config = model.config
        if config.classes:
            raise ValueError("task mae has no classes: set model.classes=0")
        if config.pre_logits or config.stages[-1].readout.module is not None:
            raise ValueError(
                "task mae trains no readout with parameters: set model.readout='mean' and "
                "pre_logits=None; what is fine-tuned from the run may have others"
            )
        check_places(config, lines=self.mask.lines)
        decoder = replace(config.settings, **self._decoder)
        steps, places = self.mask.shape(config.grid)
        wanted = math.prod(config.grid) - steps * places
        if self.decode:
            wanted = math.prod(self.decode.shape(config.grid))
        return MaskedAutoencoder(config, resolve(decoder), self.mask, wanted, **self._options)

    def split(self, params: Any) -> tuple[Any, dict[str, Any]]:
        return params["encoder"], {k: v for k, v in params.items() if k != "encoder"}

    def start(self, params: Any, model_params: Any, around: Mapping[str, Any]) -> Any:
        return with_encoder(params, model_params, around)

    def prepare(self, network: Network, batch: Batch, key: Array) -> Batch:
        """Adds the tokens that are "seen" and "wanted" of each clip, and which of those wanted are
        hidden from the encoder, so that they are "scored"."""
        grid = network.config.grid
        keys = jax.vmap(partial(jax.random.fold_in, key))(batch["indices"])
        seen = self.mask(keys, grid)
        hidden = hidden_from(seen, math.prod(grid))
        if self.decode is None:
            return {**batch, "seen": seen, "wanted": hidden, "scored": jnp.ones(hidden.shape)}
        keys = jax.vmap(partial(jax.random.fold_in, data=DECODE))(keys)
        wanted = self.decode(keys, grid).reshape(len(seen), -1)
        scored = jax.vmap(jnp.isin)(wanted, hidden).astype(jnp.float32)
        return {**batch, "seen": seen, "wanted": wanted, "scored": scored}

    def inputs(self, batch: Batch) -> tuple[Array, ...]:
        return batch["clips"], batch["seen"], batch["wanted"]

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
