"""Video transformers in Flax: a tubelet embedding, a list of stages and a readout.

The names load JAX when they are first used, so that configs can be read without it.
"""

from typing import TYPE_CHECKING

from vivit.lazy import lazy

if TYPE_CHECKING:
    from vivit.model.params import stack_layers, unstack_layers
    from vivit.model.vivit import ViViT, build

_HOMES = {
    "ViViT": "vivit",
    "build": "vivit",
    "stack_layers": "params",
    "unstack_layers": "params",
}
__all__ = ["ViViT", "build", "stack_layers", "unstack_layers"]
__getattr__ = lazy(__name__, _HOMES)
