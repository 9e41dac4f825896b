"""Image ViTs of google-research: vision_transformer and AugReg .npz, big_vision .npz.

They are read as video models of one frame, with the image model's logits; `vivit.pretrained.adapt`
makes them models of more. Names: vision_transformer's models.py, big_vision's models/vit.py.
"""

import numpy as np

from vivit.pretrained.files import Archive, Arrays
from vivit.pretrained.flax_names import (
    EMBEDDING,
    EMBEDDING_AND_HEAD,
    block_rules,
    common_sizes,
    encoder_sizes,
    mlp_rules,
    position_rule,
)
from vivit.pretrained.table import (
    Asked,
    Native,
    Rule,
    apply_rules,
    grid_of,
    source,
)

POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding")
MAP = "MAPHead_0"


def _recognises(archive: Archive) -> bool:
    names = {name.removeprefix("params/") for name in archive.arrays}
    kernel = [a for n, a in archive.arrays.items() if n.removeprefix("params/") == EMBEDDING]
    blocks = any(name.startswith("Transformer/encoderblock") for name in names)
    return archive.format == "npz" and blocks and bool(kernel) and kernel[0].ndim == 4


@source("vit", about="image ViT .npz of vision_transformer or big_vision", recognises=_recognises)
def read_vit(archive: Archive, asked: Asked) -> Native:
    """A joint model of one frame: with one step, joint attention is the image model's."""
    return read_image(archive.arrays, asked)


def read_image(arrays: Arrays, asked: Asked) -> Native:
    """An image ViT in any of the Flax namings."""
    root = "params/" if any(name.startswith("params/") for name in arrays) else ""
    dropped = {name: "not a parameter" for name in arrays if not name.startswith(root)}
    arrays = {n.removeprefix(root): a for n, a in arrays.items() if n not in dropped}
    arrays = _unstacked(arrays)
    sizes = common_sizes(arrays) | encoder_sizes(arrays, "Transformer")
    h, w = arrays[EMBEDDING].shape[:2]
    cls = "cls" in arrays
    notes = []
    position = next((n for n in (*POSITIONS, "pos_embedding") if n in arrays), None)
    if position is None:
        if cls:
            raise ValueError("missing: Transformer/posembed_input/pos_embedding or pos_embedding")
        frame = asked.source_clip[1:] if asked.source_clip else (224, 224)
        grid = (frame[0] // h, frame[1] // w)
        position = "pos_embedding"
        arrays[position] = sines_and_cosines(*grid, sizes["width"])[None]
        notes.append(f"no positions in the file: big_vision's fixed sincos2d table on {grid}")
    else:
        n = arrays[position].shape[1]
        # big_vision adds positions before the class token, which then has none of its own.
        has_row = cls and (position != "pos_embedding" or round(n**0.5) ** 2 + 1 == n)
        if cls and not has_row:
            zero = np.zeros((1, 1, sizes["width"]), np.float32)
            arrays[position] = np.concatenate([zero, arrays[position]], axis=1)
            notes.append("the class token has no position in the file: zeros")
        grid = grid_of(n - has_row, (h, w), asked)
    readout = "cls" if cls else "map" if f"{MAP}/probe" in arrays else "mean"
    native = Native(
        {
            **sizes,
            "clip": (1, grid[0] * h, grid[1] * w),
            "tubelet": (1, h, w),
            "family": "joint",
            "readout": readout,
        },
        dropped=dropped,
        notes=notes,
    )
    rules = [
        *block_rules("Transformer", 0, "joint"),
        *EMBEDDING_AND_HEAD,
        *_map_rules(),
        Rule("cls", "stage_0/class_token", lambda token: token[None]),
        position_rule(position, "stage_0/position", cls=cls),
    ]
    apply_rules(native, arrays, rules)
    return native


def _map_rules() -> list[Rule]:
    pool = "stage_0/pool"
    return [
        Rule(rf"{MAP}/probe", f"{pool}/query_token", lambda probe: probe[0]),
        Rule(
            rf"{MAP}/MultiHeadDotProductAttention_0/(query|key|value|out)/(kernel|bias)",
            rf"{pool}/\1/\2",
        ),
        Rule(rf"{MAP}/LayerNorm_0/(scale|bias)", rf"{pool}/norm_mlp/\1"),
        *mlp_rules(rf"{MAP}/MlpBlock_0", f"{pool}/mlp"),
    ]


def _unstacked(arrays: Arrays) -> Arrays:
    """big_vision's scanned encoders have one array for all layers."""
    start, out = "Transformer/encoderblock/", {}
    for name, array in arrays.items():
        if name.startswith(start):
            tail = name.removeprefix(start)
            out |= {f"Transformer/encoderblock_{i}/{tail}": a for i, a in enumerate(array)}
        else:
            out[name] = array
    return out


def sines_and_cosines(rows: int, columns: int, width: int) -> np.ndarray:
    """big_vision's fixed 2D table [rows·columns, width]: sines and cosines of x, then those of y;
    frequencies from 1 to 1/10,000, both ends included (MoCo v3, 2104.02057)."""
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (x, y)]
    parts = [function(a) for a in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)
