"""ViViT: a tubelet embedding, a list of stages and a head; all families are lists of stages.

model = vivit.build(config.model)
logits = model.apply({"params": params}, clips)
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vivit.axes import Clips, Levels, Logits
from vivit.model.config import ModelConfig
from vivit.model.embed import Tubelet
from vivit.model.places import Places
from vivit.model.resolve import resolve
from vivit.model.settings import ModelSettings
from vivit.model.stage import Stage


class ViViT(nn.Module):
    """A video transformer: clips [B, F, H, W, C], uint8 or floats in [-1, 1] -> logits.

    `vivit.build` makes one from settings; `model.config` holds the resolved ones.
    """

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.tokens = Tubelet(config, name="tubelet")
        self.encoder = [Stage(config, i, name=f"stage_{i}") for i in range(len(config.stages))]
        if config.pre_logits:
            self.hidden = nn.Dense(config.pre_logits, dtype=jnp.float32, name="pre_logits")
        if config.classes:
            self.head = nn.Dense(
                config.classes, kernel_init=nn.initializers.zeros, dtype=jnp.float32, name="head"
            )

    def __call__(self, clips: Clips, places: Places | None = None) -> Logits:
        """places: as in `encode`."""
        features = self.features(clips, places)
        return self.head(features) if self.config.classes else features

    def features(self, clips: Clips, places: Places | None = None) -> Float[Array, "B D"]:
        """What the head gets ("pre-logits"): `model.apply(variables, clips, method="features")`.

        places: as in `encode`. Raises ValueError for clips of another size than the model's.
        """
        self._check(clips)
        x = self.tokens(clips, places)  # [B, T, S, D]
        for stage in self.encoder:
            x = stage(x, places)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return nn.tanh(self.hidden(x)) if self.config.pre_logits else x

    def encode(self, clips: Clips, places: Places | None = None, levels: int = 1) -> Levels:
        """The tokens that the last stage's readout gets, normed: `method="encode"`.

        places: numbers [B, T', S'] of the tokens that are seen, in row-major order of the grid; the
        others are left out from the start. None for all. `check_places` says which models can.
        levels: how many equal parts of the last stage's layers there are; returned are the tokens
        after each part, side by side, [B, T', S', levels * D], of which the last ones are normed. A
        scanned stage keeps the tokens of all its layers for that.

        Raises ValueError for levels that do not divide the stage's depth.
        """
        self._check(clips)
        depth = self.config.stages[-1].depth
        if levels > 1 and depth % levels:
            raise ValueError(f"{levels=} does not divide the {depth} layers of the last stage")
        x = self.tokens(clips, places)
        for stage in self.encoder[:-1]:
            x = stage(x, places)
        return self.encoder[-1](x, places, pool=False, levels=levels)

    @nn.nowrap
    def example(self) -> tuple[Array, ...]:
        """Returns what `init` and `apply` take, of one clip."""
        return (jnp.zeros((1, *self.config.clip, 3)),)

    @nn.nowrap
    def _check(self, clips: Clips) -> None:
        clip = self.config.clip
        if clips.shape[1:] != (*clip, 3):
            raise ValueError(
                f"clips of shape {clips.shape[1:]} for a model of {(*clip, 3)} (F, H, W, C); "
                f"set model.clip={clips.shape[1:4]} or sample clips of the model's size"
            )

    @nn.nowrap
    def with_settings(self, **changes: Any) -> "ViViT":
        """Returns the model of the same settings but for `changes`: fields of ModelSettings.

        Raises ValueError as `build` does.
        """
        return build(replace(self.config.settings, **changes))


def build(settings: ModelSettings | Mapping[str, Any] | ConfigDict) -> ViViT:
    """Returns the model of `config.model`, or of any mapping with fields of ModelSettings.

    Raises ValueError that describes the problem and a valid alternative.
    """
    return ViViT(resolve(settings))
