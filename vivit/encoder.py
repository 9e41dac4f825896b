"""A frozen encoder: features of the clips of a data set, from a run, from weights, or at random."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vivit.data.pipeline import eval_batches
from vivit.data.settings import DataSettings, ViewsSettings
from vivit.data.sources import open_split
from vivit.data.split import Split
from vivit.data.views import make_views
from vivit.evaluate import collect, model_for_devices, parse_views
from vivit.model.attention import TOKENS
from vivit.model.params import of_layer
from vivit.model.settings import ModelSettings
from vivit.model.vivit import ViViT
from vivit.objective import Sums
from vivit.parallel import Parallel, make_parallel_for_inference
from vivit.pretrained.files import flat_params
from vivit.pretrained.runs import content_hash
from vivit.pretraining.probes import KeptTokens
from vivit.records import record
from vivit.registry import Registry
from vivit.run import Run, build_for_inference
from vivit.settings import Config
from vivit.step import make_eval_step
from vivit.tasks.objective import Objective

ENCODED = 64  # clips of a batch, for a probe that encodes them in each epoch
AT_ONCE = 2**29  # bytes of tokens that are encoded before a probe gets them

# Name -> (model, variables, clips [B, F, H, W, 3]) -> features [B, ...].
KINDS: Registry[Any] = Registry("kind of features")
KINDS.add("clip", lambda model, variables, clips: model.apply(variables, clips, method="features"))
KINDS.add("token", lambda model, variables, clips: model.apply(variables, clips, method="encode"))
KINDS.add("layers", lambda model, variables, clips: _layers(model, variables, clips))
KINDS.add("pixels", lambda model, variables, clips: _flat(_small(clips)))
KINDS.add("differences", lambda model, variables, clips: _flat(_differences(_small(clips))))
CELLS = 8  # rows and columns of a frame, for the two kinds without a model


def _layers(model: ViViT, variables: Any, clips: Array) -> Float[Array, "B L D"]:
    """Returns the mean of the clip's tokens that each block gets, without class tokens and
    registers."""
    _, kept = model.apply(variables, clips, mutable=[TOKENS])
    means = []
    for i, stage in enumerate(model.config.stages):
        for layer in range(stage.depth):
            x = of_layer(kept[TOKENS][f"stage_{i}"], layer)["tokens"]
            x = stage.layout.remove(x, by_step=False)
            means.append(x.astype(jnp.float32).mean(axis=(1, 2)))
    return jnp.stack(means, axis=1)


def _small(clips: Array) -> Float[Array, "B F Y X"]:
    """Returns grey frames of CELLS x CELLS pixels, by linear resizing without aliasing."""
    grey = clips.astype(jnp.float32).mean(axis=-1)
    return jax.image.resize(grey, (*grey.shape[:2], CELLS, CELLS), "linear")


def _differences(frames: Float[Array, "B F Y X"]) -> Float[Array, "B F2 Y X"]:
    return jnp.abs(jnp.diff(frames, axis=1))


def _flat(x: Float[Array, "B F Y X"]) -> Float[Array, "B D"]:
    return x.reshape(len(x), -1)


class Measuring(Objective):
    """Measures something of each clip: nothing is predicted, and no label is needed.

    Two are equal if they measure the same, so that a step is compiled once for them.
    """

    measured: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.measured))

    @property
    def best(self) -> str:
        return ""

    def columns(self) -> dict[str, str]:
        return {}

    def losses(self, outputs: Any, batch: Any, *, label_smoothing: Any = 0.0) -> list[Array]:
        return []

    def sums(self, losses: Any, outputs: Any, batch: Any) -> Sums:
        return {}

    def kept(self, outputs: Any) -> dict[str, Array]:
        return outputs


class Reading(Measuring):
    """Reads features of these kinds."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.measured = tuple(kinds)
        self._kinds = {name: KINDS[name] for name in kinds}

    def outputs(
        self, network: Any, params: Any, batch: Any, *, teacher: Any, rngs: Any = None
    ) -> dict[str, Array]:
        variables, clips = {"params": params}, batch["clips"]
        return {name: kind(network, variables, clips) for name, kind in self._kinds.items()}


@dataclass(frozen=True)
class Encoder:
    """A model without a head, its parameters, and how it gets clips.

    random_seed: of parameters that are not trained.
    """

    model: ViViT
    params: Any
    parallel: Parallel
    data: DataSettings
    random_seed: int | None = None

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the encoder is, for files of its features."""
        of = {"random_seed": self.random_seed}
        if self.random_seed is None:
            of = {"sha256": content_hash(flat_params(jax.device_get(self.params)))}
        return {**of, "model": asdict(self.model.config.settings)}

    @cached_property
    def _placed(self) -> Any:
        return self.parallel.place(self.params)

    @cached_property
    def _steps(self) -> dict[Any, Any]:
        return {}

    def with_random_parameters(self, seed: int) -> "Encoder":
        """Returns the encoder as it is before any training."""
        drawn = self.model.init(jax.random.key(seed), *self.model.example())["params"]
        return replace(self, params=jax.device_get(drawn), random_seed=seed)

    def open(self, split: str) -> Split:
        """Opens a split of the data set, with or without labels."""
        return open_split(self.data, split, Reading(()))

    def read(
        self, split: Split, kinds: Sequence[str], *, views: str = "1x1"
    ) -> dict[str, np.ndarray]:
        """Returns kind -> features [N, V, ...] of all clips of a split in V views, and "indices"
        [N] of the clips; those that cannot be read are missing."""
        rows = self.rows(split, Reading(kinds), views=views)
        count = parse_views(views)
        if count["temporal"] == count["spatial"] == 1:  # one view comes without an axis of it
            rows |= {kind: rows[kind][:, None] for kind in kinds}
        return {name: rows[name] for name in (*kinds, "indices")}

    def rows(self, split: Split, objective: Objective, *, views: str) -> dict[str, np.ndarray]:
        """Returns what an objective keeps of each clip of a split that can be read, and "indices"
        [N] of these clips."""
        data = replace(self.data, views=replace(self.data.views, **parse_views(views)))
        # One for all splits, and parts of them, with frames of one size: it is compiled once.
        key = objective, views, split.largest, split.smallest
        if key not in self._steps:
            self._steps[key] = self._make_step(split, objective, data.views)
        of_process = {"process": self.parallel.part, "processes": self.parallel.parts}
        frames = self.model.config.clip[0]
        with closing(eval_batches(data, split, frames=frames, **of_process)) as batches:
            return collect(self._steps[key], self._placed, batches, self.parallel).rows

    def shape(self, kind: str, views: str = "1x1") -> tuple[int, ...]:
        """Returns the shape of a clip's features in V views, [V, ...]."""
        of_kind = lambda params, clips: KINDS[kind](self.model, {"params": params}, clips)
        found, count = (
            jax.eval_shape(of_kind, self.params, *self.model.example()),
            parse_views(views),
        )
        return count["temporal"] * count["spatial"], *found.shape[1:]

    def tokens(self, split: Split, views: str = "1x1") -> "ReadTokens":
        """Returns the tokens of all clips of a split in V views, encoded when they are needed.

        By batches of their own, as those of training may be larger than what a probe asks for.
        """
        shape = (len(split), *self.shape("token", views))
        devices = self.parallel.devices
        batch = min(self.data.batch_size, -(-ENCODED // devices) * devices)
        encoder = replace(self, data=replace(self.data, batch_size=batch))
        return ReadTokens(encoder, split, views, shape)

    def _make_step(self, split: Split, objective: Objective, views: ViewsSettings) -> Any:
        _, height, width = self.model.config.clip
        stacked = lambda outputs, _: jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)
        cut = make_views(views, split, (height, width), average=stacked)
        return self.parallel.evaluate(make_eval_step(self.model, objective, predict_views=cut))


@dataclass(frozen=True)
class ReadTokens:
    """The tokens of the clips of a split, read and encoded each time that they are needed, so that
    few are in memory. `vivit.pretraining.probes.Tokens`."""

    encoder: Encoder
    split: Split
    views: str
    shape: tuple[int, ...]

    def batches(self, order: np.ndarray, size: int) -> Iterator[np.ndarray]:
        of_clip = 4 * math.prod(self.shape[1:])
        several = max(1, AT_ONCE // (of_clip * size)) * size
        for start in range(0, len(order), several):
            numbers = order[start : start + several]
            part = self.split.at(numbers)
            rows = self.encoder.read(part, ("token",), views=self.views)
            if len(rows["token"]) < len(numbers):
                missing = set(range(len(numbers))) - set(rows["indices"].astype(int).tolist())
                name = part.reader.name(min(missing))
                raise ValueError(f"{name} could be read before, and cannot be read now")
            yield from KeptTokens(rows["token"]).batches(np.arange(len(numbers)), size)


def encoder_of_run(run: Run) -> Encoder:
    """Returns the encoder of a run's checkpoint."""
    model, parallel = model_for_devices(run)
    data = replace(run.data_settings, views=run.data_settings.views.centre())
    return _without_head(model, run.params, parallel, data)


def encoder_of_weights(path: str, config: Config) -> Encoder:
    """Returns the encoder of a file of weights, which gets clips as `config.data` says."""
    from vivit.pretrained import load

    loaded = load(path, checkpoint=config.init.checkpoint)
    fields = {**loaded.model_config, "kernel": config.model.kernel}
    model = build_for_inference(record(ModelSettings, fields, at="model"))
    parallel = make_parallel_for_inference(config.parallel)
    data = replace(config.data, views=config.data.views.centre())
    return _without_head(model, loaded.params, parallel, data)


def _without_head(model: ViViT, params: Any, parallel: Parallel, data: DataSettings) -> Encoder:
    model = model.with_settings(classes=0)
    names = jax.eval_shape(lambda: model.init(jax.random.key(0), *model.example()))["params"]
    return Encoder(model, {name: params[name] for name in names}, parallel, data)
