"""Weights as their makers publish them: Flax msgpack and npz, written from golden arrays."""

import numpy as np
from flax import serialization
from flax.traverse_util import unflatten_dict

PRE_LINEN = (
    ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
    ("LayerNorm_1", "LayerNorm_2"),
    ("MlpBlock_0", "MlpBlock_3"),
)


def below(arrays, prefix):
    """The arrays whose name starts with prefix/, without it."""
    start = f"{prefix}/"
    return {k.removeprefix(start): arrays[k] for k in arrays.files if k.startswith(start)}


def write_scenic(folder, params, *, new=False):
    """A checkpoint of Scenic: the optimiser's target, or params in newer ones."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = unflatten_dict(params, sep="/")
    state = {"state": {"step": np.zeros((), np.int32), "param_states": {}}}
    tree = {"params": tree, "opt_state": state} if new else {"optimizer": {"target": tree, **state}}
    tree |= {"global_step": np.asarray(3), "model_state": {}, "rng": np.zeros(2, np.uint32)}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    return folder


def write_vision_transformer(path, params):
    """An .npz of google-research/vision_transformer: numbers of the API before Linen, `head`."""
    renamed = {}
    for name, array in params.items():
        for linen, before in PRE_LINEN:
            name = name.replace(linen, before)
        renamed[name.replace("output_projection", "head")] = array
    np.savez(path, **renamed)
    return path


def write_big_vision(path, params):
    """An .npz of big_vision: below params/, positions at the top, before the class token."""
    renamed = {}
    for name, array in params.items():
        name = name.replace("output_projection", "head")
        renamed[f"params/{name.replace('Transformer/posembed_input/', '')}"] = array
    position = renamed["params/pos_embedding"]
    if "params/cls" in renamed:
        renamed["params/cls"] = renamed["params/cls"] + position[:, :1]
        renamed["params/pos_embedding"] = position[:, 1:]
    np.savez(path, **renamed)
    return path
