"""ViViT of HuggingFace transformers (its modeling_vivit.py): the joint model with a class token."""

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

ROOT = r"(?:vivit\.)?"
LAYER = rf"{ROOT}(?:encoder\.layer|layers)\.(\d+)"


@source("hf_vivit", about="HuggingFace ViViT folder", recognises=hf.is_model("vivit"))
def read_vivit(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns the model. A bare model's pooler is pre_logits: a dense layer and tanh on the class
    token."""
    config, arrays = archive.config, archive.arrays
    pooler = next((a for n, a in arrays.items() if n.endswith("pooler.dense.weight")), None)
    if pooler is not None and hf.get(config, "pooler_act", str) != "tanh":
        raise ValueError(f"config.json has pooler_act={config['pooler_act']!r}, not tanh")
    shape = hf.sizes(config)
    model = hf.source_model(
        archive,
        config,
        **shape,
        clip=(hf.get(config, "num_frames"), *hf.pair(config, "image_size")),
        tubelet=tuple(hf.get(config, "tubelet_size", (list, tuple))),
        depth=depth_of(arrays, LAYER),
        family="joint",
        readout="cls",
        pre_logits=None if pooler is None else pooler.shape[0],
    )
    path, embeddings = r"stage_0/layer_\1", rf"{ROOT}embeddings"
    rules = [
        Rule(rf"{embeddings}\.cls_token", "stage_0/class_token", lambda x: x[None]),
        Rule(rf"{embeddings}\.position_embeddings", "stage_0/position/", split_class_row),
        *hf.patch_rules(rf"{embeddings}\.patch_embeddings\.projection"),
        *hf.vit_attention_rules(LAYER, f"{path}/attention_joint", shape["heads"]),
        *hf.block_rules(LAYER, path, "joint", mlp=hf.VIT_MLP),
        *hf.norm_rules(rf"{ROOT}layernorm", "stage_0/norm"),
        *hf.dense_rules(rf"{ROOT}pooler\.dense", "pre_logits"),
        *hf.HEAD,
    ]
    return apply_rules(model, arrays, rules)
