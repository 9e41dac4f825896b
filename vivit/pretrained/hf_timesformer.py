"""TimeSformer of HuggingFace transformers (its modeling_timesformer.py), three attention types.

Its tokens are ordered (y, x, t) and those of vivit (t, y, x): the same sets, the same numbers.
"""

from typing import NamedTuple

from vivit.pretrained import torch_names as hf
from vivit.pretrained.files import Archive
from vivit.pretrained.sources import LoadHints, Rule, SourceModel, apply_rules, depth_of, source

ROOT = r"(?:timesformer\.)?"
LAYER = rf"{ROOT}encoder\.layer\.(\d+)"
PUBLISHED_PIXELS = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


class AttentionType(NamedTuple):
    """An attention_type of transformers as a model of vivit.

    pattern: of its attention over space, or over both. table: the parameter of the position
    embedding that holds the file's table over space.
    """

    family: str
    pattern: str
    position: str
    table: str
    notes: tuple[str, ...] = ()


TYPES = {
    "divided_space_time": AttentionType("divided", "space", "learned_space_time", "space"),
    "joint_space_time": AttentionType("joint", "joint", "learned_space_time", "space"),
    "space_only": AttentionType(
        "space_only",
        "space",
        "learned",
        "table",
        ("space_only: logits are the mean of transformers' logits of each frame",),
    ),
}


@source(
    "hf_timesformer",
    about="HuggingFace TimeSformer folder",
    recognises=hf.is_model("timesformer"),
)
def read_timesformer(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the model; that of space_only gives the mean of transformers' logits over frames."""
    config, arrays = archive.config, archive.arrays
    name = hf.get(config, "attention_type", str)
    if name not in TYPES:
        raise ValueError(f"config.json has attention_type={name!r}; known: {', '.join(TYPES)}")
    kind, shape = TYPES[name], hf.sizes(config)
    model = hf.source_model(
        archive,
        config,
        kind.notes,
        **shape,
        **hf.pixels(archive, *PUBLISHED_PIXELS),
        clip=(hf.get(config, "num_frames"), *hf.pair(config, "image_size")),
        tubelet=(1, *hf.pair(config, "patch_size")),
        depth=depth_of(arrays, LAYER),
        family=kind.family,
        readout="cls",
        position=kind.position,
    )
    path, heads = r"stage_0/layer_\1", shape["heads"]
    over_time = f"{path}/attention_divided_time"
    embeddings = rf"{ROOT}embeddings"
    rules = [
        Rule(rf"{embeddings}\.cls_token", "stage_0/class_token", lambda x: x[None]),
        Rule(
            rf"{embeddings}\.position_embeddings",
            "stage_0/position/",
            lambda x: {"class_token": x[0, :1], kind.table: x[0, 1:]},
        ),
        Rule(rf"{embeddings}\.time_embeddings", "stage_0/position/time", lambda x: x[0]),
        *hf.patch_rules(rf"{embeddings}\.patch_embeddings\.projection"),
        *_attention_rules(rf"{LAYER}\.attention", f"{path}/attention_{kind.pattern}", heads),
        *_attention_rules(rf"{LAYER}\.temporal_attention", over_time, heads),
        *hf.dense_rules(rf"{LAYER}\.temporal_dense", f"{over_time}/projection"),
        *hf.norm_rules(rf"{LAYER}\.temporal_layernorm", f"{path}/norm_divided_time"),
        *hf.block_rules(LAYER, path, kind.pattern),
        *hf.norm_rules(rf"{ROOT}layernorm", "stage_0/norm"),
        *hf.HEAD,
    ]
    return apply_rules(model, arrays, rules)


def _attention_rules(name: str, path: str, heads: int) -> list[Rule]:
    fused = rf"{name}\.attention\.qkv"
    return [
        *hf.fused_rules(rf"{fused}\.weight", rf"{fused}\.bias", path, heads),
        *hf.out_rules(rf"{name}\.output\.dense", f"{path}/out", heads),
    ]
