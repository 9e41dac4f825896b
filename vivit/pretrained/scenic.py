"""Scenic's ViViT checkpoints: a Flax msgpack of a train state.

Names: scenic/projects/vivit/model.py and train_utils.py. The parameters are under optimizer/target
in the released files, and under params in those of newer versions of Scenic.
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
from vivit.pretrained.vit import read_image

ROOTS = ("optimizer/target/", "params/", "")
PUBLISHED_CLIP = (32, 224, 224)
# Epic-Kitchens-100: one head for both tasks; Scenic's configs split it so.
GROUPS = {397: {"nouns": (0, 300), "verbs": (300, 397)}}


def _root(arrays: Arrays) -> str | None:
    for root in ROOTS:
        if f"{root}{EMBEDDING}" in arrays:
            return root
        if f"{root}params/{EMBEDDING}" in arrays:
            return f"{root}params/"
    return None


@source(
    "scenic",
    about="Scenic ViViT or ViT checkpoint (Flax msgpack)",
    recognises=lambda archive: archive.format == "msgpack" and _root(archive.arrays) is not None,
)
def read_scenic(archive: Archive, asked: Asked) -> Native:
    """Any of Scenic's models. What the weights don't tell: Scenic's published configuration."""
    root = _root(archive.arrays)
    if root is None:
        raise ValueError(f"{archive.path} has no {EMBEDDING} below any of {', '.join(ROOTS)}")
    arrays = {n.removeprefix(root): a for n, a in archive.arrays.items() if n.startswith(root)}
    arrays_of_video = arrays[EMBEDDING].ndim == 5
    rest = {n: "not a parameter of the model" for n in archive.arrays if not n.startswith(root)}
    if "SpatialTransformer/encoder_norm/scale" in arrays:
        native = _factorised_encoder(arrays, asked)
    elif arrays[EMBEDDING].ndim == 4 and not _is_sampled(asked):
        native = read_image(arrays, asked)
    else:
        native = _one_encoder(arrays, asked)
    native.dropped |= rest
    if arrays_of_video:
        native.groups = GROUPS.get(native.model_config["classes"], {})
    if native.groups:
        listed = ", ".join(f"{k} [{a}:{b}]" for k, (a, b) in native.groups.items())
        native.notes.append(f"a head of several tasks: {listed}")
    return native


def _tubelet(arrays: Arrays) -> tuple[int, int, int]:
    shape = arrays[EMBEDDING].shape
    return shape[:3] if len(shape) == 5 else (1, *shape[:2])


def _factorised_encoder(arrays: Arrays, asked: Asked) -> Native:
    encoders = ["SpatialTransformer", "TemporalTransformer"]
    if not any(name.startswith(encoders[1]) for name in arrays):
        encoders = encoders[:1]  # Scenic's spatial_only_baseline: the mean over time
    sizes = [encoder_sizes(arrays, encoder) for encoder in encoders]
    cls = f"cls_{encoders[0]}" in arrays
    lengths = [_length(arrays, f"{e}/posembed_input/pos_embedding") - cls for e in encoders]
    t, h, w = tubelet = _tubelet(arrays)
    side = grid_of(lengths[0], (h, w), asked)
    steps = lengths[1] if len(encoders) == 2 else (asked.source_clip or PUBLISHED_CLIP)[0] // t
    readout = "cls" if cls else "mean"
    config = {
        **common_sizes(arrays),
        **sizes[0],
        "tubelet": tubelet,
        "clip": (steps * t, side[0] * h, side[1] * w),
        "readout": readout,
    }
    if len(encoders) == 1:
        config["family"] = "average_pool"
    elif all(sizes[0][key] == sizes[1][key] for key in ("heads", "mlp_dim")):
        config |= {"family": "factorised_encoder", "temporal_depth": sizes[1]["depth"]}
    else:  # encoders of different shapes
        config["stages"] = tuple(
            {**size, "mixers": (mixer,), "pool": readout}
            for size, mixer in zip(sizes, ("space", "time"), strict=True)
        )
    native = Native(config)
    if len(encoders) == 1:
        native.notes.append(f"no temporal encoder, so any number of steps: {steps} assumed")
    rules = [*EMBEDDING_AND_HEAD]
    for stage, (encoder, pattern) in enumerate(zip(encoders, ("space", "time"), strict=False)):
        rules += block_rules(encoder, stage, pattern)
        rules += [
            Rule(f"cls_{encoder}", f"stage_{stage}/class_token", lambda token: token[None]),
            position_rule(
                f"{encoder}/posembed_input/pos_embedding", f"stage_{stage}/position", cls=cls
            ),
        ]
    apply_rules(native, arrays, rules)
    if not cls:
        native.notes.append(_POOL_NOTE)
    return native


_POOL_NOTE = (
    'no class token: readout "mean" (Scenic\'s gap) assumed; model={"readout": "max"}, "sum" or '
    '"first" for its gmp, gsp or 0'
)


def _one_encoder(arrays: Arrays, asked: Asked) -> Native:
    cls = "cls" in arrays
    factorised = any("/LayerNorm_space/" in name for name in arrays)
    tubelet = _tubelet(arrays)
    tokens = _length(arrays, "Transformer/posembed_input/pos_embedding") - cls
    clip, note = _joint_clip(tokens, tubelet, asked)
    native = Native(
        {
            **common_sizes(arrays),
            **encoder_sizes(arrays, "Transformer"),
            "tubelet": tubelet,
            "clip": clip,
            "family": "factorised_self_attention_time_space" if factorised else "joint",
            "readout": "cls" if cls else "mean",
        },
        notes=[note] if note else [],
    )
    if factorised:
        native.notes.append(
            "the order of attentions is not in the weights: time before space, as published; "
            'family="factorised_self_attention" is space before time'
        )
    elif not cls:
        native.notes.append(
            "joint and dot-product attention have the same weights: joint assumed; "
            'family="factorised_dot_product" is the other'
        )
    if not cls:
        native.notes.append(_POOL_NOTE)
    rules = [
        *(_factorised_rules() if factorised else block_rules("Transformer", 0, "joint")),
        *EMBEDDING_AND_HEAD,
        Rule("cls", "stage_0/class_token", lambda token: token[None]),
        position_rule("Transformer/posembed_input/pos_embedding", "stage_0/position", cls=cls),
    ]
    apply_rules(native, arrays, rules)
    return native


def _factorised_rules() -> list[Rule]:
    block, own = r"Transformer/encoderblock_(\d+)", r"stage_0/layer_\1"
    return [
        Rule(rf"{block}/LayerNorm_(space|time|mlp)/(scale|bias)", rf"{own}/norm_\2/\3"),
        Rule(
            rf"{block}/MultiHeadDotProductAttention_(space|time)/(query|key|value|out)/(kernel|bias)",
            rf"{own}/attention_\2/\3/\4",
        ),
        *mlp_rules(rf"{block}/MlpBlock", rf"{own}/mlp"),
        Rule(r"Transformer/encoder_norm/(scale|bias)", r"stage_0/norm/\1"),
    ]


def _length(arrays: Arrays, name: str) -> int:
    if name not in arrays or arrays[name].ndim != 3:
        raise ValueError(f"missing: {name} of shape [1, N, D]")
    return arrays[name].shape[1]


def _is_sampled(asked: Asked) -> bool:
    """A 2D patch kernel is an image model's, or that of a video model of single frames, which
    only source_clip can tell."""
    return asked.source_clip is not None and asked.source_clip[0] > 1


def _count(clip: tuple[int, int, int], tubelet: tuple[int, int, int]) -> int:
    return int(np.prod([n // size for n, size in zip(clip, tubelet, strict=True)]))


def _joint_clip(tokens: int, tubelet, asked: Asked) -> tuple[tuple[int, int, int], str]:
    """The clip behind a joint table of positions, which only tells how many tokens there are, and
    a note where it is assumed."""
    if asked.source_clip:
        there = _count(asked.source_clip, tubelet)
        if there != tokens:
            raise ValueError(
                f"source_clip={asked.source_clip} has {there} tubelets {tubelet}, and the file has "
                f"{tokens} positions"
            )
        return asked.source_clip, ""
    for clip in (PUBLISHED_CLIP, asked.clip):
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
