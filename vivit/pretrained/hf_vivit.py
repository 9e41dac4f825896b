"""ViViT of HuggingFace transformers (its modeling_vivit.py): the joint model with a class token."""

from vivit.pretrained.files import Archive
from vivit.pretrained.table import (
    Asked,
    Native,
    Rule,
    apply_rules,
    depth_of,
    source,
    split_class_row,
)
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
    sizes,
)

ROOT = r"(?:vivit\.)?"
LAYER = rf"{ROOT}(?:encoder\.layer|layers)\.(\d+)"


@source("hf_vivit", about="HuggingFace ViViT folder", recognises=is_model("vivit"))
def read_vivit(archive: Archive, asked: Asked) -> Native:
    """A bare model's pooler is our pre_logits: a dense layer and tanh on the class token."""
    config, arrays = archive.config, archive.arrays
    depth = depth_of(arrays, LAYER)
    pooler = next((a for n, a in arrays.items() if n.endswith("pooler.dense.weight")), None)
    if pooler is not None and get(config, "pooler_act", str) != "tanh":
        raise ValueError(f"config.json has pooler_act={config['pooler_act']!r}, not tanh")
    native = Native(
        {
            **sizes(config),
            "clip": (get(config, "num_frames"), *pair(config, "image_size")),
            "tubelet": tuple(get(config, "tubelet_size", (list, tuple))),
            "depth": depth,
            "family": "joint",
            "readout": "cls",
            "qkv_bias": "qkv" if config.get("qkv_bias", True) else "",
            "classes": head_classes(arrays),
            "pre_logits": None if pooler is None else pooler.shape[0],
        },
        labels=labels(config, head_classes(arrays)),
    )
    own = r"stage_0/layer_\1"
    named = lambda part: rf"{LAYER}\.attention\.(?:attention\.{part}|{part[0]}_proj)"
    out = rf"{LAYER}\.attention\.(?:output\.dense|o_proj)"
    heads = native.model_config["heads"]
    apply_rules(
        native,
        arrays,
        [
            Rule(rf"{ROOT}embeddings\.cls_token", "stage_0/class_token", lambda x: x[None]),
            Rule(rf"{ROOT}embeddings\.position_embeddings", "stage_0/position/", split_class_row),
            Rule(
                rf"{ROOT}embeddings\.patch_embeddings\.projection\.weight",
                "tubelet/kernel",
                patches,
            ),
            Rule(rf"{ROOT}embeddings\.patch_embeddings\.projection\.bias", "tubelet/bias"),
            *attention_rules(named, f"{own}/attention_joint", heads, out=out),
            *norm_rules(rf"{LAYER}\.layernorm_before", f"{own}/norm_joint"),
            *norm_rules(rf"{LAYER}\.layernorm_after", f"{own}/norm_mlp"),
            *dense_rules(rf"{LAYER}\.(?:intermediate\.dense|mlp\.fc1)", f"{own}/mlp/up"),
            *dense_rules(rf"{LAYER}\.(?:output\.dense|mlp\.fc2)", f"{own}/mlp/down"),
            *norm_rules(rf"{ROOT}layernorm", "stage_0/norm"),
            *dense_rules(rf"{ROOT}pooler\.dense", "pre_logits"),
            *HEAD,
        ],
    )
    return native
