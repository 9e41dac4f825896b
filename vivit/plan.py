"""From a model's fields to its stages: what each mixes, holds and pools; all checks of a plan."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vivit.attention import KERNELS, PATTERNS, Demand
from vivit.attention.reduction import EXTRA, REDUCTIONS
from vivit.attention.rotary import ROTATIONS, rotated_channels
from vivit.encoder import AttentionFields
from vivit.layers import Layout
from vivit.pools import POOLS
from vivit.registry import Registry

# The stages of a family: (depth, temporal_depth, readout) -> mappings with depth, mixers and pool.
# The first five are those of ViViT (2103.15691), sections 3.3 and 4.2.
FAMILIES: Registry[Callable[..., tuple[dict, ...]]] = Registry("family")


def _one_stage(*mixers: str) -> Callable[..., tuple[dict, ...]]:
    return lambda depth, temporal_depth, readout: (
        {"depth": depth, "mixers": mixers, "pool": readout},
    )


FAMILIES.add("joint", _one_stage("joint"))  # model 1
FAMILIES.add(  # model 2
    "factorised_encoder",
    lambda depth, temporal_depth, readout: (
        {"depth": depth, "mixers": ("space",), "pool": readout},
        {"depth": temporal_depth, "mixers": ("time",), "pool": readout},
    ),
)
FAMILIES.add("factorised_self_attention", _one_stage("space", "time"))  # model 3
# The order of Scenic's published config; the paper found no difference (section 3.3).
FAMILIES.add("factorised_self_attention_time_space", _one_stage("time", "space"))
FAMILIES.add("factorised_dot_product", _one_stage("split_heads"))  # model 4


def _average_pool(depth: int, temporal_depth: int, readout: str) -> tuple[dict, ...]:
    """The baseline of ViViT's table 2: each step on its own, then their mean."""
    return (
        {"depth": depth, "mixers": ("space",), "pool": readout},
        {"depth": 0, "mixers": (), "pool": "mean"},
    )


FAMILIES.add("average_pool", _average_pool)
# TimeSformer (2102.05095), section 3 and figure 2; its space attention is ViViT's average_pool.
FAMILIES.add("space_only", _average_pool)
FAMILIES.add("divided", _one_stage("divided_time", "space"))
FAMILIES.add("local_global", _one_stage("local", "strided_global"))
FAMILIES.add("axial", _one_stage("time", "height", "width"))


STAGE_KEYS = ("depth", "mixers", "pool")
# Keys that a stage may have: "reduce", where tokens are reduced; "norm", whether a layer norm
# follows the blocks (None: where a pool follows that wants one); and its own values of fields.
OPTIONAL_KEYS: dict[str, Any] = {"reduce": "", "norm": None}
OWN_FIELDS = ("heads", "mlp_dim", "rope", "qkv_bias")


def plan_stages(model: Any) -> list[dict[str, Any]]:
    """The fields of every `vivit.encoder.Stage` of a `vivit.ViViT`. ValueError says what is wrong
    and what would do."""
    specs = _stage_specs(model)
    left = "ts"  # the axes not pooled yet
    unplaced = "ts"  # the axes that have no position embedding yet
    t, y, x = model.grid
    reduced = ""  # the reduction that the places of a step have gone through
    planned, layer = [], 0
    total = sum(spec["depth"] for spec in specs)
    for i, spec in enumerate(specs):
        axes = "".join(a for a in "ts" if any(a in PATTERNS[m].axes for m in spec["mixers"]))
        last = i == len(specs) - 1
        new = "".join(a for a in axes if a in unplaced)
        unplaced = "".join(a for a in unplaced if a not in new)
        pool_axes = left if last else "".join(a for a in axes if a in left)
        fields = _attention_fields(model, spec)
        layout = _layout(spec, pool_axes, left, model, steps=t, space=(y, x))
        if spec["reduce"] and layout.extra == "t":
            raise ValueError(
                f"stage {i} reduces the places of a step and has its class token or registers on "
                'time; use readout="mean" or reduce in an earlier stage'
            )
        if spec["reduce"] and layout.extra == "ts" and not spec["pool"]:
            raise ValueError(
                f"stage {i} has its class token or registers on the clip, so it reduces over all "
                "steps, which then end: give it a pool"
            )
        if reduced and spec["reduce"]:
            raise ValueError(f"stage {i} reduces tokens that {reduced} has reduced already")
        reduced = reduced or spec["reduce"]
        # A merging acts after a layer's attention, so its own first layer still sees the grid;
        # what is forbidden after a reduction is simply forbidden in its whole stage.
        _check_mixers(spec, model, fields, layout, (t, y, x), reduced, new, stage=i)
        lengths = {"t": (t,), "s": (y, x)}
        normed = bool(spec["pool"] and spec["depth"] and POOLS[spec["pool"]].normed)
        flat = layout.extra == "ts" and (spec["pool"] == "cls" or spec["reduce"])
        planned.append(
            {
                "depth": spec["depth"],
                "mixers": tuple(spec["mixers"]),
                "norm": normed if spec["norm"] is None else spec["norm"],
                "pool": spec["pool"],
                "pool_axes": "s" if flat else pool_axes,
                "reduce": spec["reduce"],
                "layout": layout,
                "lengths": sum((lengths[a] for a in new), ()),
                "position_axes": new,
                "position": model.position,
                "first_layer": layer,
                "total_layers": total,
                "fields": fields,
                "mlp_dim": spec.get("mlp_dim", model.mlp_dim),
                "activation": model.activation,
                "drop_path": model.drop_path,
                "dropout": model.dropout,
                "scan": model.scan,
                "remat": model.remat,
            }
        )
        layer += spec["depth"]
        if spec["reduce"]:
            y, x = 1, _places_left(spec, layout, (t, y, x), model, stage=i)
            t = 1 if layout.extra == "ts" else t
        if spec["pool"]:
            left = "".join(a for a in left if a not in pool_axes)
            t = 1 if "t" in pool_axes else t
            y, x = (1, 1) if "s" in pool_axes else (y, x)
            reduced = "" if "s" in pool_axes else reduced
    if left:
        raise ValueError('the last stage must pool: give it pool="mean", "max" or "cls"')
    return planned


def _attention_fields(model: Any, spec: dict) -> AttentionFields:
    heads = spec.get("heads", model.heads)
    return AttentionFields(
        heads=heads,
        kv_heads=model.kv_heads or heads,
        kernel=model.kernel,
        qkv_bias=spec.get("qkv_bias", model.qkv_bias),
        qk_norm=model.qk_norm,
        rope=spec.get("rope", model.rope),
        soft_cap=model.soft_cap,
        attention_dropout=model.attention_dropout,
        norm_epsilon=model.norm_epsilon,
        dtype=jnp.dtype(model.dtype),
    )


def _stage_specs(model: Any) -> tuple[dict, ...]:
    if model.stages:
        specs = tuple(dict(stage) for stage in model.stages)
        may = (*OPTIONAL_KEYS, *OWN_FIELDS)
        for spec in specs:
            if set(spec) - set(may) != set(STAGE_KEYS):
                raise ValueError(
                    f"stage {spec} must have the keys {sorted(STAGE_KEYS)}, may have "
                    f"{', '.join(map(repr, may))}, and no others"
                )
    elif model.family in FAMILIES:
        specs = FAMILIES[model.family](model.depth, model.temporal_depth, model.readout)
    elif model.family in PATTERNS:
        specs = _one_stage(model.family)(model.depth, model.temporal_depth, model.readout)
    else:
        raise ValueError(
            f"unknown family {model.family!r}; known: {', '.join(sorted(FAMILIES))}, "
            f"or a pattern for every block: {', '.join(sorted(PATTERNS))}"
        )
    specs = tuple({**OPTIONAL_KEYS, **spec} for spec in specs)
    for spec in specs:
        if isinstance(spec["mixers"], str):
            raise ValueError(f"mixers={spec['mixers']!r} must be a list: [{spec['mixers']!r}]")
        if spec["depth"] and not spec["mixers"]:
            raise ValueError(f"stage {spec} has layers and no mixers; name one, or set depth=0")
        if spec["pool"]:
            POOLS[spec["pool"]]  # raises for an unknown name
        least = 1 if spec["pool"] == "cls" or spec["mixers"] else 0
        if type(spec["depth"]) is not int or spec["depth"] < least:
            raise ValueError(f"depth={spec['depth']!r} of stage {spec} must be at least {least}")
        heads = spec.get("heads", model.heads)
        if type(heads) is not int or heads < 1 or model.width % heads:
            raise ValueError(f"width={model.width} is not a multiple of {heads=} of stage {spec}")
        ROTATIONS[spec.get("rope", model.rope)]  # raises for an unknown name
    return specs


def _check_mixers(spec, model, fields, layout, grid, reduced, new, *, stage: int) -> None:
    """ValueError where a pattern can't work on this stage's grid, with these switches or under
    this kernel."""
    channels = model.width // fields.heads
    kernel = KERNELS[fields.kernel]
    merging = reduced and REDUCTIONS[reduced].each_layer
    names = []
    for text in spec["mixers"]:
        pattern = PATTERNS[text]
        names.append(pattern.name)
        for what, heads in (("heads", fields.heads), ("kv_heads", fields.kv_heads)):
            if heads % pattern.heads_multiple:
                raise ValueError(
                    f"{pattern.name} needs {what} in multiples of {pattern.heads_multiple}, "
                    f"not {heads}"
                )
        if "values" in pattern.needs and fields.kv_heads != fields.heads:
            raise ValueError(f"{pattern.name} takes no kv_heads; leave it unset")
        pattern.check(*grid, **pattern.options)
        if reduced:
            follows = pattern.axes == "t" or pattern.follows_places
            if "space" in pattern.needs or (follows and not REDUCTIONS[reduced].slots):
                raise ValueError(
                    f"stage {stage} mixes by {pattern.name!r}, which needs the places of a step "
                    f"where they were, after {reduced}; use 'joint' or 'space' there"
                )
        if kernel.over_devices and not pattern.over_devices:
            raise ValueError(
                f"kernel {kernel.name!r} can't compute pattern {pattern.name!r}: its sets have one "
                'query, which can\'t be split over devices; use kernel="chunked"'
            )
        demand = Demand(
            channels=channels + (EXTRA if merging else 0),
            dtype=model.dtype,
            bias="bias" in pattern.asks,
            mask="mask" in pattern.asks,
            soft_cap=fields.soft_cap is not None,
            dropout=fields.attention_dropout > 0,
        )
        kernel.check(demand, pattern=pattern.name)
    if len(set(names)) < len(names):
        raise ValueError(f"a pattern occurs twice in one block: {spec['mixers']}; use a stage more")
    if reduced:
        _check_reduction(spec, model, fields, reduced, new, stage=stage)
    turns = fields.rope != "none" and spec["mixers"]
    if turns and (channels % 2 or not rotated_channels(channels)):
        raise ValueError(
            f"rope={fields.rope!r} turns pairs of channels along three axes and a head has "
            f"{channels}; use an even number of at least 6 (width / heads)"
        )


def _check_reduction(spec, model, fields, reduced, new, *, stage: int) -> None:
    merging = REDUCTIONS[reduced].each_layer
    if fields.rope != "none":
        raise ValueError(f"rope needs every token's place, and {reduced} moves tokens")
    if spec["reduce"] and not spec["mixers"]:
        raise ValueError(f"stage {stage} reduces tokens and has no layers that would use them")
    if "s" in new and not spec["reduce"]:
        raise ValueError(f"stage {stage} would put positions on places that {reduced} has reduced")
    if spec["reduce"] and merging and not spec["pool"]:
        raise ValueError(
            f"stage {stage} merges tokens, and their sizes end with it: give it a pool, and its "
            "layers to one stage"
        )
    if spec["reduce"] and merging and model.scan:
        raise ValueError(f"{reduced} changes the shape from layer to layer; use scan=False")
    if spec["reduce"] and merging and model.soft_cap is not None:
        raise ValueError(f"{reduced} adds to scores what soft_cap would bend; use one of them")


def _places_left(spec, layout: Layout, grid, model: Any, *, stage: int) -> int:
    places = grid[1] * grid[2] * (grid[0] if layout.extra == "ts" else 1)
    reduction = REDUCTIONS[spec["reduce"]]
    try:
        return reduction.left(places, spec["depth"] - 1, **reduction.options)
    except ValueError as error:
        raise ValueError(f"stage {stage}: {error}") from None


def _layout(spec: dict, pool_axes: str, left: str, model: Any, *, steps: int, space) -> Layout:
    """Where a stage has its class token and registers, if it has any."""
    mixers = [PATTERNS[name] for name in spec["mixers"]]
    cls = spec["pool"] == "cls"
    registers = model.registers if mixers else 0
    if not cls and not registers:
        return Layout(steps, space)
    tied = any(p.tied_class_token for p in mixers)
    layout = {"class_token": cls, "registers": registers, "steps": steps, "space": space}
    others = [p for p in mixers if not p.tied_class_token]
    if tied and others and all(p.class_token and p.axes == "s" for p in others):
        return Layout(**layout, extra="s", tied=True)
    fits = len(mixers) == 1 and mixers[0].class_token
    name = "these stages" if model.stages else f"family {model.family!r}"
    if cls and not (fits and mixers[0].axes == pool_axes):
        raise ValueError(
            f'{name} can have no class token: a stage with pool "cls" needs a single pattern '
            f"that takes one and mixes all it pools, not {tuple(spec['mixers'])} over "
            f'{pool_axes or "nothing"}; use readout="mean" or "max"'
        )
    if not fits or (mixers[0].axes == "t" and "s" in left):
        raise ValueError(
            f"{name} can have no {'class token' if cls else 'registers'}: they need a stage of a "
            f"single pattern that takes them, not {tuple(spec['mixers'])}; use "
            + ('readout="mean" or "max"' if cls else "registers=0")
        )
    return Layout(**layout, extra=mixers[0].axes)
