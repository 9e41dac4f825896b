"""What the HuggingFace sources have in common: PyTorch's layouts and transformers' configs.

Files that transformers 4 wrote have other names than models have in memory in transformers 5
("attention.attention.query" and "attention.q_proj"); tables match both.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vivit.pretrained.files import Archive, Arrays
from vivit.pretrained.table import Rule

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
    return lambda archive: archive.config.get("model_type") in model_types


def transposed(weight: np.ndarray) -> np.ndarray:
    """A linear layer's weight [out, in] as a kernel [in, out]."""
    return weight.T


def patches(weight: np.ndarray) -> np.ndarray:
    """A convolution's weight [D, C, (t,) h, w] as a kernel [t, h, w, C, D]."""
    weight = weight if weight.ndim == 5 else weight[:, :, None]
    return weight.transpose(2, 3, 4, 1, 0)


def to_heads(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A projection's weight [h·k, D] or bias [h·k] as a kernel [D, h, k] or bias [h, k]."""
    return lambda array: array.T.reshape(*array.shape[1:], heads, -1)


def from_heads(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """An output projection's weight [D, h·k] as a kernel [h, k, D]."""
    return lambda weight: weight.T.reshape(heads, -1, weight.shape[0])


def norm_rules(name: str, path: str, plus: float = 0.0) -> list[Rule]:
    """plus: added to the weights, by models that multiply by 1 + weight."""
    add = (lambda weight: weight.astype(np.float32) + np.float32(plus)) if plus else None
    return [Rule(rf"{name}\.weight", f"{path}/scale", add), Rule(rf"{name}\.bias", f"{path}/bias")]


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
    """named: "query", "key" or "value" -> the pattern of that projection's name. out: that of the
    output projection, "" for none."""
    rules = out_rules(out, f"{path}/out", heads) if out else []
    for part in ("query", "key", "value"):
        rules += [
            Rule(rf"{named(part)}\.weight", f"{path}/{part}/kernel", to_heads(heads)),
            Rule(rf"{named(part)}\.bias", f"{path}/{part}/bias", to_heads(heads)),
        ]
    return rules


def get(config: Mapping[str, Any], name: str, kind: type | tuple = int) -> Any:
    """A value of config.json. ValueError where it is missing or of another type."""
    if name not in config:
        raise ValueError(f"config.json has no {name!r}; it must be the config.json of the weights")
    if not isinstance(config[name], kind):
        raise ValueError(f"config.json has {name}={config[name]!r}, which can't be")
    return config[name]


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """width, heads, mlp_dim, activation and norm_epsilon, by transformers' usual names."""
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
    }


def pair(config: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Height and width of a size that may be one number for both."""
    value = get(config, name, (int, list, tuple))
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return height, width


def labels(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Names of the classes, or () where they are only numbered."""
    names = {str(key): name for key, name in (config.get("id2label") or {}).items()}
    if set(names) != {str(i) for i in range(classes)}:
        return ()
    listed = tuple(str(names[str(i)]) for i in range(classes))
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(listed)) else listed


def pixels(archive: Archive, mean: Any, std: Any) -> dict[str, tuple[float, ...]]:
    """The normalisation in the folder's preprocessor_config.json, or else the published one."""
    processor = archive.processor
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean", mean), processor.get("image_std", std)
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = processor.get("rescale_factor", 1 / 255)
    if abs(scale * 255 - 1) > 1e-6 or not processor.get("do_rescale", True):
        raise ValueError(f"preprocessor_config.json has rescale_factor={scale}; 1/255 is known")
    return {"pixel_mean": tuple(map(float, mean)), "pixel_std": tuple(map(float, std))}


def head_classes(arrays: Arrays) -> int:
    return arrays["classifier.weight"].shape[0] if "classifier.weight" in arrays else 0


HEAD = dense_rules("classifier", "head")
