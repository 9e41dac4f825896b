"""Video transformers in Flax: a tubelet embedding, a list of stages and a readout.

The names load JAX when they are first used, so that configs can be read without it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vivit.model.params import stack_layers, unstack_layers
    from vivit.model.vivit import ViViT, build

_HOMES = {
    "ViViT": "vivit.model.vivit",
    "build": "vivit.model.vivit",
    "stack_layers": "vivit.model.params",
    "unstack_layers": "vivit.model.params",
}
__all__ = ["ViViT", "build", "stack_layers", "unstack_layers"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vivit.model' has no attribute {name!r}")
