"""V-JEPA 2 of HuggingFace transformers (its modeling_vjepa2.py): encoder, attentive pooler."""

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
)

ROOT = r"(?:vjepa2\.)?"
LAYER = rf"{ROOT}encoder\.layer\.(\d+)"
POOL_LAYER = r"pooler\.self_attention_layers\.(\d+)"
CROSS = r"pooler\.cross_attention_layer"


@source("hf_vjepa2", about="HuggingFace V-JEPA 2 folder", recognises=is_model("vjepa2"))
def read_vjepa2(archive: Archive, asked: Asked) -> Native:
    """Without a classifier the mean of the encoder's normed tokens is read."""
    config, arrays = archive.config, archive.arrays
    shape = sizes({**config, "intermediate_size": 0})
    width, heads = shape["width"], shape["heads"]
    shape["mlp_dim"] = int(width * get(config, "mlp_ratio", (int, float)))
    depth, pool_depth = (depth_of(arrays, name) for name in (LAYER, POOL_LAYER))
    pooled = any(name.startswith("pooler.") for name in arrays)
    encoder = {"depth": depth, "mixers": ("joint",), "pool": "" if pooled else "mean", "norm": True}
    # The pooler's layers have their own MLP width, always biases, and don't turn queries and keys.
    pooler = {
        "depth": pool_depth,
        "mixers": ("joint",) if pool_depth else (),
        "pool": "attentive",
        "mlp_dim": 4 * width,
        "rope": "none",
        "qkv_bias": "qkv",
    }
    side = get(config, "crop_size")
    native = Native(
        {
            **shape,
            **pixels(archive, *IMAGENET),
            "clip": (get(config, "frames_per_clip"), side, side),
            "tubelet": (get(config, "tubelet_size"), *pair(config, "patch_size")),
            "depth": depth,
            "stages": (encoder, pooler) if pooled else (encoder,),
            "rope": "3d_vjepa2",
            "position": "none",
            "qkv_bias": "qkv" if config.get("qkv_bias", True) else "",
            "classes": head_classes(arrays),
        },
        labels=labels(config, head_classes(arrays)),
    )
    own, pool_own = r"stage_0/layer_\1", r"stage_1/layer_\1"
    named = lambda part: rf"{LAYER}\.attention\.{part}"
    in_pool = lambda part: rf"{POOL_LAYER}\.self_attn\.{part[0]}_proj"
    in_cross = lambda part: rf"{CROSS}\.cross_attn\.{part[0]}_proj"
    attention, pool_attention = f"{own}/attention_joint", f"{pool_own}/attention_joint"
    pool = "stage_1/pool"
    rules = [
        Rule(
            rf"{ROOT}encoder\.embeddings\.patch_embeddings\.proj\.weight", "tubelet/kernel", patches
        ),
        Rule(rf"{ROOT}encoder\.embeddings\.patch_embeddings\.proj\.bias", "tubelet/bias"),
        *attention_rules(named, attention, heads, out=rf"{LAYER}\.attention\.proj"),
        *norm_rules(rf"{LAYER}\.norm1", f"{own}/norm_joint"),
        *norm_rules(rf"{LAYER}\.norm2", f"{own}/norm_mlp"),
        *dense_rules(rf"{LAYER}\.mlp\.fc1", f"{own}/mlp/up"),
        *dense_rules(rf"{LAYER}\.mlp\.fc2", f"{own}/mlp/down"),
        *norm_rules(rf"{ROOT}encoder\.layernorm", "stage_0/norm"),
        *attention_rules(in_pool, pool_attention, heads, out=rf"{POOL_LAYER}\.self_attn\.out_proj"),
        *norm_rules(rf"{POOL_LAYER}\.layer_norm1", f"{pool_own}/norm_joint"),
        *norm_rules(rf"{POOL_LAYER}\.layer_norm2", f"{pool_own}/norm_mlp"),
        *dense_rules(rf"{POOL_LAYER}\.mlp\.fc1", f"{pool_own}/mlp/up"),
        *dense_rules(rf"{POOL_LAYER}\.mlp\.fc2", f"{pool_own}/mlp/down"),
        *attention_rules(in_cross, pool, heads),
        Rule(r"pooler\.query_tokens", f"{pool}/query_token", lambda x: x[0]),
        *norm_rules(rf"{CROSS}\.layer_norm1", f"{pool}/norm"),
        *norm_rules(rf"{CROSS}\.layer_norm2", f"{pool}/norm_mlp"),
        *dense_rules(rf"{CROSS}\.mlp\.fc1", f"{pool}/mlp/up"),
        *dense_rules(rf"{CROSS}\.mlp\.fc2", f"{pool}/mlp/down"),
        Rule(rf"{ROOT}predictor\..*", why="the predictor of pre-training"),
        *HEAD,
    ]
    apply_rules(native, arrays, rules)
    return native
