"""ViViT: a tubelet embedding, a list of stages and a readout; all families are lists of stages.

model = vivit.build(config.model)
logits = model.apply({"params": params}, clips)
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vivit.attention import KERNELS, PATTERNS
from vivit.axes import Clips, Logits
from vivit.layers import POOLS, POSITIONS, REMAT, SAMPLERS, Stage, Tubelet
from vivit.registry import Registry


class Size(NamedTuple):
    width: int
    depth: int
    heads: int
    mlp_dim: int


# ViT (2010.11929), table 1; Ti and S: DeiT (2012.12877), table 1.
SIZES: Registry[Size] = Registry("size")
SIZES.add("Ti", Size(192, 12, 3, 768))
SIZES.add("S", Size(384, 12, 6, 1536))
SIZES.add("B", Size(768, 12, 12, 3072))
SIZES.add("L", Size(1024, 24, 16, 4096))
SIZES.add("H", Size(1280, 32, 16, 5120))

# The stages of a family: (depth, temporal_depth, readout) -> mappings with depth, mixers and pool.
# The names and the stages are those of ViViT (2103.15691), sections 3.3 and 4.2.
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
FAMILIES.add("factorised_dot_product", _one_stage("split_heads"))  # model 4
FAMILIES.add(  # the baseline of table 2: each step on its own, then their mean
    "average_pool",
    lambda depth, temporal_depth, readout: (
        {"depth": depth, "mixers": ("space",), "pool": readout},
        {"depth": 0, "mixers": (), "pool": "mean"},
    ),
)


class ViViT(nn.Module):
    """A video transformer; `build` makes and checks one. Clips [B, F, H, W, C] -> logits.

    Clips are uint8, or floats in [-1, 1]. Fields (the schema of `config.model`):

    family: a name of FAMILIES, or of a pattern: then every block has that pattern.
    stages: instead of a family: mappings with depth, mixers (names of patterns) and pool ("", or
        a name of POOLS: over the axes that the stage mixes, or in the last stage all that is left).
    size: a name of SIZES, with or without a tubelet: "B", or "B/16x2" (16 pixels, 2 frames).
        width, depth, heads, mlp_dim and tubelet (time, height, width) are its, where None.
    temporal_depth: layers of the factorised encoder's second stage.
    embedding: "tubelet" or "uniform_frames"; position: a name of POSITIONS. An axis gets its
        positions in the first stage that mixes it.
    readout: "cls", "mean" or "max".
    kernel: a name of KERNELS. dtype: of the computation; parameters and the head are float32.
    drop_path: the last layer's rate; it grows linearly from 0 through all the layers.
    scan: one compiled block for all layers of a stage. remat: a name of REMAT.
    """

    clip: tuple[int, int, int]
    classes: int
    family: str = "factorised_encoder"
    stages: tuple[Any, ...] = ()
    size: str = ""
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_dim: int | None = None
    temporal_depth: int = 4
    tubelet: tuple[int, int, int] | None = None
    embedding: str = "tubelet"
    position: str = "learned"
    readout: str = "mean"
    kernel: str = "dense"
    drop_path: float = 0.0
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = False
    remat: str = "none"

    def setup(self) -> None:
        self.tokens = Tubelet(
            self.tubelet, self.width, self.embedding, jnp.dtype(self.dtype), name="tubelet"
        )
        self.encoder = [
            Stage(**fields, name=f"stage_{i}") for i, fields in enumerate(plan_stages(self))
        ]
        self.head = nn.Dense(
            self.classes, kernel_init=nn.initializers.zeros, dtype=jnp.float32, name="head"
        )

    def __call__(self, clips: Clips) -> Logits:
        return self.head(self.features(clips))

    def features(self, clips: Clips) -> Float[Array, "B D"]:
        """What the head sees ("pre-logits"): `model.apply(variables, clips, method="features")`."""
        expected = (*self.clip, 3)
        if clips.shape[1:] != expected:
            raise ValueError(
                f"clips of shape {clips.shape[1:]} for a model of {expected} (F, H, W, C); "
                f"set model.clip={clips.shape[1:4]} or sample clips of the model's size"
            )
        x = self.tokens(clips)  # [B, T, S, D]
        for stage in self.encoder:
            x = stage(x)
        return x.reshape(x.shape[0], -1).astype(jnp.float32)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubelet steps, rows and columns of the token grid; S is rows times columns."""
        return tuple(n // size for n, size in zip(self.clip, self.tubelet, strict=True))


def build(model_config: Mapping[str, Any] | ConfigDict) -> ViViT:
    """The model of a config, checked: ValueError says what is wrong and what would do."""
    given = {name: _plain(value) for name, value in dict(model_config).items()}
    fields = {f.name: f for f in dataclasses.fields(ViViT) if f.name not in ("parent", "name")}
    wrong = sorted(set(given) - set(fields))
    if wrong:
        raise ValueError(f"unknown model fields {wrong}; known: {', '.join(sorted(fields))}")
    missing = [name for name in ("clip", "classes") if name not in given]
    if missing:
        raise ValueError(f"model fields {missing} have no default; give them")
    _check_types(given, fields)
    given = _resolve_size(given)
    model = ViViT(**given)
    _check_shapes(model)
    plan_stages(model)
    return model


def plan_stages(model: ViViT) -> list[dict[str, Any]]:
    """The fields of every Stage of a model: what it mixes, pools, and where tokens are added."""
    specs = _stage_specs(model)
    t, y, x = model.grid
    lengths = {"t": (t,), "s": (y, x)}
    left = "ts"  # the axes not pooled yet
    unplaced = "ts"  # the axes that have no position embedding yet
    planned, layer = [], 0
    total = sum(spec["depth"] for spec in specs)
    for i, spec in enumerate(specs):
        axes = "".join(a for a in "ts" if any(a in PATTERNS[m].axes for m in spec["mixers"]))
        last = i == len(specs) - 1
        new = "".join(a for a in axes if a in unplaced)
        unplaced = "".join(a for a in unplaced if a not in new)
        pool_axes = left if last else "".join(a for a in axes if a in left)
        class_token = _class_token(spec, pool_axes, left, model)
        if class_token == "ts" and new not in ("", "ts"):
            raise ValueError(
                f"stage {i} puts a class token on the clip after a stage that mixed one axis; "
                'use pool="mean" or "max" there'
            )
        planned.append(
            {
                "depth": spec["depth"],
                "mixers": tuple(spec["mixers"]),
                "pool": spec["pool"],
                "pool_axes": pool_axes if class_token != "ts" else "s",
                "class_token": class_token,
                "lengths": sum((lengths[a] for a in new), ()),
                "position_axes": new if class_token != "ts" else "s",
                "first_layer": layer,
                "total_layers": total,
                "position": model.position,
                "heads": model.heads,
                "mlp_dim": model.mlp_dim,
                "kernel": model.kernel,
                "drop_path": model.drop_path,
                "dropout": model.dropout,
                "scan": model.scan,
                "remat": model.remat,
                "dtype": jnp.dtype(model.dtype),
            }
        )
        layer += spec["depth"]
        if spec["pool"]:
            left = "".join(a for a in left if a not in pool_axes)
            for axis in pool_axes:
                lengths[axis] = ()
    if left:
        raise ValueError('the last stage must pool: give it pool="mean", "max" or "cls"')
    return planned


def _stage_specs(model: ViViT) -> tuple[dict, ...]:
    if model.stages:
        specs = tuple(dict(stage) for stage in model.stages)
        known = {"depth", "mixers", "pool"}
        for spec in specs:
            if set(spec) != known:
                raise ValueError(f"stage {spec} must have the keys {sorted(known)} and no others")
    elif model.family in FAMILIES:
        specs = FAMILIES[model.family](model.depth, model.temporal_depth, model.readout)
    elif model.family in PATTERNS:
        specs = _one_stage(model.family)(model.depth, model.temporal_depth, model.readout)
    else:
        raise ValueError(
            f"unknown family {model.family!r}; known: {', '.join(sorted(FAMILIES))}, "
            f"or a pattern for every block: {', '.join(sorted(PATTERNS))}"
        )
    for spec in specs:
        for name in spec["mixers"]:
            multiple = PATTERNS[name].heads_multiple
            if model.heads % multiple:
                raise ValueError(
                    f"{name} needs heads in multiples of {multiple}, not {model.heads}"
                )
        if len(set(spec["mixers"])) < len(spec["mixers"]):
            raise ValueError(
                f"a pattern occurs twice in one block: {spec['mixers']}; use a stage more"
            )
        if spec["pool"]:
            POOLS[spec["pool"]]  # raises for an unknown name
        least = 1 if spec["pool"] == "cls" or spec["mixers"] else 0
        if type(spec["depth"]) is not int or spec["depth"] < least:
            raise ValueError(f"depth={spec['depth']!r} of stage {spec} must be at least {least}")
    return specs


def _class_token(spec: dict, pool_axes: str, left: str, model: ViViT) -> str:
    """The axes on which a stage has its class token, or "" for none."""
    if spec["pool"] != "cls":
        return ""
    mixers = [PATTERNS[name] for name in spec["mixers"]]
    fits = len(mixers) == 1 and mixers[0].class_token and mixers[0].axes == pool_axes
    if not fits or (pool_axes == "t" and "s" in left):
        name = "these stages" if model.stages else f"family {model.family!r}"
        raise ValueError(
            f'{name} can have no class token: a stage with pool "cls" needs a single pattern '
            f"that takes one and mixes all it pools, not {tuple(spec['mixers'])} over "
            f'{pool_axes or "nothing"}; use readout="mean" or "max"'
        )
    return pool_axes


def _resolve_size(given: dict[str, Any]) -> dict[str, Any]:
    """Fills width, depth, heads, mlp_dim and tubelet from `size`, where they are None."""
    name, _, patch = given.get("size", "").partition("/")
    from_size: dict[str, Any] = SIZES[name]._asdict() if name else {}
    if patch:
        match = re.fullmatch(r"(\d+)x(\d+)", patch)
        if not match:
            raise ValueError(f'size {given["size"]!r} is not like "B/16x2": 16 pixels, 2 frames')
        pixels, frames = int(match[1]), int(match[2])
        from_size["tubelet"] = (frames, pixels, pixels)
        if given.get("tubelet") not in (None, from_size["tubelet"]):
            raise ValueError(
                f"tubelet={given['tubelet']} contradicts size={given['size']!r}; "
                f"give the tubelet once: size={name!r} leaves it to model.tubelet"
            )
    needed = ("width", "depth", "heads", "mlp_dim", "tubelet")
    given = {**given, **{k: v for k, v in from_size.items() if given.get(k) is None}}
    missing = [name for name in needed if given.get(name) is None]
    if missing:
        known = ", ".join(SIZES)
        raise ValueError(
            f'model fields {missing} are not set; give them or a size ({known}, "B/16x2")'
        )
    return given


def _check_shapes(model: ViViT) -> None:
    numbers = {n: getattr(model, n) for n in ("classes", "width", "depth", "heads", "mlp_dim")}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    for name, limit in zip(("frames", "height", "width"), range(3), strict=True):
        length, size = model.clip[limit], model.tubelet[limit]
        if size < 1 or length < size or length % size:
            use = max(length // size, 1) * size if size > 0 else length
            raise ValueError(
                f"clip {name}={length} is not a multiple of the tubelet's {size}; use {use}"
            )
    if model.width % model.heads:
        raise ValueError(
            f"width={model.width} is not a multiple of heads={model.heads}; "
            f"use {model.width // model.heads * model.heads}"
        )
    if model.width % 2 and model.position.startswith("sinusoidal"):
        raise ValueError(f"width={model.width} must be even for {model.position} positions")
    for rate in ("drop_path", "dropout"):
        if not 0 <= getattr(model, rate) < 1:
            raise ValueError(f"{rate}={getattr(model, rate)} is not in [0, 1)")
    if model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f'dtype={model.dtype!r} must be "float32" or "bfloat16"')
    for registry, name in (
        (KERNELS, model.kernel),
        (SAMPLERS, model.embedding),
        (POSITIONS, model.position),
        (POOLS, model.readout),
        (REMAT, model.remat),
    ):
        registry[name]  # raises for an unknown name


def _plain(value: Any) -> Any:
    """Lists and mappings, as JSON gives them, become tuples: Flax fields must be hashable."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    if hasattr(value, "items"):
        return tuple((key, _plain(item)) for key, item in value.items())
    return value


def _check_types(given: Mapping[str, Any], fields: Mapping[str, dataclasses.Field]) -> None:
    examples = {"clip": (16, 32, 32), "tubelet": (2, 16, 16), "classes": 400}
    wrong = []
    for name, value in given.items():
        default = fields[name].default
        example = examples.get(name, 0 if default is None else default)
        if value is None and default is None:
            continue
        kinds = (int, float) if isinstance(example, float) else (type(example),)
        fits = isinstance(value, kinds) and isinstance(value, bool) == isinstance(example, bool)
        if name in ("clip", "tubelet"):
            fits = fits and len(value) == 3 and all(type(n) is int for n in value)
        if not fits:
            wrong.append(f"{name}={value!r} (like {example!r})")
    if wrong:
        raise ValueError("model fields of a wrong type: " + "; ".join(wrong))


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled model (stage_i/layer_j) as those of a scanned one."""

    def convert(stage: Mapping[str, Any]) -> dict[str, Any]:
        layers = sorted((n for n in stage if n.startswith("layer_")), key=lambda n: int(n[6:]))
        rest = {name: value for name, value in stage.items() if name not in layers}
        if not layers:
            return rest
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(stage[n] for n in layers))
        return {**rest, "layers": stacked}

    return {n: convert(v) if n.startswith("stage_") else v for n, v in params.items()}


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a scanned model as those of an unrolled one; the inverse of `stack_layers`."""

    def convert(stage: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in stage.items() if name != "layers"}
        if "layers" not in stage:
            return rest
        depth = jax.tree.leaves(stage["layers"])[0].shape[0]
        layers = {
            f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stage["layers"])
            for i in range(depth)
        }
        return {**rest, **layers}

    return {n: convert(v) if n.startswith("stage_") else v for n, v in params.items()}
