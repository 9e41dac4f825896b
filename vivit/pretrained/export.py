"""Weights out: a portable folder of any model, or a HuggingFace ViViT of a joint one."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from safetensors.numpy import save_file

import vivit
from vivit.io import write_atomically
from vivit.model import ViViT, build, unstack_layers
from vivit.plan import plan_stages
from vivit.pretrained.adapt import as_fields, build_plain, parameter_shapes
from vivit.pretrained.files import Arrays
from vivit.pretrained.own import FORMAT
from vivit.pretrained.table import raise_problems, shape_problems
from vivit.registry import Registry

# (model, model_config, flat unrolled params, labels) -> (arrays of the file, its config.json)
Writer = Callable[[ViViT, dict[str, Any], Arrays, tuple[str, ...]], tuple[Arrays, dict[str, Any]]]
WRITERS: Registry[Writer] = Registry("export format")


def export(
    folder: str | Path,
    model_config: Mapping[str, Any] | ConfigDict,
    params: Mapping[str, Any],
    *,
    to: str = "portable",
    labels: Sequence[str] = (),
) -> Path:
    """Writes model.safetensors and config.json into a new folder; returns it.

    to: "portable", which `load` reads and any reader of safetensors can; or "hf_vivit", which
        transformers' VivitForVideoClassification loads, for a joint model with a class token.
    labels: names of the classes.

    ValueError for a folder that is not empty, and for what the format can't hold.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; name a new folder")
    config = {k: v for k, v in _plain(dict(model_config)).items() if v is not None}
    model = build(config)
    if labels and len(labels) != model.classes:
        raise ValueError(f"{len(labels)} labels for {model.classes} classes")
    flat = flatten_dict(unstack_layers(params), sep="/")
    flat = {path: np.ascontiguousarray(np.asarray(a)) for path, a in flat.items()}
    _check_params(flat, model)
    arrays, about = WRITERS[to](model, config, flat, tuple(labels))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
        pass
    save_file(arrays, part.name, metadata={"format": "pt" if to.startswith("hf_") else FORMAT})
    Path(part.name).chmod(0o644)
    Path(part.name).rename(folder / "model.safetensors")
    # Last, so that a folder with a config is whole.
    write_atomically(folder / "config.json", json.dumps(about, indent=1) + "\n")
    return folder


def _check_params(flat: Arrays, model: ViViT) -> None:
    """ValueError lists what is not of the model."""
    there = {path: array.shape for path, array in flat.items()}
    problems = shape_problems(there, parameter_shapes(build_plain(as_fields(model))))
    raise_problems(problems, "the parameters for this config")


def _plain(value: Any) -> Any:
    """A config as JSON has it."""
    if isinstance(value, (Mapping, ConfigDict)):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@WRITERS.register("portable")
def _portable(model, config, flat: Arrays, labels) -> tuple[Arrays, dict[str, Any]]:
    about = {
        "format": FORMAT,
        "vivit": vivit.__version__,
        "model": {**config, "scan": False},
        "labels": list(labels),
    }
    return {path.replace("/", "."): array for path, array in flat.items()}, about


HF_ACTIVATIONS = {"gelu_tanh": "gelu_fast", "gelu": "gelu", "relu": "relu", "silu": "silu"}


@WRITERS.register("hf_vivit")
def _hf_vivit(model: ViViT, config, flat: Arrays, labels) -> tuple[Arrays, dict[str, Any]]:
    stage = _only_stage(model)
    fields = stage["fields"]
    about = {
        "architectures": ["VivitForVideoClassification"],
        "model_type": "vivit",
        "dtype": "float32",
        "image_size": model.clip[1] if model.clip[1] == model.clip[2] else list(model.clip[1:]),
        "num_frames": model.clip[0],
        "tubelet_size": list(model.tubelet),
        "num_channels": 3,
        "hidden_size": model.width,
        "num_hidden_layers": stage["depth"],
        "num_attention_heads": fields.heads,
        "intermediate_size": stage["mlp_dim"],
        "hidden_act": HF_ACTIVATIONS[model.activation],
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "layer_norm_eps": model.norm_epsilon,
        "qkv_bias": fields.qkv_bias == "qkv",
        "id2label": {str(i): name for i, name in enumerate(_names(model, labels))},
        "label2id": {name: i for i, name in enumerate(_names(model, labels))},
    }
    return dict(_hf_arrays(flat, model.width, stage["depth"])), about


def _names(model: ViViT, labels: tuple[str, ...]) -> Sequence[str]:
    return labels or [f"LABEL_{i}" for i in range(model.classes)]


def _only_stage(model: ViViT) -> dict[str, Any]:
    """The stage of a model that transformers' ViViT can hold. ValueError lists all that it has
    not."""
    (*others, stage), problems = plan_stages(model), []
    plain = stage["mixers"] == ("joint",) and stage["pool"] == "cls" and stage["norm"]
    if others or not plain or stage["reduce"]:
        problems.append('it is the joint model with a class token: family="joint", readout="cls"')
    if stage["fields"].rope != "none":
        problems.append(f"rope={stage['fields'].rope!r} must be 'none'")
    wanted = {
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
    for name, value in wanted.items():
        if getattr(model, name) != value:
            problems.append(f"{name}={getattr(model, name)!r} must be {value!r}")
    if stage["fields"].qkv_bias not in ("qkv", ""):
        problems.append(f'qkv_bias={stage["fields"].qkv_bias!r} must be "qkv" or ""')
    if model.activation not in HF_ACTIVATIONS:
        problems.append(f"activation={model.activation!r} must be one of {list(HF_ACTIVATIONS)}")
    if not model.classes:
        problems.append("it needs a head, classes > 0")
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"transformers' ViViT can't hold this model:\n  {listed}\nUse to=\"portable\"."
        )
    return stage


def _hf_arrays(flat: Arrays, width: int, depth: int):
    """The inverse of `vivit.pretrained.hf_vivit`, with the names of transformers 4, as in all
    public files."""
    position = np.concatenate(
        [flat["stage_0/position/class_token"], flat["stage_0/position/table"]]
    )
    yield "vivit.embeddings.cls_token", flat["stage_0/class_token"][0]
    yield "vivit.embeddings.position_embeddings", position[None]
    projection = "vivit.embeddings.patch_embeddings.projection"
    kernel = flat["tubelet/kernel"].transpose(4, 3, 0, 1, 2)
    yield f"{projection}.weight", np.ascontiguousarray(kernel)
    yield f"{projection}.bias", flat["tubelet/bias"]
    yield from _norm(flat, "stage_0/norm", "vivit.layernorm")
    yield from _dense(flat, "head", "classifier")
    for i in range(depth):
        ours, theirs = f"stage_0/layer_{i}", f"vivit.encoder.layer.{i}"
        for part in ("query", "key", "value", "out"):
            attention = f"{theirs}.attention"
            name = f"{attention}.output.dense" if part == "out" else f"{attention}.attention.{part}"
            yield from _dense(flat, f"{ours}/attention_joint/{part}", name, width)
        yield from _norm(flat, f"{ours}/norm_joint", f"{theirs}.layernorm_before")
        yield from _norm(flat, f"{ours}/norm_mlp", f"{theirs}.layernorm_after")
        yield from _dense(flat, f"{ours}/mlp/up", f"{theirs}.intermediate.dense")
        yield from _dense(flat, f"{ours}/mlp/down", f"{theirs}.output.dense")


def _norm(flat: Arrays, ours: str, theirs: str):
    yield f"{theirs}.weight", flat[f"{ours}/scale"]
    yield f"{theirs}.bias", flat[f"{ours}/bias"]


def _dense(flat: Arrays, ours: str, theirs: str, width: int | None = None):
    """width: of a square kernel with an axis of heads, on either side."""
    kernel = flat[f"{ours}/kernel"]
    kernel = kernel.reshape(width, width) if width else kernel
    yield f"{theirs}.weight", np.ascontiguousarray(kernel.T)
    if f"{ours}/bias" in flat:
        yield f"{theirs}.bias", flat[f"{ours}/bias"].reshape(-1)
