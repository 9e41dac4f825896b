"""Scenic's names and shapes of parameters, as ours: the parity tests' only knowledge of Scenic."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

GOLDEN = Path(__file__).parent / "golden"
FACTORISED_ENCODER = "factorised_encoder(temporal_depth=2)"
FAMILIES = {
    "spacetime_token": {"family": "joint", "readout": "cls"},
    "factorized_encoder_token": {"family": FACTORISED_ENCODER, "readout": "cls"},
    "factorized_encoder_gap": {"family": FACTORISED_ENCODER, "readout": "mean"},
    "factorized_self_attention_time_space": {
        "stages": [{"depth": 2, "attentions": ["time", "space"], "pool": "mean"}]
    },
    "factorized_dot_product": {"family": "factorised_dot_product", "readout": "mean"},
}


def load(name):
    """(arrays, model config) of a golden file."""
    arrays = np.load(GOLDEN / f"scenic_{name}.npz")
    assert json.loads(str(arrays["config"]))["model"]["hidden_size"] == 48
    config = {
        "clip": (8, 16, 16),
        "classes": 11,
        "width": 48,
        "heads": 4,
        "mlp_dim": 96,
        "depth": 2,
        "tubelet": (2, 4, 4),
        **FAMILIES[name],
    }
    return arrays, config


def tree(arrays, prefix, name):
    """The arrays below a prefix as our nested parameters."""
    kind = json.loads(str(arrays["config"]))["model"]["attention_config"]["type"]
    flat = {}
    for key in arrays.files:
        if key.startswith(prefix):
            flat.update(_ours(key.removeprefix(prefix), arrays[key], kind))
    for key in [k for k in flat if k.endswith("/class_token")]:  # its position is the table's first
        position = key.replace("class_token", "position/")
        table = flat[position + "table"]
        flat[position + "class_token"], flat[position + "table"] = table[:1], table[1:]
    nested = {}
    for key, value in flat.items():
        *path, leaf = key.split("/")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(value)
    return nested


def _ours(key, value, kind):
    stage = "stage_1" if "TemporalTransformer" in key else "stage_0"
    pattern = {
        "spacetime": "joint",
        "factorized_encoder": "time" if stage == "stage_1" else "space",
        "factorized_dot_product_attention": "split_heads",
    }.get(kind, "")
    if key.startswith("cls"):
        return {f"{stage}/class_token": value[None]}
    if "posembed" in key:
        return {f"{stage}/position/table": value[0]}
    for old, new in (
        (r"^(Spatial|Temporal)?Transformer", stage),
        ("^embedding", "tubelet"),
        ("^output_projection", "head"),
        ("encoderblock_", "layer_"),
        ("encoder_norm", "norm"),
        ("MultiHeadDotProductAttention_0", f"attention_{pattern}"),
        ("MultiHeadDotProductAttention_", "attention_"),
        ("LayerNorm_0", f"norm_{pattern}"),
        ("LayerNorm_1", "norm_mlp"),
        ("LayerNorm_", "norm_"),
        ("MlpBlock(_0)?", "mlp"),
        ("Dense_0", "up"),
        ("Dense_1", "down"),
    ):
        key = re.sub(old, new, key)
    return {key: value}
