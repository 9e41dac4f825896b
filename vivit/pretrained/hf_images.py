"""Image encoders of HuggingFace transformers: ViT, DeiT, DINOv2 with and without registers, and the
vision towers of CLIP and SigLIP.

They are read as joint models of one frame, as `vivit.pretrained.vit` reads google-research's.
LayerScale is folded into the layer before it. Names: transformers' modeling_vit.py, _deit.py,
_dinov2.py, _dinov2_with_registers.py, _clip.py and _siglip.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vivit.pretrained import torch_names as hf
from vivit.pretrained.files import Archive
from vivit.pretrained.sources import (
    LoadHints,
    Rule,
    SourceModel,
    apply_rules,
    depth_of,
    source,
    split_class_row,
)

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PATH = r"stage_0/layer_\1"
ATTENTION = f"{PATH}/attention_joint"


def _image(
    archive: Archive, config: Mapping[str, Any], pixels: Any, layer: str, **fields: Any
) -> SourceModel:
    """Returns a joint model of one frame without parameters yet."""
    return hf.source_model(
        archive,
        config,
        **{
            **hf.sizes({"layer_norm_eps": 1e-6, **config}),
            **hf.pixels(archive, *pixels),
            "clip": (1, *hf.pair(config, "image_size")),
            "tubelet": (1, *hf.pair(config, "patch_size")),
            "depth": depth_of(archive.arrays, layer),
            "family": "joint",
            "readout": "cls",
            **fields,
        },
    )


def _embedding_rules(embeddings: str) -> list[Rule]:
    return [
        Rule(rf"{embeddings}\.cls_token", "stage_0/class_token", lambda x: x[None]),
        Rule(rf"{embeddings}\.mask_token", why="the mask token of pre-training"),
        *hf.patch_rules(rf"{embeddings}\.patch_embeddings\.projection"),
    ]


@source("hf_vit", about="HuggingFace ViT or DeiT folder", recognises=hf.is_model("vit", "deit"))
def read_vit(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the model. DeiT's distillation token, with its position, is a register. A pooler is
    pre_logits: a dense layer and tanh on the class token."""
    config, arrays = archive.config, archive.arrays
    root = r"(?:vit\.|deit\.)?"
    layer, embeddings = rf"{root}(?:encoder\.layer|layers)\.(\d+)", rf"{root}embeddings"
    distilled = next((n for n in arrays if n.endswith("distillation_token")), None)
    pooler = next((a for n, a in arrays.items() if n.endswith("pooler.dense.weight")), None)
    if pooler is not None and config.get("pooler_act", "tanh") != "tanh":
        raise ValueError(f"config.json has pooler_act={config['pooler_act']!r}, not tanh")
    if "cls_classifier.weight" in arrays:  # DeiT's two heads, whose logits are averaged
        raise ValueError(
            "DeiTForImageClassificationWithTeacher has two heads; save its model as "
            "DeiTForImageClassification, or as DeiTModel"
        )
    pixels = HALF if config["model_type"] == "vit" else hf.IMAGENET
    pre_logits = None if pooler is None else pooler.shape[0]
    model = _image(
        archive, config, pixels, layer, pre_logits=pre_logits, registers=int(distilled is not None)
    )
    if distilled is not None:
        positions = next(n for n in arrays if n.endswith("position_embeddings"))
        row = arrays[positions][:, 1:2].astype(np.float32)
        arrays[distilled] = arrays[distilled].astype(np.float32) + row
        arrays[positions] = np.delete(arrays[positions], 1, axis=1)
        model.notes.append("the distillation token is a register, with its position")
    rules = [
        *_embedding_rules(embeddings),
        Rule(rf"{embeddings}\.distillation_token", "stage_0/registers", lambda x: x[0]),
        Rule(rf"{embeddings}\.position_embeddings", "stage_0/position/", split_class_row),
        *hf.vit_attention_rules(layer, ATTENTION, model.model_config["heads"]),
        *hf.block_rules(layer, PATH, "joint", mlp=hf.VIT_MLP),
        *hf.norm_rules(rf"{root}layernorm", "stage_0/norm"),
        *hf.dense_rules(rf"{root}pooler\.dense", "pre_logits"),
        *hf.HEAD,
    ]
    return apply_rules(model, arrays, rules)


@source(
    "hf_dinov2",
    about="HuggingFace DINOv2 folder, with or without registers",
    recognises=hf.is_model("dinov2", "dinov2_with_registers"),
)
def read_dinov2(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the model that gives the normed class token. A classifier is left out: transformers'
    reads the class token and the mean of the others."""
    arrays = archive.arrays
    root = r"(?:dinov2\.|dinov2_with_registers\.)?"
    layer, embeddings = rf"{root}(?:encoder\.layer|layers)\.(\d+)", rf"{root}embeddings"
    config, gated = dict(archive.config), bool(archive.config.get("use_swiglu_ffn", False))
    width, ratio = hf.get(config, "hidden_size"), hf.get(config, "mlp_ratio", (int, float))
    config["intermediate_size"] = int(width * ratio)
    fields = {}
    if gated:
        name = next(n for n in arrays if n.endswith("mlp.weights_in.weight"))
        fields = {"activation": "swiglu", "mlp_dim": arrays[name].shape[0]}
    registers = int(config.get("num_register_tokens", 0))
    model = _image(archive, config, hf.IMAGENET, layer, registers=registers, **fields)
    model.model_config["classes"], model.labels = 0, ()
    mlp = (r"mlp\.(?:fc1|weights_in)", r"mlp\.(?:fc2|weights_out)")
    for number, output in enumerate((hf.VIT_OUT, mlp[1]), start=1):
        hf.fold_layer_scale(model, arrays, layer, rf"layer_scale{number}\.lambda1", output)
    rules = [
        *_embedding_rules(embeddings),
        Rule(rf"{embeddings}\.register_tokens", "stage_0/registers", lambda x: x[0]),
        Rule(rf"{embeddings}\.position_embeddings", "stage_0/position/", split_class_row),
        *hf.vit_attention_rules(layer, ATTENTION, model.model_config["heads"]),
        *hf.block_rules(layer, PATH, "joint", norms=("norm1", "norm2"), mlp=mlp),
        *hf.norm_rules(rf"{root}layernorm", "stage_0/norm"),
        Rule(r"classifier\.(?:weight|bias)", why="it reads the class token and the mean of others"),
    ]
    return apply_rules(model, arrays, rules)


def _tower(archive: Archive) -> Mapping[str, Any]:
    """Returns the config of the vision tower, of a folder that may have a text tower too."""
    return archive.config.get("vision_config") or archive.config


TOWER = r"(?:vision_model\.)?"
TOWER_LAYER = rf"{TOWER}encoder\.layers\.(\d+)"
TEXT = Rule(r"(?:text_model|text_projection|logit_\w+)(?:\..*)?", why="of the text tower")


def _tower_rules(heads: int) -> list[Rule]:
    named = lambda part: rf"{TOWER_LAYER}\.self_attn\.{part[0]}_proj"
    out = rf"{TOWER_LAYER}\.self_attn\.out_proj"
    norms, mlp = ("layer_norm1", "layer_norm2"), (r"mlp\.fc1", r"mlp\.fc2")
    return [
        *hf.patch_rules(rf"{TOWER}embeddings\.patch_embedding"),
        Rule(rf"{TOWER}embeddings\.position_ids", why="not a parameter"),
        *hf.attention_rules(named, ATTENTION, heads, out=out),
        *hf.block_rules(TOWER_LAYER, PATH, "joint", norms=norms, mlp=mlp),
        *hf.norm_rules(rf"{TOWER}post_layernorm", "stage_0/norm"),
        TEXT,
    ]


@source(
    "hf_clip",
    about="HuggingFace CLIP folder: its vision tower",
    recognises=hf.is_model("clip", "clip_vision_model"),
)
def read_clip(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the vision tower, which gives the normed class token, before any projection."""
    arrays = archive.arrays
    model = _image(archive, _tower(archive), CLIP_PIXELS, TOWER_LAYER, pre_norm=True)
    # Its patches have no bias.
    arrays["embeddings.patch_embedding.bias"] = np.zeros(model.model_config["width"], np.float32)
    table = lambda x: split_class_row(x[None])
    rules = [
        Rule(rf"{TOWER}embeddings\.class_embedding", "stage_0/class_token", _as_token),
        Rule(rf"{TOWER}embeddings\.position_embedding\.weight", "stage_0/position/", table),
        *hf.norm_rules(rf"{TOWER}pre_layrnorm", "stage_0/pre_norm"),
        Rule(r"visual_projection\.weight", why="the projection to the space of texts"),
        *_tower_rules(model.model_config["heads"]),
    ]
    return apply_rules(model, arrays, rules)


def _as_token(x: np.ndarray) -> np.ndarray:
    return x[None, None, None]


@source(
    "hf_siglip",
    about="HuggingFace SigLIP folder: its vision tower",
    recognises=hf.is_model("siglip", "siglip_vision_model"),
)
def read_siglip(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the vision tower, whose features are those of its attention pooling."""
    config = _tower(archive)
    if not config.get("vision_use_head", True):
        raise ValueError("config.json has vision_use_head=False; only towers with a head are read")
    model = _image(archive, config, HALF, TOWER_LAYER, readout="map_head")
    heads, pool = model.model_config["heads"], "stage_0/pool"

    head = rf"{TOWER}head"
    rules = [
        Rule(rf"{TOWER}embeddings\.position_embedding\.weight", "stage_0/position/table"),
        Rule(rf"{head}\.probe", f"{pool}/query_token", lambda x: x[0]),
        *hf.fused_rules(
            rf"{head}\.attention\.in_proj_weight", rf"{head}\.attention\.in_proj_bias", pool, heads
        ),
        *hf.out_rules(rf"{head}\.attention\.out_proj", f"{pool}/out", heads),
        *hf.norm_rules(rf"{head}\.layernorm", f"{pool}/norm_mlp"),
        *hf.dense_rules(rf"{head}\.mlp\.fc1", f"{pool}/mlp/up"),
        *hf.dense_rules(rf"{head}\.mlp\.fc2", f"{pool}/mlp/down"),
        *_tower_rules(heads),
    ]
    return apply_rules(model, archive.arrays, rules)
