"""A training run's folder, opened: its config, model, parameters and data."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

import vivit
from vivit.attention import KERNELS
from vivit.axes import Logits
from vivit.checkpoint import Checkpoints
from vivit.config import (
    DATA_RECORD,
    IMPORTS,
    import_modules,
    read_data_record,
    read_workdir,
)
from vivit.data.files import is_uri
from vivit.data.pipeline import ViewLoader
from vivit.data.settings import DataSettings
from vivit.data.sources import MANIFESTS, open_split
from vivit.data.split import Split
from vivit.data.views import make_crop
from vivit.io import read_json, write_json
from vivit.model import ViViT
from vivit.model.settings import ModelSettings
from vivit.results import best_of_heads
from vivit.settings import Config
from vivit.tasks import Objective, Task, make_objective, make_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A folder that vivit.train made. What it holds is read when it is first used.

    checkpoint: "best" (by validation), "latest" or a training step.
    split: the split of the data set that `clips` reads.
    data_root: where the data sets are; None for where the run had them.
    """

    workdir: str | Path
    checkpoint: str = "best"
    split: str = "test"
    data_root: str | None = None

    @property
    def folder(self) -> Path:
        return Path(self.workdir)

    @cached_property
    def config(self) -> Config:
        """The run's config. Raises ValueError if the folder holds no run."""
        return read_workdir(self.workdir)

    @cached_property
    def model(self) -> ViViT:
        """The run's model, with a kernel that this machine has: see `build_for_inference`."""
        import_modules(self.config.imports, copies=self.folder / IMPORTS)
        return build_for_inference(self.config.model)

    @cached_property
    def task(self) -> Task:
        """What the run's model predicts. Raises ValueError for a run that predicts no labels."""
        import_modules(self.config.imports, copies=self.folder / IMPORTS)
        return make_task(self.config.task.name, self.config.heads)

    @cached_property
    def objective(self) -> Objective:
        """What the run trained."""
        import_modules(self.config.imports, copies=self.folder / IMPORTS)
        return make_objective(self.config.task.name, self.config.heads)

    @cached_property
    def step(self) -> int:
        """The training step of the checkpoint. Raises ValueError that lists those that exist."""
        _ = self.config  # a folder without a run is refused, and left as it is
        with Checkpoints(self.folder / "checkpoints", best=self.objective.best) as checkpoints:
            return checkpoints.resolve(self.checkpoint)

    @cached_property
    def params(self) -> Any:
        """The model's parameters in the checkpoint as NumPy arrays: the averaged ones, if the run
        averages."""
        return self.objective.split(self.network_params)[0]

    @cached_property
    def network_params(self) -> Any:
        """Those of the network that the run trained, which may contain more than the model."""
        with Checkpoints(self.folder / "checkpoints") as checkpoints:
            return checkpoints.read_params(self.step)

    @cached_property
    def data_settings(self) -> DataSettings:
        """The config's data, with paths that can be opened from any folder."""
        data, place = self.config.data, read_data_record(self.workdir)
        found = {key: place[key] for key in ("root", "name") if _exists(place.get(key, ""))}
        if self.data_root is not None:
            found["root"] = self.data_root
        return replace(data, **found)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of all heads: those recorded in the run, or else the data's."""
        recorded = [read_data_record(self.workdir), *(x["data"] for x in self.evaluations())]
        names = next((x["class_names"] for x in recorded if "class_names" in x), None)
        return self.data.class_names if names is None else tuple(names)

    @cached_property
    def data(self) -> Split:
        """The split. Raises ValueError if the model does not fit its clips and classes."""
        import_modules(self.config.imports, copies=self.folder / IMPORTS)
        settings, recorded = self.data_settings, read_data_record(self.workdir)
        try:
            split = open_split(settings, self.split, self.objective)
        except ValueError as error:
            if self.data_root is None and recorded and not _exists(recorded["root"]):
                raise ValueError(
                    f"{error}\nThe run had its data in {recorded['root']}, which is not there any "
                    "more; --data-root says where it is now"
                ) from error
            raise
        self._warn_of_other_data(recorded, split)
        check_split(split, self.config.model, self.config.data)
        return split

    def _warn_of_other_data(self, recorded: dict[str, Any], split: Split) -> None:
        """Logs a warning if the data set is another than the run was trained with."""
        train = recorded.get("split")
        if train is None or self.data_settings.name.endswith(MANIFESTS):
            return  # of a manifest, every file would have to be opened again
        known = (
            split if train == self.split else open_split(self.data_settings, train, self.objective)
        )
        if known.digest != recorded["digest"]:
            log.warning(
                "the data in %s is not what %s was trained with: clips of split %r may have been "
                "trained on",
                self.data_settings.root,
                self.workdir,
                self.split,
            )

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: "step", "split" and the values at that training step."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its last step."""
        return bool(self.metrics) and self.metrics[-1]["step"] == self.config.train.steps

    def scores(self, *, step: int, views: str = "") -> dict[str, Any] | None:
        """Returns what vivit.evaluate wrote of a checkpoint on the split, or None.

        views: such as "4x3"; "" for the config's.
        """
        name = views or self.config.data.views.name
        path = evaluation_path(self.folder, split=self.split, step=step, views=name)
        if not path.exists() and not views:  # as 0.2.0 called it
            path = path.with_name(f"{self.split}_{step:08d}.json")
        return read_json(path) if path.exists() else None

    def evaluations(self) -> list[dict[str, Any]]:
        """Returns all that vivit.evaluate wrote of the run, by split, training step and views."""
        paths = sorted((self.folder / "eval").glob("*.json"))  # 0.2.0's, without views, first
        found = [read_json(path) for path in paths]
        unique = {(x["split"], x["step"], x["views"]): x for x in found}
        return [unique[key] for key in sorted(unique)]

    def predict(
        self, clips: UInt8[np.ndarray, "B F H W 3"], params: Any = None
    ) -> Float[np.ndarray, "B classes"]:
        """Returns the probabilities of the classes of all heads for clips of the model's size.

        params: other parameters than the run's. `vivit.predict` prepares clips from video files.
        Compiled once per number of clips.
        """
        return np.asarray(self._apply(self.params_on_device if params is None else params, clips))

    def random_params(self, seed: int) -> Any:
        """Returns random parameters with the head of the run, as a head starts at zero."""
        drawn = jax.jit(self.model.init)(jax.random.key(seed), *self.model.example())
        return {**drawn["params"], "head": self.params_on_device["head"]}

    @cached_property
    def _apply(self) -> Any:
        apply = cast(Callable[..., Logits], self.model.apply)
        task = self.task
        return jax.jit(lambda params, clips: task.probabilities(apply({"params": params}, clips)))

    @cached_property
    def params_on_device(self) -> Any:
        """`params`, moved to a device once."""
        return jax.device_put(self.params)

    def clips(
        self, indices: list[int]
    ) -> tuple[UInt8[np.ndarray, "B F H W 3"], Integer[np.ndarray, "B ..."]]:
        """Returns clips of the split as the model gets them, a central view of each, and labels as
        the task encodes them.

        Raises ValueError for a clip that cannot be read.
        """
        return self._views_of(self.data, indices)

    def check_indices(self, indices: Iterable[int]) -> None:
        """Raises ValueError for numbers that are not those of clips of the split."""
        wrong = [index for index in indices if not 0 <= index < len(self.data)]
        if wrong:
            raise ValueError(f"{wrong} are not in 0 .. {len(self.data) - 1}, the split's clips")

    def masks(self, indices: list[int]) -> Bool[np.ndarray, "B F H W"] | None:
        """Returns where the object of the label is in the views that `clips` returns; None if the
        data set does not say."""
        if self.data.masks is None:
            return None
        views, _ = self._views_of(replace(self.data, reader=self.data.masks), indices)
        return views[..., 0] > 127

    def _views_of(
        self, split: Split, indices: list[int]
    ) -> tuple[UInt8[np.ndarray, "B F H W 3"], Integer[np.ndarray, "B ..."]]:
        self.check_indices(indices)
        settings = self.data_settings
        settings = replace(settings, views=settings.views.centre())
        load = ViewLoader(settings, split, self.config.model.clip[0])
        examples = [load(index) for index in indices]
        for index, example in zip(indices, examples, strict=True):
            if not example["valid"]:
                name = self.data.reader.name(index)
                raise ValueError(f"{name} cannot be read; choose another clip")
        # One by one, so that it is compiled once for any number of clips.
        views = [self._crop(x["clips"][:1], x["extents"][None], 0.5)[0] for x in examples]
        return np.stack(list(map(np.asarray, views))), np.array([x["labels"] for x in examples])

    @cached_property
    def _crop(self) -> Any:
        size = self.config.model.clip[1:]
        return jax.jit(make_crop(self.data_settings.views.centre(), self.data, size))

    def titles(self, labels: Integer[np.ndarray, "B ..."]) -> list[str]:
        """Returns the names of the classes of clips: "left", or of two heads "7, left"."""

        def title(row: Any) -> str:
            found = self.task.decode(row).items()
            names = [self.data.classes[label].names[i] for label, of in found for i in of]
            return ", ".join(names) or "none"

        return [title(row) for row in labels]

    def guesses(self, logits: Any) -> list[str]:
        """Returns the most probable class of every head of clips with its probability, from logits
        [B, classes]: "left 97.0%", or of two heads "7 80.1%, left 97.0%"."""
        probabilities = self.task.probabilities(np.asarray(logits))
        best = best_of_heads(self.task, probabilities, self.class_names, k=1)
        return [", ".join(f"{name} {p:.1%}" for ((name, p),) in x.values()) for x in best]

    def one_of_each_class(self, limit: int) -> list[int]:
        """Returns the first clip of each class, then the next clips, up to `limit` indices."""
        split = self.data
        first: dict[tuple[int, int], int] = {}  # (head, class) -> clip
        for index in range(min(len(split), 64 * len(split.class_names))):
            for head, found in enumerate(split.labels_of(index).values()):
                for number in np.ravel(found).tolist():
                    first.setdefault((head, number), index)
        chosen = list(dict.fromkeys(first[key] for key in sorted(first)))
        return (chosen + [i for i in range(len(split)) if i not in chosen])[:limit]


def evaluation_path(folder: Path, *, split: str, step: int, views: str) -> Path:
    """Returns where the scores of a checkpoint on a split in views such as "4x3" are kept."""
    return folder / "eval" / f"{split}_{step:08d}_{views}.json"


def record_data(folder: Path, settings: DataSettings, split: Split) -> None:
    """Writes data.json, with which a run finds its data and knows its classes from any folder."""
    root = settings.root if is_uri(settings.root) else str(Path(settings.root).absolute())
    name = settings.name
    if name.endswith(MANIFESTS):
        name = str(Path(name).absolute())
    place = {"root": root, "name": name, "split": split.split}
    write_json(folder / DATA_RECORD, {**split.identity, **place})


def _exists(path: str) -> bool:
    return bool(path) and (is_uri(path) or Path(path).exists())


def build_for_inference(settings: ModelSettings) -> ViViT:
    """Returns a model that computes what these settings say on this machine.

    A kernel that cannot run, such as a TPU's on a CPU, is replaced by the equal "chunked", and the
    log says so.
    """
    try:
        return vivit.build(settings)
    except ValueError as error:
        if not KERNELS[settings.kernel].softmax:
            raise
        try:
            model = vivit.build(replace(settings, kernel="chunked"))
        except ValueError:  # the kernel is not what is wrong
            raise error from None
        log.info('using kernel "chunked", which is equal: %s', error)
        return model


def check_split(split: Split, model: ModelSettings, data: DataSettings) -> None:
    """Raises ValueError if a model does not fit the clips and classes of a split."""
    problems = []
    heads = split.task.heads
    for head in heads:
        classes = len(split.classes[head.label].names)
        if classes != head.classes:
            key = "model.classes" if len(heads) == 1 else f"task.heads: {head.label}"
            problems.append(f"label {head.label!r} needs {key}={classes}, not {head.classes}")
    size = model.clip[1:]
    if split.smallest < max(size) and not data.enlarge:
        problems.append(
            f"model.clip={model.clip} is larger than the smallest frame, whose short side is "
            f"{split.smallest} pixels; lower it, or set data.enlarge=True"
        )
    if data.canvas is not None and min(data.canvas) < max(size):
        problems.append(f"data.canvas={data.canvas} is smaller than the crop {size}")
    if problems:
        raise ValueError(f"{split.name}: {'; '.join(problems)}")


def check_batch_size(
    batch_size: int, devices: int, *, accumulate: int = 1, clips: int | None = None
) -> None:
    """Raises ValueError if a batch, or each of the parts in which gradients are accumulated, cannot
    be split over the devices, or if a batch has more than all clips."""
    if batch_size < 1 or batch_size % devices:
        raise ValueError(f"data.batch_size={batch_size} is not a multiple of the {devices} devices")
    each = devices * accumulate
    if batch_size % each:
        raise ValueError(
            f"data.batch_size={batch_size} is not a multiple of train.accumulate={accumulate} "
            f"parts on {devices} devices; use {-(-batch_size // each) * each}"
        )
    if clips is not None and batch_size > clips:
        raise ValueError(f"data.batch_size={batch_size} is larger than the {clips} training clips")
