"""Weights out: a portable folder of any model, or a HuggingFace ViViT of a joint one."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

import vivit
from vivit.attention import PATTERNS
from vivit.attention.reductions import NO_REDUCTION
from vivit.io import write_json
from vivit.model.block import BLOCKS
from vivit.model.params import unstack_layers
from vivit.model.readout import READOUTS
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
    the names of its classes, its task, and label -> number of classes of several heads."""

    settings: ModelSettings
    model: ViViT
    params: Arrays
    labels: tuple[str, ...]
    task: str
    heads: Mapping[str, int]


@dataclass(frozen=True)
class Writer:
    """A registered export format.

    arrays: returns the arrays of the file. describe: returns its config.json. check: raises
    ValueError for a model that the format can't hold. framework: "format" in the file's metadata.
    """

    arrays: Callable[[Exported], Arrays]
    describe: Callable[[Exported], dict[str, Any]]
    check: Callable[[Exported], None] = lambda exported: None
    framework: str = FORMAT


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
) -> Path:
    """Writes model.safetensors and config.json into a new folder, and returns the folder.

    to: a name of WRITERS: "portable", which `load` and any reader of safetensors read; or
        "hf_vivit", which transformers' VivitForVideoClassification loads, for a joint model with a
        class token.
    labels: names of the classes. task: of TASKS, what the head predicts. heads: label -> number of
        classes of a model with several, in the order of the logits.

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
    writer, exported = (
        WRITERS[to],
        Exported(settings, model, flat, tuple(labels), task, heads or {}),
    )
    writer.check(exported)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
        pass
    save_file(writer.arrays(exported), part.name, metadata={"format": writer.framework})
    Path(part.name).chmod(0o644)
    Path(part.name).rename(folder / "model.safetensors")
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

HF_ACTIVATIONS = {"gelu_tanh": "gelu_fast", "gelu": "gelu", "relu": "relu", "silu": "silu"}
# Settings that transformers' ViViT does not have, at the values that it computes with.
HF_FIXED = {
    "position": "learned",
    "embedding": "tubelet",
    "qk_norm": False,
    "registers": 0,
    "soft_cap": None,
    "pre_logits": None,
    "kv_heads": None,
    "pixel_mean": (0.5, 0.5, 0.5),
    "pixel_std": (0.5, 0.5, 0.5),
}


def _hf_check(exported: Exported) -> None:
    """Raises ValueError that lists all that transformers' ViViT can't hold."""
    settings, (*others, stage) = exported.settings, exported.model.config.stages
    rope = settings.stages[-1].rope if settings.stages else None
    rope = settings.rope if rope is None else rope
    is_joint = stage.attentions == (PATTERNS["joint"],) and stage.block == BLOCKS["standard"]
    is_joint = is_joint and stage.readout == READOUTS["cls"] and stage.norm and not others
    checks = [
        (
            is_joint and stage.reduction == NO_REDUCTION,
            'it is the joint model with a class token: family="joint", readout="cls"',
        ),
        (not stage.rope.rotates, f"{rope=} must be 'none'"),
        *(
            (
                getattr(settings, name) == value,
                f"{name}={getattr(settings, name)!r} must be {value!r}",
            )
            for name, value in HF_FIXED.items()
        ),
        (stage.qkv_bias in ("qkv", ""), f'qkv_bias={stage.qkv_bias!r} must be "qkv" or ""'),
        (
            settings.activation in HF_ACTIVATIONS,
            f"activation={settings.activation!r} must be one of {list(HF_ACTIVATIONS)}",
        ),
        (settings.classes > 0, "it needs a head, classes > 0"),
        (not exported.heads, "it has one head"),
        (exported.task == "classify", f"task {exported.task!r}: its head is a softmax"),
    ]
    problems = [problem for fits, problem in checks if not fits]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"transformers' ViViT can't hold this model:\n  {listed}\nUse to=\"portable\"."
        )


def _hf_config(exported: Exported) -> dict[str, Any]:
    config, (stage,) = exported.model.config, exported.model.config.stages
    names = exported.labels or [f"LABEL_{i}" for i in range(config.classes)]
    frames, height, width = config.clip
    return {
        "architectures": ["VivitForVideoClassification"],
        "model_type": "vivit",
        "dtype": "float32",
        "image_size": height if height == width else [height, width],
        "num_frames": frames,
        "tubelet_size": list(config.tubelet),
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": stage.depth,
        "num_attention_heads": stage.heads,
        "intermediate_size": stage.mlp_dim,
        "hidden_act": HF_ACTIVATIONS[exported.settings.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.norm_epsilon,
        "qkv_bias": stage.qkv_bias == "qkv",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _hf_arrays(exported: Exported) -> Arrays:
    """Returns the inverse of `vivit.pretrained.hf_vivit`, with the names of transformers 4, as in
    all public files."""
    params, config = exported.params, exported.model.config
    rows = [params[f"stage_0/position/{name}"] for name in ("class_token", "table")]
    projection = "vivit.embeddings.patch_embeddings.projection"
    kernel = params["tubelet/kernel"].transpose(4, 3, 0, 1, 2)
    arrays = {
        "vivit.embeddings.cls_token": params["stage_0/class_token"][0],
        "vivit.embeddings.position_embeddings": np.concatenate(rows)[None],
        f"{projection}.weight": np.ascontiguousarray(kernel),
        f"{projection}.bias": params["tubelet/bias"],
        **dict(_norm(params, "stage_0/norm", "vivit.layernorm")),
        **dict(_dense(params, "head", "classifier")),
    }
    for i in range(config.stages[0].depth):
        layer = _hf_layer(params, f"stage_0/layer_{i}", f"vivit.encoder.layer.{i}", config.width)
        arrays |= dict(layer)
    return arrays


Named = Iterator[tuple[str, np.ndarray]]


def _hf_layer(params: Arrays, path: str, layer: str, width: int) -> Named:
    attention = f"{layer}.attention"
    for part in ("query", "key", "value"):
        name = f"{attention}.attention.{part}"
        yield from _dense(params, f"{path}/attention_joint/{part}", name, width)
    yield from _dense(params, f"{path}/attention_joint/out", f"{attention}.output.dense", width)
    yield from _norm(params, f"{path}/norm_joint", f"{layer}.layernorm_before")
    yield from _norm(params, f"{path}/norm_mlp", f"{layer}.layernorm_after")
    yield from _dense(params, f"{path}/mlp/up", f"{layer}.intermediate.dense")
    yield from _dense(params, f"{path}/mlp/down", f"{layer}.output.dense")


def _norm(params: Arrays, path: str, name: str) -> Named:
    yield f"{name}.weight", params[f"{path}/scale"]
    yield f"{name}.bias", params[f"{path}/bias"]


def _dense(params: Arrays, path: str, name: str, width: int | None = None) -> Named:
    """width: of a square kernel with an axis of heads, on either side."""
    kernel = params[f"{path}/kernel"]
    kernel = kernel.reshape(width, width) if width else kernel
    yield f"{name}.weight", np.ascontiguousarray(kernel.T)
    if f"{path}/bias" in params:
        yield f"{name}.bias", params[f"{path}/bias"].reshape(-1)


# transformers loads only files whose metadata say "pt".
WRITERS.add("hf_vivit", Writer(_hf_arrays, _hf_config, check=_hf_check, framework="pt"))
