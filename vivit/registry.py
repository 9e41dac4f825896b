"""Names that a config may use, and what they stand for."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """A table name -> item. A name taken twice raises; an unknown name lists the known."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Item] = {}

    def add(self, name: str, item: Item) -> None:
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
        self._items[name] = item

    def register(self, name: str) -> Callable[[Item], Item]:
        """A decorator that adds what it decorates under `name`."""

        def add(item: Item) -> Item:
            self.add(name, item)
            return item

        return add

    def __getitem__(self, name: str) -> Item:
        if name not in self._items:
            known = ", ".join(sorted(self._items))
            raise ValueError(f"unknown {self.kind} {name!r}; known: {known}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
