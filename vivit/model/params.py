"""Parameters of unrolled models as those of scanned ones, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters of an unrolled model (stage_i/layer_j) as those of a scanned one."""

    def convert(stage: Mapping[str, Any]) -> dict[str, Any]:
        layers = sorted((n for n in stage if n.startswith("layer_")), key=lambda n: int(n[6:]))
        rest = {name: value for name, value in stage.items() if name not in layers}
        if not layers:
            return rest
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(stage[n] for n in layers))
        return {**rest, "layers": stacked}

    return {n: convert(v) if _has_layers(n) else v for n, v in params.items()}


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters of a scanned model as those of an unrolled one; inverse of
    `stack_layers`."""

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

    return {n: convert(v) if _has_layers(n) else v for n, v in params.items()}


def _has_layers(name: str) -> bool:
    """Returns whether parameters of this name are those of a stage, or of a decoder."""
    return name.startswith("stage_") or name == "decoder"
