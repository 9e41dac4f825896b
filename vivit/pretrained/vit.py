"""Image ViTs of google-research: vision_transformer and AugReg .npz, big_vision .npz.

They are read as video models of one frame, with the image model's logits; `vivit.pretrained.adapt`
makes models of more frames from them. Names: vision_transformer's models.py and big_vision's
models/vit.py.
"""

import numpy as np

from vivit.pretrained import flax_names as flax
from vivit.pretrained.files import Archive, Arrays
from vivit.pretrained.sources import LoadHints, Rule, SourceModel, apply_rules, grid_of, source

BIG_VISION_POSITION = "pos_embedding"
POSITIONS = (
    "Transformer/posembed_input/pos_embedding",
    "Transformer/pos_embedding",
    BIG_VISION_POSITION,
)
MAP = "MAPHead_0"


def _recognises(archive: Archive) -> bool:
    names = {name.removeprefix("params/") for name in archive.arrays}
    kernel = [a for n, a in archive.arrays.items() if n.removeprefix("params/") == flax.EMBEDDING]
    blocks = any(name.startswith("Transformer/encoderblock") for name in names)
    return archive.format == "npz" and blocks and bool(kernel) and kernel[0].ndim == 4


@source("vit", about="image ViT .npz of vision_transformer or big_vision", recognises=_recognises)
def read_vit(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns a joint model of one frame: in one time step, its attention is the image model's."""
    return read_image(archive.arrays, hints)


def read_image(arrays: Arrays, hints: LoadHints) -> SourceModel:
    """Returns the model of an image ViT in any of the Flax namings."""
    root = "params/" if any(name.startswith("params/") for name in arrays) else ""
    dropped = {name: "not a parameter" for name in arrays if not name.startswith(root)}
    arrays = {n.removeprefix(root): a for n, a in arrays.items() if n not in dropped}
    arrays = _unstacked(arrays)
    sizes = flax.common_sizes(arrays) | flax.encoder_sizes(arrays, "Transformer")
    h, w = arrays[flax.EMBEDDING].shape[:2]
    cls = "cls" in arrays
    position, grid, notes = _positions(arrays, (h, w), sizes["width"] or 0, hints)
    readout = "cls" if cls else "map_head" if f"{MAP}/probe" in arrays else "mean"
    fields = {"clip": (1, grid[0] * h, grid[1] * w), "tubelet": (1, h, w), "family": "joint"}
    model = SourceModel({**sizes, **fields, "readout": readout}, dropped=dropped, notes=notes)
    rules = [
        *flax.block_rules("Transformer", 0, "joint"),
        *flax.EMBEDDING_AND_HEAD,
        *_map_rules(),
        Rule("cls", "stage_0/class_token", lambda token: token[None]),
        flax.position_rule(position, "stage_0/position", cls=cls),
    ]
    return apply_rules(model, arrays, rules)


def _positions(
    arrays: Arrays, patch: tuple[int, int], width: int, hints: LoadHints
) -> tuple[str, tuple[int, int], list[str]]:
    """Returns the name of the position table, its rows and columns, and notes.

    `arrays` gets a table if it has none, and the table a row for the class token.
    """
    cls = "cls" in arrays
    name = next((n for n in POSITIONS if n in arrays), None)
    if name is None:
        if cls:
            raise ValueError("missing: Transformer/posembed_input/pos_embedding or pos_embedding")
        frame = hints.source_clip[1:] if hints.source_clip else (224, 224)
        grid = (frame[0] // patch[0], frame[1] // patch[1])
        arrays[BIG_VISION_POSITION] = sines_and_cosines(*grid, width)[None]
        note = f"no positions in the file: big_vision's fixed sincos2d table on {grid}"
        return BIG_VISION_POSITION, grid, [note]
    n = arrays[name].shape[1]
    # big_vision adds positions before the class token, which then has no row in the table.
    has_row = cls and (name != BIG_VISION_POSITION or round(n**0.5) ** 2 + 1 == n)
    grid = grid_of(n - has_row, patch, hints)
    if not cls or has_row:
        return name, grid, []
    zero = np.zeros((1, 1, width), np.float32)
    arrays[name] = np.concatenate([zero, arrays[name]], axis=1)
    return name, grid, ["the class token has no position in the file: zeros"]


def _map_rules() -> list[Rule]:
    pool = "stage_0/pool"
    return [
        Rule(rf"{MAP}/probe", f"{pool}/query_token", lambda probe: probe[0]),
        Rule(
            rf"{MAP}/MultiHeadDotProductAttention_0/(query|key|value|out)/(kernel|bias)",
            rf"{pool}/\1/\2",
        ),
        Rule(rf"{MAP}/LayerNorm_0/(scale|bias)", rf"{pool}/norm_mlp/\1"),
        *flax.mlp_rules(rf"{MAP}/MlpBlock_0", f"{pool}/mlp"),
    ]


def _unstacked(arrays: Arrays) -> Arrays:
    """Returns arrays of single layers: big_vision's scanned encoders have one array for all."""
    start, out = "Transformer/encoderblock/", {}
    for name, array in arrays.items():
        if name.startswith(start):
            tail = name.removeprefix(start)
            out |= {f"Transformer/encoderblock_{i}/{tail}": a for i, a in enumerate(array)}
        else:
            out[name] = array
    return out


def sines_and_cosines(rows: int, columns: int, width: int) -> np.ndarray:
    """Returns big_vision's fixed 2D table [rows·columns, width]: sines and cosines of x, then of y;
    frequencies from 1 to 1/10,000, both ends included (MoCo v3, 2104.02057)."""
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (x, y)]
    parts = [function(a) for a in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)
