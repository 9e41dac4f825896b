"""Names that a config may use, and the entries that they stand for.

An entry carries its behaviour, so code that uses a registry never compares names.
"""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Options(dict[str, Any]):
    """The options of an entry: a dict that is never changed once it is made, so it has a hash."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(sorted(self.items())))


class Registry(Generic[Item]):
    """A mapping from names to entries.

    Adding a name twice raises ValueError; looking up an unknown name raises ValueError with the
    known names.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Item] = {}

    def add(self, name: str, item: Item) -> None:
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
        self._items[name] = item

    def register(self, name: str) -> Callable[[Item], Item]:
        """Returns a decorator that adds the decorated object under `name`."""

        def add(item: Item) -> Item:
            self.add(name, item)
            return item

        return add

    def __getitem__(self, name: str) -> Item:
        if name not in self._items:
            if _base(name) in self._items:
                raise ValueError(f"{self.kind} {_base(name)!r} takes no options, but got {name!r}")
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
    """A registry whose entries are dataclasses with a field `options`.

    registry["window(4, 7, 7)"] is the entry `window` with these options.
    """

    def __getitem__(self, name: str) -> Item:
        item: Any = super().__getitem__(_base(name))
        if "(" not in name:
            return item
        what = f"{self.kind.split()[-1]} {_base(name)!r}"
        return replace(item, options=Options(item.options | read_options(what, name, item.options)))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(_base(str(name)))


def _base(name: str) -> str:
    return name.partition("(")[0].strip()


def read_options(what: str, text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options in a name of a config: "window(4, rows=5)" -> {steps: 4, rows: 5}.

    Options without a name are taken in the order of `defaults`. Each has the type of its default,
    and whole numbers are at least 1. Raises ValueError that shows how `what` is written.
    """
    usage = f"{_base(text)}({', '.join(f'{option}={value}' for option, value in defaults.items())})"
    try:
        call = ast.parse(text.strip(), mode="eval").body
        positional = [ast.literal_eval(argument) for argument in call.args]  # type: ignore[attr-defined]
        given = dict(zip(defaults, positional, strict=False))
        keywords = call.keywords  # type: ignore[attr-defined]
        given |= {str(k.arg): ast.literal_eval(k.value) for k in keywords}
        fits = len(positional) + len(keywords) == len(given)
    except (SyntaxError, ValueError, AttributeError):
        given, fits = {}, False
    if not fits or any(not _like(value, defaults.get(k)) for k, value in given.items()):
        raise ValueError(f"{text!r}: the options of {what} are written like {usage}")
    small = [f"{k}={value}" for k, value in given.items() if type(value) is int and value < 1]
    if small:
        raise ValueError(f"{text!r}: {', '.join(small)} must be at least 1")
    return given


def _like(value: Any, default: Any) -> bool:
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the keyword-only arguments of a function with their defaults.

    An argument without a default has `inspect.Parameter.empty`.
    """
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def options_of(function: Callable[..., Any], *, given: tuple[str, ...] = ()) -> Options:
    """Returns the options of a function: its keyword-only arguments but for those of `given`.

    Raises ValueError if the function lacks one of `given`, or an option has no default.
    """
    options = keyword_defaults(function)
    name = getattr(function, "__name__", repr(function))
    missing = [argument for argument in given if options.pop(argument, None) is None]
    if missing:
        raise ValueError(f"{name} must take {', '.join(missing)} by keyword")
    bare = [k for k, value in options.items() if value is inspect.Parameter.empty]
    if bare:
        raise ValueError(f"options {', '.join(bare)} of {name} need a default")
    return Options(options)


def check_arguments(what: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ValueError that lists the given arguments that `what` does not take."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        listed = ", ".join(
            name if value is inspect.Parameter.empty else f"{name}={value!r}"
            for name, value in known.items()
        )
        close = get_close_matches(unknown[0], list(known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"{what} takes no {', '.join(unknown)}{hint} It takes: {listed or 'none'}")
