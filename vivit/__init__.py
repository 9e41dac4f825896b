"""Spatio-temporal video transformers in JAX: train them, sweep them, see where they look."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vivit.model import ViViT, build

__version__ = "0.2.0"
__all__ = ["ViViT", "build"]


def __getattr__(name: str):
    # Looked up when first used: processes that decode video must not load JAX.
    if name in __all__:
        return getattr(importlib.import_module("vivit.model"), name)
    raise AttributeError(f"module 'vivit' has no attribute {name!r}")
