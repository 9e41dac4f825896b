"""What the Flax sources (ViT, big_vision, Scenic) have in common: the names of a transformer."""

import numpy as np

from vivit.pretrained.files import Arrays
from vivit.pretrained.sources import Rule, depth_of, split_class_row

EMBEDDING = "embedding/kernel"


def block_rules(encoder: str, stage: int, pattern: str) -> list[Rule]:
    """Returns the rules of an encoder's blocks and norm.

    Linen numbers modules by kind (MlpBlock_0), the API before it all of a block together
    (LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3).
    """
    block, path = rf"{encoder}/encoderblock_(\d+)", rf"stage_{stage}/layer_\1"
    return [
        Rule(rf"{block}/LayerNorm_0/(scale|bias)", rf"{path}/norm_{pattern}/\2"),
        Rule(
            rf"{block}/MultiHeadDotProductAttention_[01]/(query|key|value|out)/(kernel|bias)",
            rf"{path}/attention_{pattern}/\2/\3",
        ),
        Rule(rf"{block}/LayerNorm_[12]/(scale|bias)", rf"{path}/norm_mlp/\2"),
        *mlp_rules(rf"{block}/MlpBlock_[03]", rf"{path}/mlp"),
        Rule(rf"{encoder}/encoder_norm/(scale|bias)", rf"stage_{stage}/norm/\1"),
    ]


def mlp_rules(name: str, path: str) -> list[Rule]:
    """Returns the rules of an MLP."""
    return [
        Rule(rf"{name}/Dense_0/(?P<leaf>kernel|bias)", rf"{path}/up/\g<leaf>"),
        Rule(rf"{name}/Dense_1/(?P<leaf>kernel|bias)", rf"{path}/down/\g<leaf>"),
    ]


def position_rule(name: str, path: str, *, cls: bool) -> Rule:
    """Returns the rule of a table [1, N, D], whose first row is the class token's if it has one."""
    if cls:
        return Rule(name, f"{path}/", split_class_row)
    return Rule(name, f"{path}/table", lambda table: table[0])


EMBEDDING_AND_HEAD = [
    Rule(EMBEDDING, "tubelet/kernel", lambda k: k[None] if k.ndim == 4 else k),
    Rule("embedding/bias", "tubelet/bias"),
    Rule(r"pre_logits/(kernel|bias)", r"pre_logits/\1"),
    Rule(r"(?:head|output_projection)/(kernel|bias)", r"head/\1"),
]


def encoder_sizes(arrays: Arrays, encoder: str) -> dict[str, int]:
    """Returns depth, heads and mlp_dim of an encoder, read off its arrays.

    Raises ValueError that names what is missing.
    """
    block = rf"{encoder}/encoderblock_(\d+)/"
    depth = depth_of(arrays, block)
    if not depth:
        raise ValueError(f"missing: {encoder}/encoderblock_0/...")
    query = _find(arrays, f"{encoder}/encoderblock_0/MultiHeadDotProductAttention_", "query/kernel")
    hidden = _find(arrays, f"{encoder}/encoderblock_0/MlpBlock", "Dense_0/kernel")
    if query.ndim != 3 or hidden.ndim != 2:
        raise ValueError(f"{encoder} has a query kernel {query.shape} and an MLP {hidden.shape}")
    return {"depth": depth, "heads": query.shape[1], "mlp_dim": hidden.shape[1]}


def _find(arrays: Arrays, start: str, end: str) -> np.ndarray:
    for name, array in arrays.items():
        if name.startswith(start) and name.endswith(end):
            return array
    raise ValueError(f"missing: {start}.../{end}")


def common_sizes(arrays: Arrays) -> dict[str, int | None]:
    """Returns width, classes and pre_logits.

    Raises ValueError without a patch embedding.
    """
    if EMBEDDING not in arrays or arrays[EMBEDDING].ndim not in (4, 5):
        raise ValueError(f"missing: {EMBEDDING} of shape [(t,) h, w, C, D]")
    heads = [arrays[n] for n in ("head/kernel", "output_projection/kernel") if n in arrays]
    return {
        "width": arrays[EMBEDDING].shape[-1],
        "classes": heads[0].shape[-1] if heads else 0,
        "pre_logits": arrays["pre_logits/kernel"].shape[-1]
        if "pre_logits/kernel" in arrays
        else None,
    }
