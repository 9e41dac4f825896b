"""What is asked of a kernel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Demand:
    """What a model will ask of its kernel; known when the model is built."""

    channels: int
    dtype: str
    bias: bool = False
    mask: bool = False
    soft_cap: bool = False
    dropout: bool = False

    @classmethod
    def of(cls, q: Any, options: Mapping[str, Any]) -> "Demand":
        """What one call asks, by its queries and options."""
        given = {name: True for name, value in options.items() if value is not None}
        return cls(q.shape[-1], str(q.dtype), **given)

    def options(self) -> list[str]:
        names = ("bias", "mask", "soft_cap", "dropout")
        return [name for name in names if getattr(self, name)]
