"""Parameters of scanned and unrolled models."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

LAYER = re.compile(r"layer_\d+")


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters of an unrolled model as those of the scanned one.

    Stages and decoders are found wherever they are: they are what has layers.
    """

    def convert(stage: Mapping[str, Any]) -> dict[str, Any]:
        layers = sorted(filter(LAYER.fullmatch, stage), key=lambda name: int(name[6:]))
        rest = {name: value for name, value in stage.items() if name not in layers}
        if not layers:
            return rest
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(stage[n] for n in layers))
        return {**rest, "layers": stacked}

    return _everywhere(convert, params)


def of_layer(tree: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    """Returns the part of one layer in a tree of a stage, scanned or not."""
    if "layers" in tree:  # every array has a leading axis of layers
        return jax.tree.map(lambda x: x[layer], tree["layers"])
    return tree[f"layer_{layer}"]


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

    return _everywhere(convert, params)


def _everywhere(convert: Callable[[Any], dict[str, Any]], tree: Mapping[str, Any]) -> Any:
    """Returns a tree with every mapping converted, from the outside in."""
    return {
        name: _everywhere(convert, value) if isinstance(value, Mapping) else value
        for name, value in convert(tree).items()
    }
