"""What training knows of a network: a model, or one that contains a model."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

from vivit.model.config import ModelConfig


@runtime_checkable
class Network(Protocol):
    """A Flax module. config: the model's."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def init(self) -> Callable[..., Any]: ...
    @property
    def apply(self) -> Callable[..., Any]: ...
    @property
    def clone(self) -> Callable[..., Any]: ...

    def example(self) -> tuple[Array, ...]:
        """Returns what `init` and `apply` take, of one clip."""
        ...

    def with_settings(self, **changes: Any) -> Any:
        """Returns the network of a model of the same settings but for `changes`."""
        ...
