"""VideoPrism of HuggingFace transformers (its modeling_videoprism.py): a factorised encoder.

Norms multiply by 1 + weight; scores are capped; the temporal encoder works on every
spatial token (nothing is pooled before it), and a query attends to all tokens at the end.
"""

from typing import Any

from vivit.pretrained import torch_names as hf
from vivit.pretrained.files import Archive
from vivit.pretrained.sources import LoadHints, Rule, SourceModel, apply_rules, depth_of, source

VIDEO = r"(?:video_model\.)?"
ROOT = rf"{VIDEO}(?:vision_model\.)?"
SPATIAL, TEMPORAL = rf"{ROOT}spatial_layers\.(\d+)", rf"{ROOT}temporal_layers\.(\d+)"
AUXILIARY = rf"{VIDEO}auxiliary_layers\.(\d+)"
L2_NOTE = "features before the L2 norm: divide by their length for similarities"


@source(
    "hf_videoprism",
    about="HuggingFace VideoPrism folder",
    recognises=hf.is_model("videoprism", "videoprism_vision_model"),
)
def read_videoprism(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the encoder (the mean of its tokens is read), the classifier, or the video part of
    the video-text model, whose features are those before the L2 norm."""
    config = archive.config.get("vision_config") or archive.config
    arrays = archive.arrays
    shape = hf.sizes(config)
    depths = [depth_of(arrays, name) for name in (SPATIAL, TEMPORAL, AUXILIARY)]
    pooled = any(name.endswith("head.pooling_attention_query") for name in arrays)
    cap = config.get("attn_logit_softcapping")
    stages = _stages(*depths, pool="videoprism_pool" if pooled else "mean")
    model = hf.source_model(
        archive,
        config,
        [L2_NOTE] if depths[2] and config.get("apply_l2norm", True) else [],
        **shape,
        **hf.pixels(archive, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        clip=(hf.get(config, "num_frames"), *hf.pair(config, "image_size")),
        tubelet=tuple(hf.get(config, "tubelet_size", (list, tuple))),
        depth=depths[0],
        stages=stages,
        soft_cap=None if cap is None else float(cap),
    )
    heads, pool = shape["heads"], f"stage_{len(stages) - 1}/pool"
    in_head = lambda part: rf"{VIDEO}head\.{part[0]}_proj"
    rules = [
        *hf.patch_rules(rf"{ROOT}spatial_embeddings\.patch_embeddings\.projection"),
        *_position_rules("spatial", 0),
        *_position_rules("temporal", 1),
        *_layer_rules(SPATIAL, 0, "space", heads),
        *_layer_rules(TEMPORAL, 1, "time", heads),
        *_layer_rules(AUXILIARY, 2, "joint", heads),
        *hf.norm_rules(rf"{ROOT}layernorm1", "stage_0/norm", plus=1.0),
        *hf.norm_rules(rf"{ROOT}layernorm2", "stage_1/norm", plus=1.0),
        Rule(rf"{VIDEO}head\.pooling_attention_query", f"{pool}/query_token", lambda x: x[0]),
        Rule(rf"{VIDEO}head\.per_dim_scale", f"{pool}/scale"),
        *hf.attention_rules(in_head, pool, heads, out=rf"{VIDEO}head\.o_proj"),
        *hf.norm_rules(rf"{VIDEO}head_layernorm", f"{pool}/norm", plus=1.0),
        Rule(r"text_model\..*", why="the text encoder"),
        *hf.HEAD,
    ]
    return apply_rules(model, arrays, rules)


def _position_rules(name: str, stage: int) -> list[Rule]:
    table = f"stage_{stage}/position/table"
    return [Rule(rf"{ROOT}{name}_embeddings\.position_embeddings", table, lambda x: x[0])]


def _stages(
    spatial: int, temporal: int, auxiliary: int, *, pool: str
) -> tuple[dict[str, Any], ...]:
    stages = [
        {"depth": spatial, "attentions": ("space",), "pool": "", "norm": True},
        {"depth": temporal, "attentions": ("time",), "pool": "", "norm": True},
    ]
    if auxiliary:
        stages.append({"depth": auxiliary, "attentions": ("joint",), "pool": "", "norm": False})
    stages[-1]["pool"] = pool
    return tuple(stages)


def _layer_rules(layer: str, stage: int, pattern: str, heads: int) -> list[Rule]:
    path = rf"stage_{stage}/layer_\1"
    named = lambda part: rf"{layer}\.attention\.{part[0]}_proj"
    out = rf"{layer}\.attention\.o_proj"
    return [
        *hf.attention_rules(named, f"{path}/attention_{pattern}", heads, out=out),
        *hf.block_rules(layer, path, pattern, mlp=(r"mlp\.fc1", r"mlp\.fc2"), plus=1.0),
    ]
