"""What the HuggingFace sources have in common: PyTorch's layouts and transformers' configs.

Files that transformers 4 wrote have other names than models have in memory in transformers 5
("attention.attention.query" and "attention.q_proj"); tables match both.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vivit.pretrained.files import Archive, Arrays
from vivit.pretrained.sources import Rule, SourceModel

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def is_model(*model_types: str) -> Callable[[Archive], bool]:
    """Returns a function that recognises folders by the model_type of their config.json."""
    return lambda archive: archive.config.get("model_type") in model_types


def transposed(weight: np.ndarray) -> np.ndarray:
    """Returns the kernel [in, out] of a linear layer's weight [out, in]."""
    return weight.T


def patches(weight: np.ndarray) -> np.ndarray:
    """Returns the kernel [t, h, w, C, D] of a convolution's weight [D, C, (t,) h, w]."""
    weight = weight if weight.ndim == 5 else weight[:, :, None]
    return weight.transpose(2, 3, 4, 1, 0)


def to_heads(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from a projection's weight [h·k, D] or bias [h·k] to a kernel [D, h, k] or
    bias [h, k]."""
    return lambda array: array.T.reshape(*array.shape[1:], heads, -1)


def from_heads(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from an output projection's weight [D, h·k] to a kernel [h, k, D]."""
    return lambda weight: weight.T.reshape(heads, -1, weight.shape[0])


def norm_rules(name: str, path: str, plus: float = 0.0) -> list[Rule]:
    """Returns the rules of a layer norm. plus: added to the weights of models that multiply by
    1 + weight."""
    add = (lambda weight: weight.astype(np.float32) + np.float32(plus)) if plus else None
    return [Rule(rf"{name}\.weight", f"{path}/scale", add), Rule(rf"{name}\.bias", f"{path}/bias")]


def patch_rules(name: str) -> list[Rule]:
    """Returns the rules of the convolution that makes patches or tubelets."""
    return [
        Rule(rf"{name}\.weight", "tubelet/kernel", patches),
        Rule(rf"{name}\.bias", "tubelet/bias"),
    ]


def dense_rules(name: str, path: str) -> list[Rule]:
    return [
        Rule(rf"{name}\.weight", f"{path}/kernel", transposed),
        Rule(rf"{name}\.bias", f"{path}/bias"),
    ]


def out_rules(name: str, path: str, heads: int) -> list[Rule]:
    return [
        Rule(rf"{name}\.weight", f"{path}/kernel", from_heads(heads)),
        Rule(rf"{name}\.bias", f"{path}/bias"),
    ]


def attention_rules(
    named: Callable[[str], str], path: str, heads: int, *, out: str = ""
) -> list[Rule]:
    """Returns the rules of an attention.

    named: "query", "key" or "value" -> the regex of that projection's name. out: the regex of the
    output projection's; "" for none.
    """
    rules = out_rules(out, f"{path}/out", heads) if out else []
    for part in ("query", "key", "value"):
        rules += [
            Rule(rf"{named(part)}\.weight", f"{path}/{part}/kernel", to_heads(heads)),
            Rule(rf"{named(part)}\.bias", f"{path}/{part}/bias", to_heads(heads)),
        ]
    return rules


VIT_MLP = (r"(?:intermediate\.dense|mlp\.fc1)", r"(?:output\.dense|mlp\.fc2)")
VIT_OUT = r"attention\.(?:output\.dense|o_proj)"


def vit_attention_rules(layer: str, path: str, heads: int) -> list[Rule]:
    """Returns the rules of an attention in the names of transformers' ViT, ViViT and DINOv2."""
    named = lambda part: rf"{layer}\.attention\.(?:attention\.{part}|{part[0]}_proj)"
    return attention_rules(named, path, heads, out=rf"{layer}\.{VIT_OUT}")


def fused_rules(weight: str, bias: str, path: str, heads: int) -> list[Rule]:
    """Returns the rules of query, key and value in one weight [3·h·k, D] and one bias, which have
    these names."""

    def split(kind: str) -> Callable[[np.ndarray], Arrays]:
        def transform(array: np.ndarray) -> Arrays:
            parts = zip(("query", "key", "value"), np.split(array, 3), strict=True)
            return {f"{part}/{kind}": to_heads(heads)(third) for part, third in parts}

        return transform

    return [Rule(weight, f"{path}/", split("kernel")), Rule(bias, f"{path}/", split("bias"))]


def fold_layer_scale(
    model: SourceModel, arrays: Arrays, layer: str, scale: str, output: str
) -> None:
    """Multiplies the weight and bias of each `output` layer by its LayerScale (2103.17239), which
    is taken out of the arrays. layer, scale, output: regexes of parts of names."""
    scales = [name for name in arrays if re.fullmatch(rf"{layer}\.{scale}", name)]
    for name in scales:
        (start,) = re.findall(rf"(.*\.){scale}", name)
        factor = arrays.pop(name).astype(np.float32)
        for folded in [n for n in arrays if n.startswith(start)]:
            if re.fullmatch(rf"{output}\.(?:weight|bias)", folded.removeprefix(start)):
                array = arrays[folded].astype(np.float32)
                arrays[folded] = array * factor.reshape(-1, *[1] * (array.ndim - 1))
        model.dropped[name] = "folded into the layer before it"


def block_rules(
    layer: str,
    path: str,
    pattern: str,
    *,
    norms: tuple[str, str] = ("layernorm_before", "layernorm_after"),
    mlp: tuple[str, str] = (r"intermediate\.dense", r"output\.dense"),
    plus: float = 0.0,
) -> list[Rule]:
    """Returns the rules of a block but for its attention.

    norms: regexes of the norms before the attention, of `pattern`, and before the MLP. mlp: of its
    two layers. plus: added to the norms' weights.
    """
    return [
        *norm_rules(rf"{layer}\.{norms[0]}", f"{path}/norm_{pattern}", plus),
        *norm_rules(rf"{layer}\.{norms[1]}", f"{path}/norm_mlp", plus),
        *dense_rules(rf"{layer}\.{mlp[0]}", f"{path}/mlp/up"),
        *dense_rules(rf"{layer}\.{mlp[1]}", f"{path}/mlp/down"),
    ]


def get(config: Mapping[str, Any], name: str, kind: type | tuple = int) -> Any:
    """Returns a value of config.json. Raises ValueError if it is missing or of another type."""
    if name not in config:
        raise ValueError(f"config.json has no {name!r}; it must be the config.json of the weights")
    if not isinstance(config[name], kind):
        raise ValueError(f"config.json has {name}={config[name]!r}, which is not valid")
    return config[name]


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns width, heads, mlp_dim, activation, norm_epsilon and qkv_bias, from transformers'
    usual names."""
    names = {
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
    }
    act = get(config, "hidden_act", str)
    if act not in ACTIVATIONS:
        raise ValueError(f"config.json has hidden_act={act!r}; known: {', '.join(ACTIVATIONS)}")
    return {
        **{ours: get(config, theirs) for ours, theirs in names.items()},
        "activation": ACTIVATIONS[act],
        "norm_epsilon": float(get(config, "layer_norm_eps", float)),
        "qkv_bias": "qkv" if config.get("qkv_bias", True) else "",
    }


def pair(config: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Returns height and width of a size that may be one number for both."""
    value = get(config, name, (int, list, tuple))
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return height, width


def labels(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Returns the names of the classes, or () where they are only numbered."""
    names = {str(key): name for key, name in (config.get("id2label") or {}).items()}
    if set(names) != {str(i) for i in range(classes)}:
        return ()
    listed = tuple(str(names[str(i)]) for i in range(classes))
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(listed)) else listed


def pixels(archive: Archive, mean: Any, std: Any) -> dict[str, Any]:
    """Returns the normalisation in the folder's preprocessor_config.json, or the published one."""
    processor = archive.processor
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean", mean), processor.get("image_std", std)
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = processor.get("rescale_factor", 1 / 255)
    if abs(scale * 255 - 1) > 1e-6 or not processor.get("do_rescale", True):
        raise ValueError(
            f"preprocessor_config.json has rescale_factor={scale}; only 1/255 is supported"
        )
    return {"pixel_mean": tuple(map(float, mean)), "pixel_std": tuple(map(float, std))}


def source_model(
    archive: Archive, config: Mapping[str, Any], notes: Sequence[str] = (), **fields: Any
) -> SourceModel:
    """Returns a model without parameters yet, of these fields and the classes of its classifier."""
    classifier = archive.arrays.get("classifier.weight")
    classes = 0 if classifier is None else classifier.shape[0]
    model_config = {**fields, "classes": classes}
    return SourceModel(model_config, labels=labels(config, classes), notes=list(notes))


HEAD = dense_rules("classifier", "head")
