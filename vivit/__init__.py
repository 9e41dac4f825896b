"""Spatio-temporal video transformers in JAX: train them, sweep them, see where they look."""

from typing import TYPE_CHECKING

from vivit.lazy import lazy

if TYPE_CHECKING:
    from vivit.model import ViViT, build

__version__ = "0.2.0"
__all__ = ["ViViT", "build"]
__getattr__ = lazy(__name__, dict.fromkeys(__all__, "model"))
