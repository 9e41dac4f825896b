"""Names that a config may use, and what they stand for."""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

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


class OptionRegistry(Registry[Item]):
    """A registry whose items have options: table["window(4, 7, 7)"] is `window` with its options
    set, in the item's field of that name."""

    def __init__(self, kind: str, *, field: str = "options") -> None:
        super().__init__(kind)
        self.field = field

    def __getitem__(self, name: str) -> Item:
        item: Any = super().__getitem__(_base(name))
        if "(" not in name:
            return item
        defaults = getattr(item, self.field)
        what = f"{self.kind.split()[-1]} {item.name!r}"
        return replace(item, **{self.field: {**defaults, **read_options(what, name, defaults)}})

    def __contains__(self, name: object) -> bool:
        return super().__contains__(_base(str(name)))


def _base(name: str) -> str:
    return name.partition("(")[0].strip()


def read_options(what: str, text: str, defaults: Mapping[str, int]) -> dict[str, int]:
    """The options of a name as a config writes it: "window(4, rows=5)" -> {steps: 4, rows: 5}.

    Options are integers of at least 1, named as in `defaults` and in its order where they have no
    name. ValueError shows how `what` is written.
    """
    usage = f"{_base(text)}({', '.join(f'{option}={value}' for option, value in defaults.items())})"
    try:
        call = ast.parse(text.strip(), mode="eval").body
        positional = [ast.literal_eval(argument) for argument in call.args]
        given = dict(zip(defaults, positional, strict=False))
        given |= {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        fits = len(call.args) + len(call.keywords) == len(given)
    except (SyntaxError, ValueError, AttributeError):
        given, fits = {}, False
    if not fits or set(given) - set(defaults) or any(type(v) is not int for v in given.values()):
        raise ValueError(f"{text!r}: the options of {what} are written like {usage}")
    small = [f"{option}={value}" for option, value in given.items() if value < 1]
    if small:
        raise ValueError(f"{text!r}: {', '.join(small)} must be at least 1")
    return given
