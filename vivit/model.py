"""ViViT: a tubelet embedding, a list of stages and a readout; all families are lists of stages.

model = vivit.build(config.model)
logits = model.apply({"params": params}, clips)
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vivit.attention import KERNELS
from vivit.attention.rotary import ROTATIONS
from vivit.axes import Clips, Logits
from vivit.encoder import REMAT, Stage
from vivit.layers import ACTIVATIONS, POSITIONS, SAMPLERS, Tubelet
from vivit.plan import plan_stages
from vivit.pools import POOLS
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


class ViViT(nn.Module):
    """A video transformer; `build` makes and checks one. Clips [B, F, H, W, C] -> logits.

    Clips are uint8, or floats in [-1, 1]. Fields (the schema of `config.model`):

    classes: of the head; 0 for none: the model then gives its features.
    family: a name of FAMILIES, or of a pattern: then every block has that pattern.
        A pattern may have options: "window(4, 7, 7)".
    stages: instead of a family: mappings with depth, mixers (names of patterns), pool ("", or
        a name of POOLS: over the axes that the stage mixes, or in the last stage all that is left)
        and, where tokens are reduced, reduce: a name of REDUCTIONS, like "token_learner(8)". A
        stage may have its own heads, mlp_dim, rope and qkv_bias, and norm: whether one follows.
    size: a name of SIZES, with or without a tubelet: "B", or "B/16x2" (16 pixels, 2 frames).
        width, depth, heads, mlp_dim and tubelet (time, height, width) are its, where None.
    temporal_depth: layers of the factorised encoder's second stage.
    embedding: "tubelet" or "uniform_frames"; position: a name of POSITIONS. An axis gets its
        positions in the first stage that mixes it.
    readout: a name of POOLS: "cls", "mean", "max", "attentive", ...
    pre_logits: width of a dense layer with tanh before the head; None for none.
    pixel_mean, pixel_std: of red, green and blue; uint8 clips become (x / 255 - mean) / std.
    kernel: a name of KERNELS. dtype: of the computation; parameters and the head are float32.
    kv_heads: heads of keys and values, a divisor of `heads`; 2305.13245. None for as many.
    qkv_bias: which of the projections to q, k and v have a bias, by their letters.
    qk_norm: layer norm of queries and keys; 2302.05442. rope: a name of ROTATIONS: "3d" turns them
        with their places, beside or, with position="none", instead of position embeddings;
        2506.09985.
    registers: further tokens of every stage that nothing reads; 2309.16588.
    soft_cap: scores s become cap·tanh(s / cap); 2408.00118. None for none.
    activation: of the MLPs, "gelu_tanh" (ViViT's) or "gelu" (exact, TimeSformer's).
    norm_epsilon: of all layer norms but that of the readout mean_then_norm.
    attention_dropout: of attention weights. dropout: of tokens and in the MLPs.
    drop_path: the last layer's rate; it grows linearly from 0 through all the layers.
    scan: one compiled block for all layers of a stage. remat: a name of REMAT:
        "full", "dots" (keeps matrix products), "attention" (keeps what chunked attention needs).
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
    pre_logits: int | None = None
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    kernel: str = "dense"
    kv_heads: int | None = None
    qkv_bias: str = "qkv"
    qk_norm: bool = False
    rope: str = "none"
    registers: int = 0
    soft_cap: float | None = None
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    drop_path: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = False
    remat: str = "none"

    def setup(self) -> None:
        self.tokens = Tubelet(
            self.tubelet,
            self.width,
            self.embedding,
            jnp.dtype(self.dtype),
            self.pixel_mean,
            self.pixel_std,
            name="tubelet",
        )
        self.encoder = [
            Stage(**fields, name=f"stage_{i}") for i, fields in enumerate(plan_stages(self))
        ]
        if self.pre_logits:
            self.hidden = nn.Dense(self.pre_logits, dtype=jnp.float32, name="pre_logits")
        if self.classes:
            self.head = nn.Dense(
                self.classes, kernel_init=nn.initializers.zeros, dtype=jnp.float32, name="head"
            )

    def __call__(self, clips: Clips) -> Logits:
        features = self.features(clips)
        return self.head(features) if self.classes else features

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
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return nn.tanh(self.hidden(x)) if self.pre_logits else x

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubelet steps, rows and columns of the token grid; S is rows times columns."""
        return tuple(n // size for n, size in zip(self.clip, self.tubelet, strict=True))


def build(model_config: Mapping[str, Any] | ConfigDict) -> ViViT:
    """The model of a config, checked: ValueError says what is wrong and what would do."""
    given = {name: as_tuples(value) for name, value in dict(model_config).items()}
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
    if model.classes < 0:
        raise ValueError(f"classes={model.classes} must be at least 1, or 0 for no head")
    numbers = {n: getattr(model, n) for n in ("width", "depth", "heads", "mlp_dim", "pre_logits")}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if model.norm_epsilon <= 0:
        raise ValueError(f"norm_epsilon={model.norm_epsilon} must be above 0")
    if set(model.qkv_bias) - set("qkv"):
        raise ValueError(f'qkv_bias={model.qkv_bias!r} must be letters of "qkv", or "" for none')
    for name in ("pixel_mean", "pixel_std"):
        if len(getattr(model, name)) != 3:
            raise ValueError(f"{name}={getattr(model, name)} must be three numbers: R, G and B")
    if min(model.pixel_std) <= 0:
        raise ValueError(f"pixel_std={model.pixel_std} must be above 0")
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
    if model.kv_heads is not None and (model.kv_heads < 1 or model.heads % model.kv_heads):
        divisors = [n for n in range(1, model.heads + 1) if model.heads % n == 0]
        raise ValueError(
            f"heads={model.heads} is not a multiple of kv_heads={model.kv_heads}; "
            f"use one of {divisors}"
        )
    if model.registers < 0:
        raise ValueError(f"registers={model.registers} must be 0 or more")
    if model.soft_cap is not None and model.soft_cap <= 0:
        raise ValueError(f"soft_cap={model.soft_cap} must be above 0, or None for none")
    for rate in ("drop_path", "dropout", "attention_dropout"):
        if not 0 <= getattr(model, rate) < 1:
            raise ValueError(f"{rate}={getattr(model, rate)} is not in [0, 1)")
    if model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f'dtype={model.dtype!r} must be "float32" or "bfloat16"')
    for registry, name in (
        (KERNELS, model.kernel),
        (ACTIVATIONS, model.activation),
        (SAMPLERS, model.embedding),
        (POSITIONS, model.position),
        (POOLS, model.readout),
        (ROTATIONS, model.rope),
        (REMAT, model.remat),
    ):
        registry[name]  # raises for an unknown name


def as_tuples(value: Any) -> Any:
    """Lists and mappings, as JSON gives them, become tuples: Flax fields must be hashable."""
    if isinstance(value, (list, tuple)):
        return tuple(as_tuples(item) for item in value)
    if hasattr(value, "items"):
        return tuple((key, as_tuples(item)) for key, item in value.items())
    return value


def _check_types(given: Mapping[str, Any], fields: Mapping[str, dataclasses.Field]) -> None:
    examples = {"clip": (16, 32, 32), "tubelet": (2, 16, 16), "classes": 400, "soft_cap": 50.0}
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
