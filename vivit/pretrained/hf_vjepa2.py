"""V-JEPA 2 of HuggingFace transformers (its modeling_vjepa2.py): encoder, attentive pooler."""

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

ROOT = r"(?:vjepa2\.)?"
PREDICTOR = rf"{ROOT}predictor"
LAYER = rf"{ROOT}encoder\.layer\.(\d+)"
POOL_LAYER = r"pooler\.self_attention_layers\.(\d+)"
CROSS = r"pooler\.cross_attention_layer"
MLP = (r"mlp\.fc1", r"mlp\.fc2")


@source("hf_vjepa2", about="HuggingFace V-JEPA 2 folder", recognises=hf.is_model("vjepa2"))
def read_vjepa2(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the model. Without a classifier the mean of the encoder's normed tokens is read, and
    the predictor is for the task "jepa" alone."""
    config, arrays = archive.config, archive.arrays
    shape = hf.sizes({**config, "intermediate_size": 0})
    shape["mlp_dim"] = int(shape["width"] * hf.get(config, "mlp_ratio", (int, float)))
    depth, side = depth_of(arrays, LAYER), hf.get(config, "crop_size")
    model = hf.source_model(
        archive,
        config,
        **shape,
        **hf.pixels(archive, *hf.IMAGENET),
        clip=(hf.get(config, "frames_per_clip"), side, side),
        tubelet=(hf.get(config, "tubelet_size"), *hf.pair(config, "patch_size")),
        depth=depth,
        stages=_stages(archive, depth, shape["width"]),
        rope="3d_vjepa2",
        position="none",
    )
    heads = shape["heads"]
    rules = [
        *hf.patch_rules(rf"{ROOT}encoder\.embeddings\.patch_embeddings\.proj"),
        *_layer_rules(LAYER, r"stage_0/layer_\1", heads),
        *hf.norm_rules(rf"{ROOT}encoder\.layernorm", "stage_0/norm"),
        *_pooler_rules(heads),
        *_predictor_rules(config.get("pred_num_attention_heads", 1)),
        *hf.HEAD,
    ]
    return apply_rules(model, arrays, rules)


def _layer_rules(layer: str, path: str, heads: int) -> list[Rule]:
    named = lambda part: rf"{layer}\.attention\.{part}"
    out = rf"{layer}\.attention\.proj"
    return [
        *hf.attention_rules(named, f"{path}/attention_joint", heads, out=out),
        *hf.block_rules(layer, path, "joint", norms=("norm1", "norm2"), mlp=MLP),
    ]


def _predictor_rules(heads: int) -> list[Rule]:
    """Returns the rules of what `vivit.pretraining.jepa` has around the encoder."""
    embeddings = rf"{PREDICTOR}\.embeddings"
    rules = [
        *_layer_rules(rf"{PREDICTOR}\.layer\.(\d+)", r"stage/layer_\1", heads),
        *hf.norm_rules(rf"{PREDICTOR}\.layernorm", "stage/norm"),
        *hf.dense_rules(rf"{embeddings}\.predictor_embeddings", "narrow"),
        *hf.dense_rules(rf"{PREDICTOR}\.proj", "widen"),
        Rule(rf"{embeddings}\.mask_tokens", "mask_tokens", lambda x: x[:, 0, 0]),
    ]
    why = "the predictor of pre-training"
    return [rule._replace(path=f"{AROUND}predictor/{rule.path}", why=why) for rule in rules]


def _stages(archive: Archive, depth: int, width: int) -> tuple[dict[str, Any], ...]:
    pooled = any(name.startswith("pooler.") for name in archive.arrays)
    pool_depth = depth_of(archive.arrays, POOL_LAYER)
    pool = "" if pooled else "mean"
    encoder = {"depth": depth, "attentions": ("joint",), "pool": pool, "norm": True}
    # The pooler's layers have another MLP width and always biases, and no rotation.
    pooler = {
        "depth": pool_depth,
        "attentions": ("joint",) if pool_depth else (),
        "pool": "vjepa2_pool",
        "mlp_dim": 4 * width,
        "rope": "none",
        "qkv_bias": "qkv",
    }
    return (encoder, pooler) if pooled else (encoder,)


def _pooler_rules(heads: int) -> list[Rule]:
    path, pool = r"stage_1/layer_\1", "stage_1/pool"
    in_pool = lambda part: rf"{POOL_LAYER}\.self_attn\.{part[0]}_proj"
    in_cross = lambda part: rf"{CROSS}\.cross_attn\.{part[0]}_proj"
    out = rf"{POOL_LAYER}\.self_attn\.out_proj"
    return [
        *hf.attention_rules(in_pool, f"{path}/attention_joint", heads, out=out),
        *hf.block_rules(POOL_LAYER, path, "joint", norms=("layer_norm1", "layer_norm2"), mlp=MLP),
        *hf.attention_rules(in_cross, pool, heads),
        Rule(r"pooler\.query_tokens", f"{pool}/query_token", lambda x: x[0]),
        *hf.norm_rules(rf"{CROSS}\.layer_norm1", f"{pool}/norm"),
        *hf.norm_rules(rf"{CROSS}\.layer_norm2", f"{pool}/norm_mlp"),
        *hf.dense_rules(rf"{CROSS}\.{MLP[0]}", f"{pool}/mlp/up"),
        *hf.dense_rules(rf"{CROSS}\.{MLP[1]}", f"{pool}/mlp/down"),
    ]
