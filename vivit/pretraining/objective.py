"""What the objectives of pre-training share: an encoder that sees some of the tokens of a clip, in
a network with more around it, and what is watched while it trains."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from vivit.axes import Grid, NewGrid
from vivit.model.config import ModelConfig
from vivit.model.network import Network
from vivit.model.places import Places, check_places
from vivit.model.resolve import resolve
from vivit.model.settings import StageSettings
from vivit.model.stage import Stage
from vivit.pretraining.collapse import effective_rank, mean_cosine, spread
from vivit.pretraining.masks import Mask, Wanted
from vivit.pretraining.pictures import Frames
from vivit.pretraining.probes import Features, fit
from vivit.tasks.objective import Batch, Objective

# What the layers after an encoder do not take over from it: they are a plain stack.
NOT_TAKEN: dict[str, Any] = {
    "size": "",
    "classes": 0,
    "family": "joint",
    "kv_heads": None,
    "readout": "mean",
    "pre_logits": None,
    "registers": 0,
    "pre_norm": False,
    "drop_path": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
PLACES = 4  # of a clip whose tokens are watched, evenly over the grid
WATCHED = 2048  # clips at most that a rank and a probe are made of


class Pretraining(Objective):
    """An objective that learns from clips alone. Its network has an encoder, a ViViT, below
    "encoder" in its parameters, and encodes whole clips by its method "encode".

    masks: of what the encoder sees. probe: the label of the validation split on which a linear
    probe of the features is fitted at each validation; "" for none.
    """

    name: ClassVar[str]
    masks: tuple[Mask, ...]
    probe: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.probe,) if self.probe else ()

    @property
    def no_classes(self) -> dict[str, Any]:
        return dict.fromkeys(self.labels, 0)

    def encode(self, labels: Mapping[str, Any]) -> np.ndarray:
        return np.array([labels[label] for label in self.labels], np.int32)

    def for_training(self) -> "Pretraining":
        """Returns the objective without what it reads of validation clips alone."""
        without = copy.copy(self)
        without.probe = ""
        return without

    @property
    def best(self) -> str:
        return "probe" if self.probe else "explained"

    def columns(self) -> dict[str, str]:
        probe = {"probe": f"linear probe of {self.probe}"} if self.probe else {}
        return {**probe, "explained": "explained"}

    def check_model(self, config: ModelConfig) -> None:
        """Raises ValueError for a model that cannot be the encoder."""
        if config.classes:
            raise ValueError(f"task {self.name} has no classes: set model.classes=0")
        if config.pre_logits or config.stages[-1].readout.module is not None:
            raise ValueError(
                f"task {self.name} trains no readout with parameters: set model.readout='mean' and "
                "pre_logits=None; what is fine-tuned from the run may have others"
            )
        for mask in self.masks:
            check_places(config, lines=mask.lines)

    def split(self, params: Any) -> tuple[Any, dict[str, Any]]:
        return params["encoder"], {k: v for k, v in params.items() if k != "encoder"}

    def start(self, params: Any, model_params: Any, around: Mapping[str, Any]) -> Any:
        return with_encoder(params, model_params, around)

    def keys(self, batch: Batch, key: Array) -> Array:
        """Returns a key of each clip, by its index alone."""
        return jax.vmap(partial(jax.random.fold_in, key))(batch["indices"])

    @abstractmethod
    def pictures(self, network: Network, params: Any, batch: Batch) -> dict[str, Frames]:
        """Returns title -> clips that show what a prepared batch is about."""

    # What is watched.

    def evaluated(self, network: Network, params: Any, batch: Batch) -> Any:
        outputs = self.outputs(network, params, batch, teacher=params)
        tokens: Any = network.apply({"params": params}, batch["clips"], method="encode")
        features = tokens.astype(jnp.float32).mean(axis=(1, 2))
        return outputs._replace(watched={"features": features, "at_places": at_places(tokens)})

    def kept(self, outputs: Any) -> dict[str, Array]:
        return outputs.watched or {}

    def whole_metrics(
        self, rows: Mapping[str, np.ndarray], means: Mapping[str, float]
    ) -> dict[str, float]:
        """Returns what is watched of a split: "feature_rank" (RankMe of the centred features),
        "feature_cosine", "token_spread" of normalised tokens at the same places, and, of a label,
        "probe": the accuracy of a linear probe that is fitted on half of these clips, with the
        penalty chosen on a quarter, on the last quarter."""
        features, tokens = (rows[k][:WATCHED].astype(np.float64) for k in ("features", "at_places"))
        found = {
            "feature_rank": effective_rank(features),
            "feature_cosine": mean_cosine(features),
            "token_spread": spread(tokens),
        }
        if self.probe:
            if len(features) < 3:
                raise ValueError(f"a probe of {self.probe} needs at least 3 validation clips")
            values, classes = features[:, None], rows["labels"][:WATCHED, 0]
            numbers = slice(1, None, 2), slice(2, None, 4), slice(0, None, 4)
            parts = (Features(values[i], classes[i]) for i in numbers)
            found["probe"] = fit("linear", *parts).test
        return found


def narrow_layers(
    encoder: ModelConfig, *, width: int, depth: int, heads: int, mlp_ratio: float, norm: bool
) -> ModelConfig:
    """Returns the config of a decoder's or predictor's layers: joint attention, with the positions,
    activation and biases of the encoder. norm: whether a layer norm follows them."""
    stage = StageSettings(depth, ("joint",), pool="mean", norm=norm)
    sizes = {"width": width, "depth": depth, "heads": heads, "mlp_dim": round(mlp_ratio * width)}
    return resolve(replace(encoder.settings, **NOT_TAKEN, **sizes, stages=(stage,)))


def with_hidden(
    layers: Stage, x: NewGrid, token: Float[Array, " D"], seen: Places, wanted: Wanted
) -> tuple[Float[Array, "B N D"], Float[Array, "B M D"]]:
    """Returns what narrow layers make of the tokens that are seen, and of a mask token at each
    wanted place next to them."""
    x = x.reshape(x.shape[0], 1, -1, x.shape[-1])
    hidden = jnp.broadcast_to(token, (*wanted.shape, x.shape[-1]))[:, None]
    places = jnp.concatenate([seen.reshape(*x.shape[:3]), wanted[:, None]], axis=2)
    x = jnp.concatenate([x, hidden.astype(x.dtype)], axis=2)
    made = layers(x, places, pool=False)[:, 0]
    return made[:, : -wanted.shape[1]], made[:, -wanted.shape[1] :]


def with_layers(layers: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """Returns the config of narrow layers with those of an encoder's changes that change how they
    are computed."""
    taken = {k: v for k, v in changes.items() if k in ("kernel", "remat", "scan", "dtype")}
    return resolve(replace(layers.settings, **taken))


def normalised(tokens: Float[Array, "*B D"], levels: int = 1) -> Float[Array, "*B D"]:
    """Returns tokens with mean 0 and variance 1 over the channels of each level, by an epsilon of
    1e-5: the targets of V-JEPA."""
    x = tokens.astype(jnp.float32).reshape(*tokens.shape[:-1], levels, -1)
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled.reshape(tokens.shape)


def at_places(tokens: Grid, levels: int = 1) -> Float[Array, "B P D"]:
    """Returns the normalised tokens of a few places of clips, evenly over the grid."""
    flat = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
    at = ((np.arange(PLACES) + 0.5) * flat.shape[1] / PLACES).astype(int)
    return normalised(flat[:, np.unique(at)], levels)


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
            "the weights have another decoder or predictor: "
            f"{other[0]} is {found.get(other[0])}, and {wanted.get(other[0])} in this config; set "
            "the options of task.name to those of the weights, or start from weights of an encoder "
            "alone (python -m vivit.pretrained export)"
        )
    return {**around, "encoder": kept}
