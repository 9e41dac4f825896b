"""VideoPrism of HuggingFace transformers (its modeling_videoprism.py): a factorised encoder.

Norms multiply by 1 + weight; scores are capped; every place has a temporal encoder of its own
(nothing is pooled before it), and a query attends to all tokens at the end.
"""

from typing import Any

from vivit.pretrained.files import Archive
from vivit.pretrained.table import Asked, Native, Rule, apply_rules, depth_of, source
from vivit.pretrained.torch_names import (
    HEAD,
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

VIDEO = r"(?:video_model\.)?"
ROOT = rf"{VIDEO}(?:vision_model\.)?"
SPATIAL, TEMPORAL = rf"{ROOT}spatial_layers\.(\d+)", rf"{ROOT}temporal_layers\.(\d+)"
AUXILIARY = rf"{VIDEO}auxiliary_layers\.(\d+)"


@source(
    "hf_videoprism",
    about="HuggingFace VideoPrism folder",
    recognises=is_model("videoprism", "videoprism_vision_model"),
)
def read_videoprism(archive: Archive, asked: Asked) -> Native:
    """The encoder (the mean of its tokens is read), the classifier, or the video part of the
    video-text model, whose features are those before the L2 norm."""
    config = archive.config.get("vision_config") or archive.config
    arrays = archive.arrays
    shape = sizes(config)
    depths = [depth_of(arrays, name) for name in (SPATIAL, TEMPORAL, AUXILIARY)]
    pooled = any(name.endswith("head.pooling_attention_query") for name in arrays)
    cap = config.get("attn_logit_softcapping")
    native = Native(
        {
            **shape,
            **pixels(archive, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            "clip": (get(config, "num_frames"), *pair(config, "image_size")),
            "tubelet": tuple(get(config, "tubelet_size", (list, tuple))),
            "depth": depths[0],
            "stages": _stages(*depths, pool="attention" if pooled else "mean"),
            "qkv_bias": "qkv" if config.get("qkv_bias", True) else "",
            "soft_cap": None if cap is None else float(cap),
            "classes": head_classes(arrays),
        },
        labels=labels(config, head_classes(arrays)),
    )
    if depths[2] and config.get("apply_l2norm", True):
        native.notes.append("features before the L2 norm: divide by their length for similarities")
    last = len(native.model_config["stages"]) - 1
    heads, pool = shape["heads"], f"stage_{last}/pool"
    embeddings = rf"{ROOT}spatial_embeddings"
    in_head = lambda part: rf"{VIDEO}head\.{part[0]}_proj"
    rules = [
        Rule(rf"{embeddings}\.patch_embeddings\.projection\.weight", "tubelet/kernel", patches),
        Rule(rf"{embeddings}\.patch_embeddings\.projection\.bias", "tubelet/bias"),
        Rule(rf"{embeddings}\.position_embeddings", "stage_0/position/table", lambda x: x[0]),
        Rule(
            rf"{ROOT}temporal_embeddings\.position_embeddings",
            "stage_1/position/table",
            lambda x: x[0],
        ),
        *_layer_rules(SPATIAL, 0, "space", heads),
        *_layer_rules(TEMPORAL, 1, "time", heads),
        *_layer_rules(AUXILIARY, 2, "joint", heads),
        *norm_rules(rf"{ROOT}layernorm1", "stage_0/norm", plus=1.0),
        *norm_rules(rf"{ROOT}layernorm2", "stage_1/norm", plus=1.0),
        Rule(rf"{VIDEO}head\.pooling_attention_query", f"{pool}/query_token", lambda x: x[0]),
        Rule(rf"{VIDEO}head\.per_dim_scale", f"{pool}/scale"),
        *attention_rules(in_head, pool, heads, out=rf"{VIDEO}head\.o_proj"),
        *norm_rules(rf"{VIDEO}head_layernorm", f"{pool}/norm", plus=1.0),
        Rule(r"text_model\..*", why="the text encoder"),
        *HEAD,
    ]
    apply_rules(native, arrays, rules)
    return native


def _stages(
    spatial: int, temporal: int, auxiliary: int, *, pool: str
) -> tuple[dict[str, Any], ...]:
    stages = [
        {"depth": spatial, "mixers": ("space",), "pool": "", "norm": True},
        {"depth": temporal, "mixers": ("time",), "pool": "", "norm": True},
    ]
    if auxiliary:
        stages.append({"depth": auxiliary, "mixers": ("joint",), "pool": "", "norm": False})
    stages[-1]["pool"] = pool
    return tuple(stages)


def _layer_rules(layer: str, stage: int, pattern: str, heads: int) -> list[Rule]:
    own = rf"stage_{stage}/layer_\1"
    named = lambda part: rf"{layer}\.attention\.{part[0]}_proj"
    out = rf"{layer}\.attention\.o_proj"
    return [
        *attention_rules(named, f"{own}/attention_{pattern}", heads, out=out),
        *norm_rules(rf"{layer}\.layernorm_before", f"{own}/norm_{pattern}", plus=1.0),
        *norm_rules(rf"{layer}\.layernorm_after", f"{own}/norm_mlp", plus=1.0),
        *dense_rules(rf"{layer}\.mlp\.fc1", f"{own}/mlp/up"),
        *dense_rules(rf"{layer}\.mlp\.fc2", f"{own}/mlp/down"),
    ]
