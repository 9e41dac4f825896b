"""Spatio-temporal video transformers in JAX: train them, sweep them, see where they look."""

from vivit.model import ViViT, build

__version__ = "0.1.0"
__all__ = ["ViViT", "build"]
