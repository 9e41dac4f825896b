"""Weights out: a portable folder of any model, or the folder of a HuggingFace model."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

import vivit
from vivit.io import write_json
from vivit.model.params import unstack_layers
from vivit.model.settings import ModelSettings
from vivit.model.vivit import ViViT
from vivit.pretrained.adapt import build_plain, parameter_shapes
from vivit.pretrained.files import Arrays, flat_params
from vivit.pretrained.runs import FORMAT
from vivit.pretrained.sources import raise_problems, shape_problems
from vivit.records import record
from vivit.registry import Registry


@dataclass(frozen=True)
class Exported:
    """A model that is written: its settings, its module (unrolled, in float32), parameters by path,
    the names of its classes, its task, label -> number of classes of several heads, and what
    pre-training has around the model, by path."""

    settings: ModelSettings
    model: ViViT
    params: Arrays
    labels: tuple[str, ...]
    task: str
    heads: Mapping[str, int]
    around: Arrays


@dataclass(frozen=True)
class Writer:
    """A registered export format.

    arrays: returns the arrays of the file. describe: returns its config.json. check: raises
    ValueError for a model that the format can't hold. framework: "format" in the file's metadata.
    processor: returns preprocessor_config.json, where there is one. around: whether what
    pre-training has around the model is written.
    """

    arrays: Callable[[Exported], Arrays]
    describe: Callable[[Exported], dict[str, Any]]
    check: Callable[[Exported], None] = lambda exported: None
    framework: str = FORMAT
    processor: Callable[[Exported], dict[str, Any]] | None = None
    around: bool = False


WRITERS: Registry[Writer] = Registry("export format")


def export(
    folder: str | Path,
    model_config: Mapping[str, Any] | ConfigDict | ModelSettings,
    params: Mapping[str, Any],
    *,
    to: str = "portable",
    labels: Sequence[str] = (),
    task: str = "classify",
    heads: Mapping[str, int] | None = None,
    around: Mapping[str, Any] | None = None,
) -> Path:
    """Writes model.safetensors and config.json into a new folder, and returns the folder.

    to: a name of WRITERS: "portable", which `load` and any reader of safetensors read; "hf_vivit",
        which transformers' VivitForVideoClassification loads, for a joint model with a class token;
        "hf_videomae" and "hf_vjepa2", for encoders without a head.
    labels: names of the classes. task: of TASKS, what the head predicts. heads: label -> number of
        classes of a model with several, in the order of the logits. around: `Pretrained.around`,
        the decoder or predictor of pre-training, for the formats that hold it.

    Raises ValueError for a folder that is not empty, and for what the format can't hold.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; name a new folder")
    settings = model_config
    if not isinstance(settings, ModelSettings):
        settings = record(ModelSettings, dict(settings), at="model")
    model = build_plain(asdict(settings))
    if labels and len(labels) != model.config.classes:
        raise ValueError(f"{len(labels)} labels for {model.config.classes} classes")
    flat = flat_params(unstack_layers(params))
    flat = {path: np.ascontiguousarray(np.asarray(a)) for path, a in flat.items()}
    found = {path: array.shape for path, array in flat.items()}
    problems = shape_problems(found, parameter_shapes(model.config))
    raise_problems(problems, "the parameters for this config")
    writer = WRITERS[to]
    if around and not writer.around:
        raise ValueError(f"format {to!r} has no place for a decoder or predictor; leave out around")
    outside = {k: np.asarray(v) for k, v in flat_params(unstack_layers(around or {})).items()}
    exported = Exported(settings, model, flat, tuple(labels), task, heads or {}, outside)
    writer.check(exported)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
        pass
    save_file(writer.arrays(exported), part.name, metadata={"format": writer.framework})
    Path(part.name).chmod(0o644)
    Path(part.name).rename(folder / "model.safetensors")
    if writer.processor is not None:
        write_json(folder / "preprocessor_config.json", writer.processor(exported))
    # Last, so that a folder with a config is whole.
    write_json(folder / "config.json", writer.describe(exported))
    return folder


def _portable(exported: Exported) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "vivit": vivit.__version__,
        "model": {**asdict(exported.settings), "scan": False},
        "labels": list(exported.labels),
        "task": {"name": exported.task, "heads": list(exported.heads.items())},
    }


WRITERS.add(
    "portable",
    Writer(
        lambda exported: {path.replace("/", "."): a for path, a in exported.params.items()},
        _portable,
    ),
)
