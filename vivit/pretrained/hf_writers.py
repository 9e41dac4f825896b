"""Weights out, in the names of HuggingFace transformers: ViViT, VideoMAE and V-JEPA 2."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vivit.attention import PATTERNS
from vivit.attention.reductions import NO_REDUCTION
from vivit.model.block import BLOCKS
from vivit.model.readout import READOUTS
from vivit.pretrained.files import Arrays
from vivit.pretrained.writers import WRITERS, Exported, Writer, export

__all__ = ["WRITERS", "export"]

ACTIVATIONS = {"gelu_tanh": "gelu_fast", "gelu": "gelu", "relu": "relu", "silu": "silu"}
# Settings that none of these models has, at the values that they compute with.
FIXED: dict[str, Any] = {
    "embedding": "tubelet",
    "qk_norm": False,
    "registers": 0,
    "soft_cap": None,
    "pre_logits": None,
    "kv_heads": None,
    "pre_norm": False,
}
Named = Iterator[tuple[str, np.ndarray]]
Checks = Iterable[tuple[bool, str]]  # whether a model fits, and what it must be


def _depth(params: Arrays, path: str) -> int:
    """Returns the number of layers below a path."""
    start = f"{path}/layer_"
    return len({name.split("/")[path.count("/") + 1] for name in params if name.startswith(start)})


class LayerNames(NamedTuple):
    """What the parts of a layer are called. attention: with {} for query, key and value."""

    attention: str
    out: str
    norms: tuple[str, str]
    mlp: tuple[str, str]
    biases: Mapping[str, str] = {}

    def layer(self, params: Arrays, path: str, name: str) -> Named:
        width = len(params[f"{path}/norm_mlp/scale"])
        for part in ("query", "key", "value"):
            whole = f"{name}.{self.attention.format(part)}"
            for called, array in _dense(params, f"{path}/attention_joint/{part}", whole, width):
                yield self._renamed(called, part, name), array
        yield from _dense(params, f"{path}/attention_joint/out", f"{name}.{self.out}", width)
        for ours, theirs in zip(("joint", "mlp"), self.norms, strict=True):
            yield from _norm(params, f"{path}/norm_{ours}", f"{name}.{theirs}")
        for ours, theirs in zip(("up", "down"), self.mlp, strict=True):
            yield from _dense(params, f"{path}/mlp/{ours}", f"{name}.{theirs}")

    def _renamed(self, called: str, part: str, name: str) -> str:
        """Returns the name of a bias that is not called as its weight."""
        is_bias = called.endswith(".bias") and part in self.biases
        return f"{name}.{self.biases[part]}" if is_bias else called

    def layers(self, params: Arrays, path: str, name: str) -> Named:
        """All layers below a path, numbered."""
        for i in range(_depth(params, path)):
            yield from self.layer(params, f"{path}/layer_{i}", f"{name}.{i}")


VIT = LayerNames(
    "attention.attention.{}",
    "attention.output.dense",
    ("layernorm_before", "layernorm_after"),
    ("intermediate.dense", "output.dense"),
)
VIDEOMAE = VIT._replace(
    biases={"query": "attention.attention.q_bias", "value": "attention.attention.v_bias"}
)
VJEPA2 = LayerNames("attention.{}", "attention.proj", ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2"))


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


def _patches(params: Arrays, name: str) -> Named:
    kernel = params["tubelet/kernel"].transpose(4, 3, 0, 1, 2)
    yield f"{name}.weight", np.ascontiguousarray(kernel)
    yield f"{name}.bias", params["tubelet/bias"]


def _check(who: str, exported: Exported, more: Checks, **fixed: Any) -> None:
    """Raises ValueError that lists all that a model of transformers can't hold."""
    settings = exported.settings
    fixed = {**FIXED, **fixed}
    found = {name: getattr(settings, name) for name in fixed}
    checks = [
        *more,
        *((found[k] == value, f"{k}={found[k]!r} must be {value!r}") for k, value in fixed.items()),
        (
            settings.activation in ACTIVATIONS,
            f"activation={settings.activation!r} must be one of {list(ACTIVATIONS)}",
        ),
    ]
    problems = [problem for fits, problem in checks if not fits]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"transformers' {who} can't hold this model:\n  {listed}\nUse to=\"portable\"."
        )


def _is_joint(exported: Exported) -> bool:
    (*others, stage) = exported.model.config.stages
    plain = stage.attentions == (PATTERNS["joint"],) and stage.block == BLOCKS["standard"]
    return plain and not others and stage.norm and stage.reduction == NO_REDUCTION


def _rope(exported: Exported) -> str:
    settings = exported.settings
    rope = settings.stages[-1].rope if settings.stages else None
    return settings.rope if rope is None else rope


def _sizes(exported: Exported) -> dict[str, Any]:
    """Returns what all these models call alike."""
    config, (stage,) = exported.model.config, exported.model.config.stages
    return {
        "dtype": "float32",
        "hidden_size": config.width,
        "num_hidden_layers": stage.depth,
        "num_attention_heads": stage.heads,
        "hidden_act": ACTIVATIONS[exported.settings.activation],
        "layer_norm_eps": config.norm_epsilon,
    }


def _side(exported: Exported) -> Any:
    _, height, width = exported.model.config.clip
    return height if height == width else [height, width]


# ViViT, the joint model with a class token and a head.


def _check_vivit(exported: Exported) -> None:
    settings, stage = exported.settings, exported.model.config.stages[-1]
    rope, half = _rope(exported), (0.5, 0.5, 0.5)
    is_classifier = _is_joint(exported) and stage.readout == READOUTS["cls"]
    checks = [
        (
            is_classifier,
            'it is the joint model with a class token: family="joint", readout="cls"',
        ),
        (rope == "none", f"{rope=} must be 'none'"),
        (stage.qkv_bias in ("qkv", ""), f'qkv_bias={stage.qkv_bias!r} must be "qkv" or ""'),
        (settings.classes > 0, "it needs a head, classes > 0"),
        (not exported.heads, "it has one head"),
        (exported.task == "classify", f"task {exported.task!r}: its head is a softmax"),
    ]
    _check("ViViT", exported, checks, position="learned", pixel_mean=half, pixel_std=half)


def _describe_vivit(exported: Exported) -> dict[str, Any]:
    config, (stage,) = exported.model.config, exported.model.config.stages
    names = exported.labels or [f"LABEL_{i}" for i in range(config.classes)]
    return {
        "architectures": ["VivitForVideoClassification"],
        "model_type": "vivit",
        **_sizes(exported),
        "image_size": _side(exported),
        "num_frames": config.clip[0],
        "tubelet_size": list(config.tubelet),
        "num_channels": 3,
        "intermediate_size": stage.mlp_dim,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "qkv_bias": stage.qkv_bias == "qkv",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _vivit(exported: Exported) -> Arrays:
    """Returns the inverse of `vivit.pretrained.hf_vivit`, with the names of transformers 4, as in
    all public files."""
    params = exported.params
    rows = [params[f"stage_0/position/{name}"] for name in ("class_token", "table")]
    return {
        "vivit.embeddings.cls_token": params["stage_0/class_token"][0],
        "vivit.embeddings.position_embeddings": np.concatenate(rows)[None],
        **dict(_patches(params, "vivit.embeddings.patch_embeddings.projection")),
        **dict(VIT.layers(params, "stage_0", "vivit.encoder.layer")),
        **dict(_norm(params, "stage_0/norm", "vivit.layernorm")),
        **dict(_dense(params, "head", "classifier")),
    }


# Encoders of pre-training, with what is around them.


def _check_encoder(
    who: str, wanted: tuple[str, ...], exported: Exported, *, position: str, rope: str, biases: str
) -> None:
    """wanted: what has to be around the encoder, if anything is."""
    stage, found = exported.model.config.stages[-1], _rope(exported)
    _, h, w = exported.model.config.tubelet
    around = {path.split("/")[0] for path in exported.around}
    of_21 = [path for path in exported.around if path.startswith(("predictor/widen_seen", "norm_"))]
    square = h == w and isinstance(_side(exported), int)
    checks = [
        (_is_joint(exported), 'it is the joint model: family="joint"'),
        (stage.readout == READOUTS["mean"], 'its tokens are read as they are: readout="mean"'),
        (found == rope, f"rope={found!r} must be {rope!r}"),
        (stage.qkv_bias in (biases, ""), f'qkv_bias={stage.qkv_bias!r} must be {biases!r} or ""'),
        (not exported.settings.classes, "it is the encoder alone: classes=0"),
        (square, "its frames and patches are square"),
        (
            not of_21,
            f"V-JEPA 2.1's {of_21} have no place there: levels=1 and context=0 in task.name",
        ),
        (around in (set(), set(wanted)), f"around it {sorted(around)} must be {sorted(wanted)}"),
    ]
    _check(who, exported, checks, position=position)


def _processor(kind: str, exported: Exported) -> dict[str, Any]:
    config = exported.model.config
    return {
        "image_processor_type": kind,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.pixel_mean),
        "image_std": list(config.pixel_std),
        "size": {"shortest_edge": config.clip[1]},
        "crop_size": {"height": config.clip[1], "width": config.clip[2]},
    }


def _videomae(exported: Exported) -> Arrays:
    """Returns the inverse of `vivit.pretrained.hf_videomae`."""
    params, around = exported.params, exported.around
    root = "videomae." if around else ""  # of a model with a decoder
    arrays = {
        **dict(_patches(params, f"{root}embeddings.patch_embeddings.projection")),
        **dict(VIDEOMAE.layers(params, "stage_0", f"{root}encoder.layer")),
        **dict(_norm(params, "stage_0/norm", f"{root}layernorm")),
    }
    if around:
        arrays |= {
            "mask_token": around["mask_token"][None, None],
            **dict(_dense(around, "narrow", "encoder_to_decoder")),
            **dict(VIDEOMAE.layers(around, "decoder", "decoder.decoder_layers")),
            **dict(_norm(around, "norm", "decoder.norm")),
            **dict(_dense(around, "pixels", "decoder.head")),
        }
    return arrays


def _describe_videomae(exported: Exported) -> dict[str, Any]:
    config, (stage,), around = exported.model.config, exported.model.config.stages, exported.around
    decoder = {}
    if around:
        up = around["decoder/layer_0/mlp/up/kernel"]
        decoder = {
            "decoder_hidden_size": up.shape[0],
            "decoder_intermediate_size": up.shape[1],
            "decoder_num_hidden_layers": _depth(around, "decoder"),
            "decoder_num_attention_heads": around[
                "decoder/layer_0/attention_joint/query/kernel"
            ].shape[1],
        }
    return {
        "architectures": ["VideoMAEForPreTraining" if around else "VideoMAEModel"],
        "model_type": "videomae",
        **_sizes(exported),
        "image_size": _side(exported),
        "num_frames": config.clip[0],
        "tubelet_size": config.tubelet[0],
        "patch_size": config.tubelet[1],
        "num_channels": 3,
        "intermediate_size": stage.mlp_dim,
        "qv_bias": stage.qkv_bias == "qv",
        "use_mean_pooling": False,  # with it the encoder has no norm
        **decoder,
    }


def _vjepa2(exported: Exported) -> Arrays:
    """Returns the inverse of `vivit.pretrained.hf_vjepa2`."""
    params, around = exported.params, exported.around
    arrays = {
        **dict(_patches(params, "encoder.embeddings.patch_embeddings.proj")),
        **dict(VJEPA2.layers(params, "stage_0", "encoder.layer")),
        **dict(_norm(params, "stage_0/norm", "encoder.layernorm")),
    }
    if around:
        embeddings = "predictor.embeddings"
        arrays |= {
            f"{embeddings}.mask_tokens": around["predictor/mask_tokens"][:, None, None],
            **dict(_dense(around, "predictor/narrow", f"{embeddings}.predictor_embeddings")),
            **dict(VJEPA2.layers(around, "predictor/stage", "predictor.layer")),
            **dict(_norm(around, "predictor/stage/norm", "predictor.layernorm")),
            **dict(_dense(around, "predictor/widen", "predictor.proj")),
        }
    return arrays


def _describe_vjepa2(exported: Exported) -> dict[str, Any]:
    config, (stage,), around = exported.model.config, exported.model.config.stages, exported.around
    predictor = {}
    if around:
        layer = "predictor/stage/layer_0"
        up = around[f"{layer}/mlp/up/kernel"]
        predictor = {
            "pred_hidden_size": up.shape[0],
            "pred_mlp_ratio": up.shape[1] / up.shape[0],
            "pred_num_hidden_layers": _depth(around, "predictor/stage"),
            "pred_num_attention_heads": around[f"{layer}/attention_joint/query/kernel"].shape[1],
            "pred_num_mask_tokens": len(around["predictor/mask_tokens"]),
        }
    return {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        **_sizes(exported),
        "crop_size": _side(exported),
        "frames_per_clip": config.clip[0],
        "tubelet_size": config.tubelet[0],
        "patch_size": config.tubelet[1],
        "in_chans": 3,
        "mlp_ratio": stage.mlp_dim / config.width,
        "qkv_bias": stage.qkv_bias == "qkv",
        **predictor,
    }


# transformers loads only files whose metadata say "pt".
WRITERS.add("hf_vivit", Writer(_vivit, _describe_vivit, check=_check_vivit, framework="pt"))
WRITERS.add(
    "hf_videomae",
    Writer(
        _videomae,
        _describe_videomae,
        check=partial(
            _check_encoder,
            "VideoMAE",
            ("decoder", "mask_token", "narrow", "norm", "pixels"),
            position="sinusoidal_interleaved",
            rope="none",
            biases="qv",
        ),
        framework="pt",
        processor=partial(_processor, "VideoMAEImageProcessor"),
        around=True,
    ),
)
WRITERS.add(
    "hf_vjepa2",
    Writer(
        _vjepa2,
        _describe_vjepa2,
        check=partial(
            _check_encoder,
            "V-JEPA 2",
            ("predictor",),
            position="none",
            rope="3d_vjepa2",
            biases="qkv",
        ),
        framework="pt",
        processor=partial(_processor, "VJEPA2VideoProcessor"),
        around=True,
    ),
)
