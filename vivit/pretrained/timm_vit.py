"""Image ViTs in the names of timm's vision_transformer.py, which DINOv2's own files have too."""

import re
from typing import Any

import numpy as np

from vivit.pretrained import torch_names as hf
from vivit.pretrained.files import Archive, Arrays
from vivit.pretrained.sources import (
    LoadHints,
    Rule,
    SourceModel,
    apply_rules,
    depth_of,
    grid_of,
    source,
    split_class_row,
)

LAYER = r"blocks\.(\d+)"
PATH = r"stage_0/layer_\1"
PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Neither files nor timm's config.json say how many heads there are: 64 channels each, but for
# these widths of its models (so400m, huge, giant, gigantic).
HEADS = {1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
HEAD_CHANNELS = 64
REGISTERS = ("reg_token", "register_tokens")
MLP = (r"mlp\.(?:fc1|w12)", r"mlp\.(?:fc2|w3)")  # the second names are DINOv2's giant's


def _recognises(archive: Archive) -> bool:
    names = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed"}
    return "model_type" not in archive.config and names <= set(archive.arrays)


@source("timm_vit", about="image ViT of timm, or of DINOv2's own files", recognises=_recognises)
def read_timm(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns a joint model of one frame. What its class token and registers are comes first in
    the sequence; a model that averages its tokens has `fc_norm` and no class token."""
    arrays = archive.arrays
    width, channels, h, w = arrays["patch_embed.proj.weight"].shape
    if channels != 3:
        raise ValueError(f"patch_embed.proj.weight has {channels} channels; only 3 are read")
    cls, registers = "cls_token" in arrays, _registers(arrays)
    mlp_dim, gated = _mlp(arrays)
    heads, notes = _heads(width)
    rows, columns = _positions(arrays, (h, w), hints)
    classes = arrays["head.weight"].shape[0] if "head.weight" in arrays else 0
    fields = {
        "width": width,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "depth": depth_of(arrays, LAYER),
        "activation": "swiglu" if gated else "gelu",
        "qkv_bias": "qkv" if "blocks.0.attn.qkv.bias" in arrays else "",
        "clip": (1, rows * h, columns * w),
        "tubelet": (1, h, w),
        "family": "joint",
        "readout": _readout(arrays, cls),
        "registers": registers,
        "pre_norm": "norm_pre.weight" in arrays,
        "classes": classes,
        **_pixels(archive, notes),
    }
    # CLIP's patches have no bias.
    arrays.setdefault("patch_embed.proj.bias", np.zeros(width, np.float32))
    model = SourceModel(fields, notes=notes)
    for scale, output in ((r"ls1\.gamma", r"attn\.proj"), (r"ls2\.gamma", MLP[1])):
        hf.fold_layer_scale(model, arrays, LAYER, scale, output)
    attention = f"{PATH}/attention_joint"
    qkv = rf"{LAYER}\.attn\.qkv"
    positions = split_class_row if cls else lambda x: {"table": x[0]}
    rules = [
        Rule("cls_token", "stage_0/class_token", lambda x: x[None]),
        Rule("|".join(REGISTERS), "stage_0/registers", lambda x: x[0]),
        Rule("mask_token", why="the mask token of pre-training"),
        Rule("pos_embed", "stage_0/position/", positions),
        *hf.patch_rules(r"patch_embed\.proj"),
        *hf.norm_rules("norm_pre", "stage_0/pre_norm"),
        *hf.fused_rules(rf"{qkv}\.weight", rf"{qkv}\.bias", attention, heads),
        *hf.out_rules(rf"{LAYER}\.attn\.proj", f"{attention}/out", heads),
        *hf.block_rules(LAYER, PATH, "joint", norms=("norm1", "norm2"), mlp=MLP),
        *hf.norm_rules("norm", "stage_0/norm"),
        *hf.norm_rules("fc_norm", "stage_0/pool/norm"),
        *hf.dense_rules("head", "head"),
    ]
    return apply_rules(model, arrays, rules)


def _registers(arrays: Arrays) -> int:
    return next((arrays[name].shape[1] for name in REGISTERS if name in arrays), 0)


def _mlp(arrays: Arrays) -> tuple[int, bool]:
    """Returns the channels of the first layer, and whether a gate halves them."""
    up, down = (
        next((a for n, a in arrays.items() if re.fullmatch(rf"blocks\.0\.{part}\.weight", n)), None)
        for part in MLP
    )
    if up is None or down is None:
        raise ValueError("missing: blocks.0.mlp.fc1.weight and fc2.weight")
    return up.shape[0], up.shape[0] == 2 * down.shape[1]


def _heads(width: int) -> tuple[int, list[str]]:
    if width not in HEADS and width % HEAD_CHANNELS:
        known = ", ".join(map(str, HEADS))
        raise ValueError(
            f"a width of {width} is neither a multiple of {HEAD_CHANNELS} channels per head nor "
            f"one of {known}, so the number of heads is not known"
        )
    heads = HEADS.get(width, width // HEAD_CHANNELS)
    return heads, [f"{heads} heads, by the width: the file does not say"]


def _readout(arrays: Arrays, cls: bool) -> str:
    if "fc_norm.weight" not in arrays:
        return "cls" if cls else "mean"
    if cls:
        raise ValueError("fc_norm with a class token, which is then not read, is not supported")
    return "mean_then_norm"


def _positions(arrays: Arrays, patch: tuple[int, int], hints: LoadHints) -> tuple[int, int]:
    """Returns rows and columns of the positions; a table gets a row for the class token."""
    table = arrays["pos_embed"]
    n, cls = table.shape[1], "cls_token" in arrays
    registers = _registers(arrays)
    if cls and round(n**0.5) ** 2 == n and not hints.source_clip:  # positions of patches alone
        zero = np.zeros((1, 1, table.shape[2]), table.dtype)
        arrays["pos_embed"] = np.concatenate([zero, table], axis=1)
        return grid_of(n, patch, hints)
    if registers and round((n - cls - registers) ** 0.5) ** 2 == n - cls - registers:
        name = next(name for name in REGISTERS if name in arrays)
        rows = table[:, cls : cls + registers].astype(np.float32)
        arrays[name] = arrays[name].astype(np.float32) + rows
        arrays["pos_embed"] = np.delete(table, range(cls, cls + registers), axis=1)
        return grid_of(n - cls - registers, patch, hints)
    return grid_of(n - cls, patch, hints)


def _pixels(archive: Archive, notes: list[str]) -> dict[str, Any]:
    published = archive.config.get("pretrained_cfg") or {}
    if not {"mean", "std"} <= published.keys():
        notes.append("pixels in [-1, 1]: there is no config.json with mean and std")
    mean, std = published.get("mean", PIXELS[0]), published.get("std", PIXELS[1])
    return {"pixel_mean": tuple(map(float, mean)), "pixel_std": tuple(map(float, std))}
