"""TimeSformer of HuggingFace transformers (its modeling_timesformer.py), three attention types.

Its tokens are ordered (y, x, t), ours (t, y, x): the same sets, the same numbers.
"""

import numpy as np

from vivit.pretrained.files import Archive, Arrays
from vivit.pretrained.table import (
    Asked,
    Native,
    Rule,
    apply_rules,
    depth_of,
    source,
)
from vivit.pretrained.torch_names import (
    HEAD,
    dense_rules,
    get,
    head_classes,
    is_model,
    labels,
    norm_rules,
    out_rules,
    pair,
    patches,
    pixels,
    sizes,
    to_heads,
)

ROOT = r"(?:timesformer\.)?"
LAYER = rf"{ROOT}encoder\.layer\.(\d+)"
# attention_type -> family, pattern of its spatial (or joint) attention, position
TYPES = {
    "divided_space_time": ("divided", "space", "learned_space_time"),
    "joint_space_time": ("joint", "joint", "learned_space_time"),
    "space_only": ("space_only", "space", "learned"),
}
PUBLISHED_PIXELS = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


@source(
    "hf_timesformer", about="HuggingFace TimeSformer folder", recognises=is_model("timesformer")
)
def read_timesformer(archive: Archive, asked: Asked) -> Native:
    """space_only: the mean of the logits that transformers gives for each frame."""
    config, arrays = archive.config, archive.arrays
    kind = get(config, "attention_type", str)
    if kind not in TYPES:
        raise ValueError(f"config.json has attention_type={kind!r}; known: {', '.join(TYPES)}")
    family, pattern, position = TYPES[kind]
    shape = sizes(config)
    native = Native(
        {
            **shape,
            **pixels(archive, *PUBLISHED_PIXELS),
            "clip": (get(config, "num_frames"), *pair(config, "image_size")),
            "tubelet": (1, *pair(config, "patch_size")),
            "depth": depth_of(arrays, LAYER),
            "family": family,
            "readout": "cls",
            "position": position,
            "qkv_bias": "qkv" if config.get("qkv_bias", True) else "",
            "classes": head_classes(arrays),
        },
        labels=labels(config, head_classes(arrays)),
    )
    if kind == "space_only":
        native.notes.append("space_only: logits are the mean of transformers' logits of each frame")
    own, heads = r"stage_0/layer_\1", shape["heads"]
    over_time = f"{own}/attention_divided_time"
    embeddings = rf"{ROOT}embeddings"
    table = "table" if kind == "space_only" else "space"
    rules = [
        Rule(rf"{embeddings}\.cls_token", "stage_0/class_token", lambda x: x[None]),
        Rule(
            rf"{embeddings}\.position_embeddings",
            "stage_0/position/",
            lambda x: {"class_token": x[0, :1], table: x[0, 1:]},
        ),
        Rule(rf"{embeddings}\.time_embeddings", "stage_0/position/time", lambda x: x[0]),
        Rule(rf"{embeddings}\.patch_embeddings\.projection\.weight", "tubelet/kernel", patches),
        Rule(rf"{embeddings}\.patch_embeddings\.projection\.bias", "tubelet/bias"),
        *_attention_rules(rf"{LAYER}\.attention", f"{own}/attention_{pattern}", heads),
        *_attention_rules(rf"{LAYER}\.temporal_attention", over_time, heads),
        *dense_rules(rf"{LAYER}\.temporal_dense", f"{over_time}/projection"),
        *norm_rules(rf"{LAYER}\.temporal_layernorm", f"{own}/norm_divided_time"),
        *norm_rules(rf"{LAYER}\.layernorm_before", f"{own}/norm_{pattern}"),
        *norm_rules(rf"{LAYER}\.layernorm_after", f"{own}/norm_mlp"),
        *dense_rules(rf"{LAYER}\.intermediate\.dense", f"{own}/mlp/up"),
        *dense_rules(rf"{LAYER}\.output\.dense", f"{own}/mlp/down"),
        *norm_rules(rf"{ROOT}layernorm", "stage_0/norm"),
        *HEAD,
    ]
    apply_rules(native, arrays, rules)
    return native


def _attention_rules(name: str, path: str, heads: int) -> list[Rule]:
    def split(kind: str):
        def transform(array: np.ndarray) -> Arrays:
            parts = zip(("query", "key", "value"), np.split(array, 3), strict=True)
            return {f"{part}/{kind}": to_heads(heads)(third) for part, third in parts}

        return transform

    return [
        Rule(rf"{name}\.attention\.qkv\.weight", f"{path}/", split("kernel")),
        Rule(rf"{name}\.attention\.qkv\.bias", f"{path}/", split("bias")),
        *out_rules(rf"{name}\.output\.dense", f"{path}/out", heads),
    ]
