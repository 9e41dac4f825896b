"""Scenic's ViViT checkpoints: a Flax msgpack of a train state.

Names: scenic/projects/vivit/model.py and train_utils.py. The parameters are under optimizer/target
in the released files, and under params in those of newer versions of Scenic.
"""

from typing import Any

import numpy as np

from vivit.pretrained import flax_names as flax
from vivit.pretrained.files import Archive, Arrays
from vivit.pretrained.sources import LoadHints, Rule, SourceModel, apply_rules, grid_of, source
from vivit.pretrained.vit import read_image

ROOTS = ("optimizer/target/", "params/", "")
PUBLISHED_CLIP = (32, 224, 224)
# Epic-Kitchens-100: one head for both tasks; Scenic's configs split it so.
GROUPS = {397: {"nouns": (0, 300), "verbs": (300, 397)}}


def _root(arrays: Arrays) -> str | None:
    for root in ROOTS:
        if f"{root}{flax.EMBEDDING}" in arrays:
            return root
        if f"{root}params/{flax.EMBEDDING}" in arrays:
            return f"{root}params/"
    return None


@source(
    "scenic",
    about="Scenic ViViT or ViT checkpoint (Flax msgpack)",
    recognises=lambda archive: archive.format == "msgpack" and _root(archive.arrays) is not None,
)
def read_scenic(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns any of Scenic's models. What the weights do not show is that of Scenic's published
    configuration."""
    root = _root(archive.arrays)
    if root is None:
        raise ValueError(f"{archive.path} has no {flax.EMBEDDING} below any of {', '.join(ROOTS)}")
    arrays = {n.removeprefix(root): a for n, a in archive.arrays.items() if n.startswith(root)}
    is_video = arrays[flax.EMBEDDING].ndim == 5
    rest = {n: "not a parameter of the model" for n in archive.arrays if not n.startswith(root)}
    if "SpatialTransformer/encoder_norm/scale" in arrays:
        model = _factorised_encoder(arrays, hints)
    elif not is_video and not _is_sampled(hints):
        model = read_image(arrays, hints)
    else:
        model = _one_encoder(arrays, hints)
    model.dropped |= rest
    if is_video:
        model.groups = GROUPS.get(model.model_config["classes"], {})
    if model.groups:
        listed = ", ".join(f"{k} [{a}:{b}]" for k, (a, b) in model.groups.items())
        model.notes.append(f"a head of several tasks: {listed}")
    return model


def _tubelet(arrays: Arrays) -> tuple[int, int, int]:
    *frames, h, w, _, _ = arrays[flax.EMBEDDING].shape
    return (frames[0] if frames else 1, h, w)


def _factorised_encoder(arrays: Arrays, hints: LoadHints) -> SourceModel:
    encoders = ["SpatialTransformer", "TemporalTransformer"]
    if not any(name.startswith(encoders[1]) for name in arrays):
        encoders = encoders[:1]  # Scenic's spatial_only_baseline: the mean over time
    sizes = [flax.encoder_sizes(arrays, encoder) for encoder in encoders]
    cls = f"cls_{encoders[0]}" in arrays
    lengths = [_length(arrays, f"{e}/posembed_input/pos_embedding") - cls for e in encoders]
    t, h, w = tubelet = _tubelet(arrays)
    rows, columns = grid_of(lengths[0], (h, w), hints)
    time_steps = (hints.source_clip or PUBLISHED_CLIP)[0] // t
    time_steps = lengths[1] if len(encoders) == 2 else time_steps
    fields = {
        **flax.common_sizes(arrays),
        **sizes[0],
        "tubelet": tubelet,
        "clip": (time_steps * t, rows * h, columns * w),
        "readout": "cls" if cls else "mean",
    }
    model = SourceModel(fields | _encoder_fields(sizes, fields["readout"]))
    if len(encoders) == 1:
        model.notes.append(f"no temporal encoder, so any number of steps: {time_steps} assumed")
    if not cls:
        model.notes.append(_READOUT_NOTE)
    rules = [*flax.EMBEDDING_AND_HEAD]
    for stage, (encoder, pattern) in enumerate(zip(encoders, ("space", "time"), strict=False)):
        table, path = f"{encoder}/posembed_input/pos_embedding", f"stage_{stage}/position"
        rules += [
            *flax.block_rules(encoder, stage, pattern),
            Rule(f"cls_{encoder}", f"stage_{stage}/class_token", lambda token: token[None]),
            flax.position_rule(table, path, cls=cls),
        ]
    return apply_rules(model, arrays, rules)


def _encoder_fields(sizes: list[dict[str, int]], readout: str) -> dict[str, Any]:
    """Returns the family or the stages of one or two encoders of these sizes."""
    if len(sizes) == 1:
        return {"family": "average_pool"}
    if all(sizes[0][key] == sizes[1][key] for key in ("heads", "mlp_dim")):
        return {"family": f"factorised_encoder(temporal_depth={sizes[1]['depth']})"}
    patterns = zip(sizes, ("space", "time"), strict=True)
    return {"stages": tuple({**size, "attentions": (p,), "pool": readout} for size, p in patterns)}


_READOUT_NOTE = (
    'no class token: readout "mean" (Scenic\'s gap) assumed; model={"readout": "max"}, "sum" or '
    '"first" for its gmp, gsp or 0'
)
_ORDER_NOTE = (
    "the order of attentions is not in the weights: time before space, as published; "
    'family="factorised_self_attention" is space before time'
)
_DOT_PRODUCT_NOTE = (
    "joint and dot-product attention have the same weights: joint assumed; "
    'family="factorised_dot_product" is the other'
)


def _one_encoder(arrays: Arrays, hints: LoadHints) -> SourceModel:
    cls = "cls" in arrays
    factorised = any("/LayerNorm_space/" in name for name in arrays)
    tubelet = _tubelet(arrays)
    tokens = _length(arrays, "Transformer/posembed_input/pos_embedding") - cls
    clip, note = _joint_clip(tokens, tubelet, hints)
    notes = [note, _ORDER_NOTE if factorised else "" if cls else _DOT_PRODUCT_NOTE]
    notes.append("" if cls else _READOUT_NOTE)
    model = SourceModel(
        {
            **flax.common_sizes(arrays),
            **flax.encoder_sizes(arrays, "Transformer"),
            "tubelet": tubelet,
            "clip": clip,
            "family": "factorised_self_attention_time_space" if factorised else "joint",
            "readout": "cls" if cls else "mean",
        },
        notes=[note for note in notes if note],
    )
    rules = [
        *(_factorised_rules() if factorised else flax.block_rules("Transformer", 0, "joint")),
        *flax.EMBEDDING_AND_HEAD,
        Rule("cls", "stage_0/class_token", lambda token: token[None]),
        flax.position_rule("Transformer/posembed_input/pos_embedding", "stage_0/position", cls=cls),
    ]
    return apply_rules(model, arrays, rules)


def _factorised_rules() -> list[Rule]:
    block, path = r"Transformer/encoderblock_(\d+)", r"stage_0/layer_\1"
    attention = rf"{block}/MultiHeadDotProductAttention_(space|time)"
    return [
        Rule(rf"{block}/LayerNorm_(space|time|mlp)/(scale|bias)", rf"{path}/norm_\2/\3"),
        Rule(rf"{attention}/(query|key|value|out)/(kernel|bias)", rf"{path}/attention_\2/\3/\4"),
        *flax.mlp_rules(rf"{block}/MlpBlock", rf"{path}/mlp"),
        Rule(r"Transformer/encoder_norm/(scale|bias)", r"stage_0/norm/\1"),
    ]


def _length(arrays: Arrays, name: str) -> int:
    if name not in arrays or arrays[name].ndim != 3:
        raise ValueError(f"missing: {name} of shape [1, N, D]")
    return arrays[name].shape[1]


def _is_sampled(hints: LoadHints) -> bool:
    """Returns whether a 2D patch kernel is that of a video model of single frames: the weights do
    not show it, and source_clip does."""
    return hints.source_clip is not None and hints.source_clip[0] > 1


def _count(clip: tuple[int, int, int], tubelet: tuple[int, int, int]) -> int:
    return int(np.prod([n // size for n, size in zip(clip, tubelet, strict=True)]))


def _joint_clip(
    tokens: int, tubelet: tuple[int, int, int], hints: LoadHints
) -> tuple[tuple[int, int, int], str]:
    """Returns the clip of a joint position table, and a note where it is assumed: the table only
    shows how many tokens there are. Raises ValueError that lists the clips with square frames."""
    if hints.source_clip:
        count = _count(hints.source_clip, tubelet)
        if count != tokens:
            raise ValueError(
                f"source_clip={hints.source_clip} has {count} tubelets {tubelet}, and the file has "
                f"{tokens} positions"
            )
        return hints.source_clip, ""
    for clip in (PUBLISHED_CLIP, hints.clip):
        if clip and _count(clip, tubelet) == tokens:
            note = f"the clip behind {tokens} positions is not in the weights: {clip} assumed; "
            return clip, note + "source_clip=(F, H, W) for another"
    t, h, w = tubelet
    sides = [s for s in range(1, tokens + 1) if tokens % (s * s) == 0]
    clips = [(tokens // s**2 * t, s * h, s * w) for s in sides]
    if len(clips) == 1:
        return clips[0], ""
    listed = ", ".join(map(str, clips))
    raise ValueError(
        f"{tokens} positions of tubelets {tubelet} don't tell the clip; with square frames it is "
        f"one of {listed}: give it as source_clip=(F, H, W)"
    )
