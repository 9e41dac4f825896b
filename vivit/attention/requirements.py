"""What an attention needs of its kernel."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

# Keyword arguments that a call of a kernel may have, by the names of dense's arguments.
CALL_OPTIONS = ("bias", "mask", "soft_cap", "dropout")


@dataclass(frozen=True)
class KernelRequirements:
    """What an attention needs of its kernel; known when a model is built.

    channels: per head of queries and keys. value_channels: per head of values, None for as many.
    The others: which of CALL_OPTIONS the calls have.
    """

    channels: int
    dtype: str
    value_channels: int | None = None
    bias: bool = False
    mask: bool = False
    soft_cap: bool = False
    dropout: bool = False

    @classmethod
    def of_call(
        cls, q: Float[Array, "*sets n h k"], v: Float[Array, "*sets m g c"], **options: Any
    ) -> "KernelRequirements":
        """Returns the requirements of one call; an option that is None does not count."""
        given = {name: True for name, value in options.items() if value is not None}
        return cls(q.shape[-1], str(q.dtype), v.shape[-1], **given)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the required options, in the order of CALL_OPTIONS."""
        return tuple(name for name in CALL_OPTIONS if getattr(self, name))
