"""VideoMAE of HuggingFace transformers (its modeling_videomae.py), with or without decoder.

Queries and values have biases, keys have none; positions are a fixed table of sines and cosines.
"""

from typing import Any

from vivit.pretrained import torch_names as hf
from vivit.pretrained.files import Archive
from vivit.pretrained.sources import (
    AROUND,
    LoadHints,
    Rule,
    SourceModel,
    apply_rules,
    depth_of,
    source,
)

ROOT = r"(?:videomae\.)?"
LAYER = rf"{ROOT}encoder\.layer\.(\d+)"
DECODER_LAYER = r"decoder\.decoder_layers\.(\d+)"


@source("hf_videomae", about="HuggingFace VideoMAE folder", recognises=hf.is_model("videomae"))
def read_videomae(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the model. Without a classifier the mean of the encoder's tokens is read, and the
    decoder is for the task "mae" alone."""
    config, arrays = archive.config, archive.arrays
    shape = hf.sizes(config)
    heads = shape["heads"]
    shape["qkv_bias"] = "qv" if config.get("qv_bias", config.get("qkv_bias", True)) else ""
    model = hf.source_model(
        archive,
        config,
        **shape,
        **hf.pixels(archive, *hf.IMAGENET),
        clip=(hf.get(config, "num_frames"), *hf.pair(config, "image_size")),
        tubelet=(hf.get(config, "tubelet_size"), *hf.pair(config, "patch_size")),
        position="sinusoidal_interleaved",
        **_readout(archive, depth_of(arrays, LAYER)),
    )
    rules = [
        *hf.patch_rules(rf"{ROOT}embeddings\.patch_embeddings\.projection"),
        *_layer_rules(LAYER, r"stage_0/layer_\1", heads),
        *hf.norm_rules(rf"{ROOT}layernorm", "stage_0/norm"),
        *hf.norm_rules("fc_norm", "stage_0/pool/norm"),
        *_decoder_rules(config.get("decoder_num_attention_heads", 1)),
        *hf.HEAD,
    ]
    return apply_rules(model, arrays, rules)


def _layer_rules(layer: str, path: str, heads: int) -> list[Rule]:
    attention, source = f"{path}/attention_joint", rf"{layer}\.attention"
    named = lambda part: rf"{source}\.attention\.{part}"
    return [
        *hf.attention_rules(named, attention, heads, out=rf"{source}\.output\.dense"),
        Rule(rf"{source}\.attention\.q_bias", f"{attention}/query/bias", hf.to_heads(heads)),
        Rule(rf"{source}\.attention\.v_bias", f"{attention}/value/bias", hf.to_heads(heads)),
        *hf.block_rules(layer, path, "joint"),
    ]


def _decoder_rules(heads: int) -> list[Rule]:
    """Returns the rules of what `vivit.pretraining.mae` has around the encoder."""
    rules = [
        *_layer_rules(DECODER_LAYER, r"decoder/layer_\1", heads),
        *hf.norm_rules(r"decoder\.norm", "norm"),
        *hf.dense_rules(r"decoder\.head", "pixels"),
        Rule(r"encoder_to_decoder\.weight", "narrow/kernel", hf.transposed),
        Rule("mask_token", "mask_token", lambda x: x[0, 0]),
    ]
    why = "the decoder of pre-training"
    return [rule._replace(path=f"{AROUND}{rule.path}", why=why) for rule in rules]


def _readout(archive: Archive, depth: int) -> dict[str, Any]:
    """Returns the fields of the readout that the arrays belong to: transformers' use_mean_pooling
    decides it, and whether there is a norm of the tokens, of their mean, or none."""
    names = set(archive.arrays)
    if "fc_norm.weight" in names:
        return {"family": "joint", "depth": depth, "readout": "mean_then_norm"}
    if names & {"layernorm.weight", "videomae.layernorm.weight"}:
        classifier = "VideoMAEForVideoClassification" in (archive.config.get("architectures") or ())
        first = classifier or "classifier.weight" in names
        return {"family": "joint", "depth": depth, "readout": "first" if first else "mean"}
    stage = {"depth": depth, "attentions": ("joint",), "pool": "mean", "norm": False}
    return {"stages": (stage,), "depth": depth}
