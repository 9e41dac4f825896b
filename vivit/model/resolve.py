"""From what a config says of a model to its resolved config; all checks of a model, made once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from vivit.attention import KERNELS, PATTERNS, KernelRequirements, Pattern
from vivit.attention.reductions import NO_REDUCTION, REDUCTIONS, SIZE_CHANNELS
from vivit.attention.rotary import ROTATIONS
from vivit.model.block import BLOCKS
from vivit.model.config import ModelConfig, StageConfig
from vivit.model.embed import EMBEDDINGS, POSITION_EMBEDDINGS
from vivit.model.layers import ACTIVATIONS
from vivit.model.layout import Layout
from vivit.model.readout import KEEP_GRID, READOUTS
from vivit.model.settings import (
    FAMILIES,
    RATES,
    SIZES,
    Family,
    ModelSettings,
    StageSettings,
    one_stage,
)
from vivit.model.stage import REMAT
from vivit.records import record

SIZE_FIELDS = ("width", "depth", "heads", "mlp_dim", "tubelet")


def resolve(settings: ModelSettings | Mapping[str, Any] | ConfigDict) -> ModelConfig:
    """Returns the resolved config of a model, given its settings or a mapping of their fields.

    Raises ValueError that describes the problem and a valid alternative.
    """
    if not isinstance(settings, ModelSettings):
        settings = record(ModelSettings, dict(settings), at="model")
    model = _with_sizes(settings)
    _check_shapes(model)
    specs = _stage_settings(model)
    width, tubelet = model.width, model.tubelet
    assert width is not None  # _with_sizes raises otherwise
    assert tubelet is not None
    config = ModelConfig(
        settings=model,
        clip=model.clip,
        classes=model.classes,
        width=width,
        tubelet=tubelet,
        embedding=EMBEDDINGS[model.embedding],
        position=POSITION_EMBEDDINGS[model.position],
        pre_logits=model.pre_logits or 0,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        kernel=KERNELS[model.kernel],
        qk_norm=model.qk_norm,
        soft_cap=model.soft_cap or 0.0,
        activation=ACTIVATIONS[model.activation],
        pre_norm=model.pre_norm,
        norm_epsilon=model.norm_epsilon,
        drop_path=model.drop_path,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        dtype=model.dtype,
        scan=model.scan,
        remat=REMAT[model.remat],
    )
    if width % 2 and config.position.even_width:
        raise ValueError(f"width={width} must be even for {model.position} positions")
    return replace(config, stages=_resolve_stages(config, specs))


def _with_sizes(model: ModelSettings) -> ModelSettings:
    """Fills width, depth, heads, mlp_dim and tubelet from `size`, where they are None."""
    name, _, patch = model.size.partition("/")
    from_size: dict[str, Any] = SIZES[name]._asdict() if name else {}
    if patch:
        match = re.fullmatch(r"(\d+)x(\d+)", patch)
        if not match:
            raise ValueError(f'size {model.size!r} is not like "B/16x2": 16 pixels, 2 frames')
        pixels, frames = int(match[1]), int(match[2])
        from_size["tubelet"] = (frames, pixels, pixels)
        if model.tubelet not in (None, from_size["tubelet"]):
            raise ValueError(
                f"tubelet={model.tubelet} contradicts size={model.size!r}; "
                f"give the tubelet once: size={name!r} leaves it to model.tubelet"
            )
    model = replace(model, **{k: v for k, v in from_size.items() if getattr(model, k) is None})
    missing = [name for name in SIZE_FIELDS if getattr(model, name) is None]
    if missing:
        known = ", ".join(SIZES)
        raise ValueError(
            f'model fields {missing} are not set; give them or a size ({known}, "B/16x2")'
        )
    return model


def _check_shapes(model: ModelSettings) -> None:
    if model.classes < 0:
        raise ValueError(f"classes={model.classes} must be at least 1, or 0 for no head")
    for name in ("width", "depth", "heads", "mlp_dim", "pre_logits"):
        value = getattr(model, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if model.norm_epsilon <= 0:
        raise ValueError(f"norm_epsilon={model.norm_epsilon} must be above 0")
    if min(model.pixel_std) <= 0:
        raise ValueError(f"pixel_std={model.pixel_std} must be above 0")
    for name, length, size in zip(
        ("frames", "height", "width"), model.clip, model.tubelet or (), strict=True
    ):
        if size < 1 or length < size or length % size:
            use = max(length // size, 1) * size if size > 0 else length
            raise ValueError(
                f"clip {name}={length} is not a multiple of the tubelet's {size}; use {use}"
            )
    if model.registers < 0:
        raise ValueError(f"registers={model.registers} must be 0 or more")
    if model.soft_cap is not None and model.soft_cap <= 0:
        raise ValueError(f"soft_cap={model.soft_cap} must be above 0, or None for no cap")
    for rate in RATES:
        if not 0 <= getattr(model, rate) < 1:
            raise ValueError(f"{rate}={getattr(model, rate)} is not in [0, 1)")
    if model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f'dtype={model.dtype!r} must be "float32" or "bfloat16"')
    _ = READOUTS[model.readout], ROTATIONS[model.rope]  # raise for unknown names


def _stage_settings(model: ModelSettings) -> tuple[StageSettings, ...]:
    """The stages of a model: its own, or those of its family, with the model's values filled in."""
    if model.stages:
        stages = model.stages
    elif model.family in FAMILIES:
        stages = FAMILIES[model.family].stages(depth=model.depth or 0, readout=model.readout)
    elif model.family in PATTERNS:
        every_block = Family(model.family, one_stage(model.family))
        stages = every_block.stages(depth=model.depth or 0, readout=model.readout)
    else:
        raise ValueError(
            f"unknown family {model.family!r}; known: {', '.join(sorted(FAMILIES))}, "
            f"or a pattern for every block: {', '.join(sorted(PATTERNS))}"
        )
    return tuple(_filled(stage, model) for stage in stages)


def _filled(stage: StageSettings, model: ModelSettings) -> StageSettings:
    """A stage with the model's heads, mlp_dim, rope and qkv_bias where it has none, checked."""
    inherited = {
        name: getattr(model, name)
        for name in ("heads", "mlp_dim", "rope", "qkv_bias")
        if getattr(stage, name) is None
    }
    stage = replace(stage, **inherited)
    if stage.depth and not stage.attentions:
        raise ValueError(f"stage {stage} has layers and no attentions; name one, or set depth=0")
    class_token = bool(stage.pool) and READOUTS[stage.pool].class_token
    least = 1 if class_token or stage.attentions else 0
    if stage.depth < least:
        raise ValueError(f"depth={stage.depth} of stage {stage} must be at least {least}")
    width, heads, kv_heads = model.width or 0, stage.heads or 0, model.kv_heads
    if heads < 1 or width % heads:
        use = f"; use {width // heads * heads}" if heads > 0 else ""
        raise ValueError(f"width={width} is not a multiple of heads={heads}{use}")
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"heads={heads} is not a multiple of kv_heads={kv_heads}; use one of {divisors}"
        )
    if set(stage.qkv_bias or "") - set("qkv"):
        raise ValueError(f'qkv_bias={stage.qkv_bias!r} must be letters of "qkv", or "" for none')
    return stage


@dataclass
class _Progress:
    """What the stages so far have left: the grid (t, y, x), the axes that are not pooled and those
    without a position embedding, the reduction that moved spatial tokens, and the layers so far."""

    grid: tuple[int, int, int]
    unpooled: str = "ts"
    unplaced: str = "ts"
    reduced_by: str = ""
    layer: int = 0


def _resolve_stages(
    config: ModelConfig, specs: tuple[StageSettings, ...]
) -> tuple[StageConfig, ...]:
    now = _Progress(config.grid)
    total = sum(spec.depth for spec in specs)
    stages = []
    for i, spec in enumerate(specs):
        stage = _resolve_stage(config, spec, now, last=i == len(specs) - 1, total=total)
        _check_reduction(config, spec, stage, now.reduced_by, i)
        now.reduced_by = now.reduced_by or spec.reduce
        _check_stage(config, spec, stage, now, i)
        stages.append(stage)
        _advance(spec, stage, now, i)
    if now.unpooled:
        raise ValueError('the last stage must pool: give it pool="mean", "max" or "cls"')
    return tuple(stages)


def _resolve_stage(
    config: ModelConfig, spec: StageSettings, now: _Progress, *, last: bool, total: int
) -> StageConfig:
    attentions = tuple(PATTERNS[name] for name in spec.attentions)
    axes = "".join(a for a in "ts" if any(a in p.axes for p in attentions))
    new = "".join(a for a in axes if a in now.unplaced)
    now.unplaced = "".join(a for a in now.unplaced if a not in new)
    pool_axes = now.unpooled if last else "".join(a for a in axes if a in now.unpooled)
    readout = READOUTS[spec.pool] if spec.pool else KEEP_GRID
    layout = _layout(config, spec, attentions, pool_axes, now)
    t, y, x = now.grid
    lengths = {"t": (t,), "s": (y, x)}
    # One time step with extra tokens keeps them among its spatial tokens.
    flat = layout.axis == "ts" and (readout.class_token or spec.reduce)
    normed = bool(spec.pool and spec.depth and readout.norm_before)
    return StageConfig(
        depth=spec.depth,
        attentions=attentions,
        block=BLOCKS[spec.block],
        norm=normed if spec.norm is None else spec.norm,
        readout=readout,
        pool_axes="" if not spec.pool else "s" if flat else pool_axes,
        reduction=REDUCTIONS[spec.reduce] if spec.reduce else NO_REDUCTION,
        layout=layout,
        position_axes=new,
        lengths=sum((lengths[a] for a in new), ()),
        first_layer=now.layer,
        total_layers=total,
        heads=spec.heads or 0,
        kv_heads=config.settings.kv_heads or spec.heads or 0,
        mlp_dim=spec.mlp_dim or 0,
        qkv_bias=spec.qkv_bias or "",
        rope=ROTATIONS[spec.rope or "none"],
    )


def _advance(spec: StageSettings, stage: StageConfig, now: _Progress, i: int) -> None:
    """The grid and the axes that a stage leaves to the next one."""
    t, y, x = now.grid
    flat = stage.layout.axis == "ts"
    if spec.reduce:
        tokens = y * x * (t if flat else 1)
        options = stage.reduction.options
        try:
            x = stage.reduction.tokens_left(tokens, spec.depth - 1, **options)
        except ValueError as error:
            raise ValueError(f"stage {i}: {error}") from None
        t, y = 1 if flat else t, 1
    if spec.pool:
        pooled = "ts" if flat else stage.pool_axes
        now.unpooled = "".join(a for a in now.unpooled if a not in pooled)
        t = 1 if "t" in pooled else t
        y, x = (1, 1) if "s" in pooled else (y, x)
        now.reduced_by = "" if "s" in pooled else now.reduced_by
    now.grid = t, y, x
    now.layer += spec.depth


def _layout(
    config: ModelConfig,
    spec: StageSettings,
    attentions: tuple[Pattern, ...],
    pool_axes: str,
    now: _Progress,
) -> Layout:
    """Where a stage has its class token and registers, if it has any."""
    t, y, x = now.grid
    class_token = bool(spec.pool) and READOUTS[spec.pool].class_token
    registers = config.settings.registers if attentions else 0
    layout = Layout(t, (y, x), class_token=class_token, registers=registers)
    if not layout.extra:
        return layout
    block = BLOCKS[spec.block]
    seeing = [p for p in attentions if not block.leaves_out(p)]
    if block.tied and len(seeing) < len(attentions):
        if seeing and all(p.class_token and p.axes == "s" for p in seeing):
            return replace(layout, axis="s")
        seeing = []
    fits = len(attentions) == 1 and seeing and seeing[0].class_token
    name = "these stages" if config.settings.stages else f"family {config.settings.family!r}"
    if class_token and not (fits and seeing[0].axes == pool_axes):
        raise ValueError(
            f"{name} can have no class token: a stage with pool {spec.pool!r} needs a single "
            f"pattern that takes one and mixes all it pools, not {spec.attentions} over "
            f'{pool_axes or "nothing"}; use readout="mean" or "max"'
        )
    if not fits or (seeing[0].axes == "t" and "s" in now.unpooled):
        raise ValueError(
            f"{name} can have no {'class token' if class_token else 'registers'}: they need a "
            f"stage of a single pattern that takes them, not {spec.attentions}; use "
            + ('readout="mean" or "max"' if class_token else "registers=0")
        )
    return replace(layout, axis=seeing[0].axes)


def _check_stage(
    config: ModelConfig, spec: StageSettings, stage: StageConfig, now: _Progress, i: int
) -> None:
    """Raises ValueError where a stage's settings do not go together."""
    names = [pattern.name for pattern in stage.attentions]
    if len(set(names)) < len(names):
        raise ValueError(
            f"a pattern occurs twice in one block: {spec.attentions}; use one stage more"
        )
    for pattern in stage.attentions:
        _check_attention(config, stage, pattern, now, i)
    if stage.attentions:
        stage.rope.check(config.width // stage.heads)


def _check_attention(
    config: ModelConfig, stage: StageConfig, pattern: Pattern, now: _Progress, i: int
) -> None:
    """Raises ValueError where a pattern cannot work on this stage's grid, with these switches or
    under this kernel."""
    for what, heads in (("heads", stage.heads), ("kv_heads", stage.kv_heads)):
        if heads % pattern.heads_multiple:
            raise ValueError(
                f"{pattern.name} needs {what} in multiples of {pattern.heads_multiple}, not {heads}"
            )
    if pattern.follows_values and stage.kv_heads != stage.heads:
        raise ValueError(f"{pattern.name} takes no kv_heads; leave it unset")
    pattern.check(*now.grid, **pattern.options)
    if now.reduced_by:
        slots = REDUCTIONS[now.reduced_by].slots
        if "space" in pattern.context_args or (pattern.needs_fixed_positions and not slots):
            raise ValueError(
                f"stage {i} mixes by {pattern.name!r}, which needs the spatial tokens where they "
                f"were, after {now.reduced_by}; use 'joint' or 'space' in it"
            )
    if config.kernel.over_devices and not pattern.over_devices:
        raise ValueError(
            f"kernel {config.kernel.name!r} can't compute pattern {pattern.name!r}: its sets have "
            'one query, which can\'t be split over devices; use kernel="chunked"'
        )
    config.kernel.check(_requirements(config, stage, pattern), pattern=pattern.name)


def _requirements(config: ModelConfig, stage: StageConfig, pattern: Pattern) -> KernelRequirements:
    """What a pattern in this stage will ask of the kernel."""
    channels = config.width // stage.heads
    return KernelRequirements(
        channels=channels + (SIZE_CHANNELS if stage.reduction.each_layer else 0),
        dtype=config.dtype,
        bias="bias" in pattern.kernel_options,
        mask="mask" in pattern.kernel_options,
        soft_cap=config.soft_cap > 0,
        dropout=bool(config.attention_dropout > 0),
    )


def _check_reduction(
    config: ModelConfig, spec: StageSettings, stage: StageConfig, before: str, i: int
) -> None:
    """Raises ValueError where a reduction, of this stage or `before` it, cannot be.

    A merging acts after a layer's attention, so its first layer still sees the grid; what is
    forbidden after a reduction is forbidden in its whole stage.
    """
    reduced_by = before or spec.reduce
    if not reduced_by:
        return
    if stage.rope.rotates:
        raise ValueError(f"rope needs every token's position, and {reduced_by} moves tokens")
    if not spec.reduce:
        if "s" in stage.position_axes:
            raise ValueError(
                f"stage {i} would put positions on spatial tokens that {reduced_by} has reduced"
            )
        return
    layout, each_layer = stage.layout, stage.reduction.each_layer
    if layout.axis == "t":
        raise ValueError(
            f"stage {i} reduces the spatial tokens of a time step and has its class token or "
            'registers on time; use readout="mean" or reduce in an earlier stage'
        )
    if layout.axis == "ts" and not spec.pool:
        raise ValueError(
            f"stage {i} has its class token or registers on the clip, so it reduces over all "
            "time steps, which then end: give it a pool"
        )
    if before:
        raise ValueError(f"stage {i} reduces tokens that {before} has reduced already")
    if not spec.attentions:
        raise ValueError(f"stage {i} reduces tokens and has no layers that would use them")
    if each_layer and not spec.pool:
        raise ValueError(
            f"stage {i} merges tokens, and their sizes end with it: give it a pool, and its "
            "layers to one stage"
        )
    if each_layer and config.scan:
        raise ValueError(f"{spec.reduce} changes the shape from layer to layer; use scan=False")
    if each_layer and config.soft_cap:
        raise ValueError(f"{spec.reduce} adds to scores that soft_cap would cap; use one of them")
