"""HuggingFace TimeSformer's parameters, by their names there, as those of the family "divided"."""

import numpy as np


def from_timesformer(params, *, heads):
    """`params`: name -> array. Returns the tree of a divided model with a class token."""

    def norm(name):
        return {"scale": params[f"{name}.weight"], "bias": params[f"{name}.bias"]}

    def dense(name):
        return {"kernel": params[f"{name}.weight"].T, "bias": params[f"{name}.bias"]}

    def attention(name):
        width = params[f"{name}.output.dense.weight"].shape[0]
        split = lambda x: x.reshape(*x.shape[:-1], heads, width // heads)
        kernels = np.split(params[f"{name}.attention.qkv.weight"].T, 3, axis=1)
        biases = np.split(params[f"{name}.attention.qkv.bias"], 3)
        tree = {
            part: {"kernel": split(kernel), "bias": split(bias)}
            for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        out = dense(f"{name}.output.dense")
        out["kernel"] = out["kernel"].reshape(heads, width // heads, width)
        return {**tree, "out": out}

    def layer(i):
        name = f"timesformer.encoder.layer.{i}"
        over_time = attention(f"{name}.temporal_attention")
        return {
            "norm_divided_time": norm(f"{name}.temporal_layernorm"),
            "attention_divided_time": {**over_time, "projection": dense(f"{name}.temporal_dense")},
            "norm_space": norm(f"{name}.layernorm_before"),
            "attention_space": attention(f"{name}.attention"),
            "norm_mlp": norm(f"{name}.layernorm_after"),
            "mlp": {
                "up": dense(f"{name}.intermediate.dense"),
                "down": dense(f"{name}.output.dense"),
            },
        }

    embeddings = "timesformer.embeddings"
    patches = params[f"{embeddings}.patch_embeddings.projection.weight"]  # [D, C, H, W]
    positions = params[f"{embeddings}.position_embeddings"][0]
    depth = sum(name.endswith("temporal_dense.bias") for name in params)
    return {
        "tubelet": {
            "kernel": patches.transpose(2, 3, 1, 0)[None],
            "bias": params[f"{embeddings}.patch_embeddings.projection.bias"],
        },
        "stage_0": {
            "class_token": params[f"{embeddings}.cls_token"][:, None],
            "position": {
                "class_token": positions[:1],
                "space": positions[1:],
                "time": params[f"{embeddings}.time_embeddings"][0],
            },
            "norm": norm("timesformer.layernorm"),
            **{f"layer_{i}": layer(i) for i in range(depth)},
        },
        "head": dense("classifier"),
    }
