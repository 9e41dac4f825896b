"""VideoMAE of HuggingFace transformers (its modeling_videomae.py), with or without decoder.

Queries and values have biases, keys have none; positions are a fixed table of sines and cosines.
"""

from typing import Any

from vivit.pretrained.files import Archive
from vivit.pretrained.table import Asked, Native, Rule, apply_rules, depth_of, source
from vivit.pretrained.torch_names import (
    HEAD,
    IMAGENET,
    attention_rules,
    dense_rules,
    get,
    head_classes,
    is_model,
    labels,
    norm_rules,
    pair,
    patches,
    pixels,
    sizes,
    to_heads,
)

ROOT = r"(?:videomae\.)?"
LAYER = rf"{ROOT}encoder\.layer\.(\d+)"
ATTENTION = rf"{LAYER}\.attention"
DECODER = r"(?:decoder\..*|mask_token|encoder_to_decoder\.weight)"


@source("hf_videomae", about="HuggingFace VideoMAE folder", recognises=is_model("videomae"))
def read_videomae(archive: Archive, asked: Asked) -> Native:
    """Without a classifier the decoder is dropped, and the mean of the encoder's tokens read."""
    config, arrays = archive.config, archive.arrays
    shape = sizes(config)
    native = Native(
        {
            **shape,
            **pixels(archive, *IMAGENET),
            "clip": (get(config, "num_frames"), *pair(config, "image_size")),
            "tubelet": (get(config, "tubelet_size"), *pair(config, "patch_size")),
            "position": "sinusoidal_interleaved",
            "qkv_bias": "qv" if config.get("qv_bias", config.get("qkv_bias", True)) else "",
            "classes": head_classes(arrays),
            **_readout(archive, depth_of(arrays, LAYER)),
        },
        labels=labels(config, head_classes(arrays)),
    )
    own, path = r"stage_0/layer_\1", r"stage_0/layer_\1/attention_joint"
    named = lambda part: rf"{ATTENTION}\.attention\.{part}"
    split = to_heads(shape["heads"])
    embeddings = rf"{ROOT}embeddings\.patch_embeddings\.projection"
    rules = [
        Rule(rf"{embeddings}\.weight", "tubelet/kernel", patches),
        Rule(rf"{embeddings}\.bias", "tubelet/bias"),
        *attention_rules(named, path, shape["heads"], out=rf"{ATTENTION}\.output\.dense"),
        Rule(rf"{ATTENTION}\.attention\.q_bias", f"{path}/query/bias", split),
        Rule(rf"{ATTENTION}\.attention\.v_bias", f"{path}/value/bias", split),
        *norm_rules(rf"{LAYER}\.layernorm_before", f"{own}/norm_joint"),
        *norm_rules(rf"{LAYER}\.layernorm_after", f"{own}/norm_mlp"),
        *dense_rules(rf"{LAYER}\.intermediate\.dense", f"{own}/mlp/up"),
        *dense_rules(rf"{LAYER}\.output\.dense", f"{own}/mlp/down"),
        *norm_rules(rf"{ROOT}layernorm", "stage_0/norm"),
        *norm_rules("fc_norm", "stage_0/pool/norm"),
        Rule(DECODER, why="the decoder of pre-training"),
        *HEAD,
    ]
    apply_rules(native, arrays, rules)
    return native


def _readout(archive: Archive, depth: int) -> dict[str, Any]:
    """Which readout the arrays belong to: transformers' use_mean_pooling decides, and with it
    whether there is a norm of the tokens, of their mean, or none."""
    names = set(archive.arrays)
    if "fc_norm.weight" in names:
        return {"family": "joint", "depth": depth, "readout": "mean_then_norm"}
    if names & {"layernorm.weight", "videomae.layernorm.weight"}:
        classifier = "VideoMAEForVideoClassification" in (archive.config.get("architectures") or ())
        first = classifier or "classifier.weight" in names
        return {"family": "joint", "depth": depth, "readout": "first" if first else "mean"}
    stage = {"depth": depth, "mixers": ("joint",), "pool": "mean", "norm": False}
    return {"stages": (stage,), "depth": depth}
