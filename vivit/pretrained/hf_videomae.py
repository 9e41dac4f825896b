"""VideoMAE of HuggingFace transformers (its modeling_videomae.py), with or without decoder.

Queries and values have biases, keys have none; positions are a fixed table of sines and cosines.
"""

from typing import Any

from vivit.pretrained import torch_names as hf
from vivit.pretrained.files import Archive
from vivit.pretrained.sources import LoadHints, Rule, SourceModel, apply_rules, depth_of, source

ROOT = r"(?:videomae\.)?"
LAYER = rf"{ROOT}encoder\.layer\.(\d+)"
ATTENTION = rf"{LAYER}\.attention"
DECODER = r"(?:decoder\..*|mask_token|encoder_to_decoder\.weight)"


@source("hf_videomae", about="HuggingFace VideoMAE folder", recognises=hf.is_model("videomae"))
def read_videomae(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the model. Without a classifier the decoder is dropped, and the mean of the encoder's
    tokens is read."""
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
    path = r"stage_0/layer_\1"
    attention = f"{path}/attention_joint"
    named = lambda part: rf"{ATTENTION}\.attention\.{part}"
    rules = [
        *hf.patch_rules(rf"{ROOT}embeddings\.patch_embeddings\.projection"),
        *hf.attention_rules(named, attention, heads, out=rf"{ATTENTION}\.output\.dense"),
        Rule(rf"{ATTENTION}\.attention\.q_bias", f"{attention}/query/bias", hf.to_heads(heads)),
        Rule(rf"{ATTENTION}\.attention\.v_bias", f"{attention}/value/bias", hf.to_heads(heads)),
        *hf.block_rules(LAYER, path, "joint"),
        *hf.norm_rules(rf"{ROOT}layernorm", "stage_0/norm"),
        *hf.norm_rules("fc_norm", "stage_0/pool/norm"),
        Rule(DECODER, why="the decoder of pre-training"),
        *hf.HEAD,
    ]
    return apply_rules(model, arrays, rules)


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
