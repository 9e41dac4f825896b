"""Typed records from mappings: how every part of a config becomes a frozen dataclass.

The dataclass is the schema: its fields, types and defaults are the only list of a config's keys.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def record(cls: type[Record], values: Mapping[str, Any], *, at: str = "") -> Record:
    """Returns the dataclass `cls` filled from a mapping, and its nested dataclasses with it.

    at: where the mapping stands in the config, such as "data.sampling", for error texts.

    Raises ValueError that lists all unknown keys, missing keys and values of a wrong type.
    """
    problems: list[str] = []
    made = _fill(cls, values, at, problems)
    if problems:
        raise ValueError("; ".join(problems))
    return made


def defaults(cls: type[Any]) -> dict[str, Any]:
    """Returns the defaults of a dataclass by field; required fields are left out."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _fill(cls: type[Any], values: Mapping[str, Any], at: str, problems: list[str]) -> Any:
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    path = lambda name: f"{at}.{name}" if at else name
    given = {}
    for name, value in values.items():
        if name not in names:
            close = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {path(close[0])}?" if close else f"known: {', '.join(names)}"
            problems.append(f"unknown key {path(name)}; {hint}")
        else:
            given[name] = _convert(value, hints[name], path(name), problems)
    missing = [path(name) for name in names if name not in given and name not in defaults(cls)]
    if missing:
        problems.append(f"{', '.join(missing)} must be given")
    return None if problems else cls(**given)


def _convert(value: Any, hint: Any, at: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping) or hasattr(value, "items"):
            return _fill(hint, dict(value), at, problems)
    arguments = get_args(hint)
    if get_origin(hint) is tuple and dataclasses.is_dataclass(arguments[0]):
        items = [_convert(x, arguments[0], f"{at}[{i}]", problems) for i, x in enumerate(value)]
        return tuple(items)
    fits, converted = _match(value, hint)
    if not fits:
        problems.append(f"{at}={value!r} must be {_describe(hint)}")
    return converted


def _match(value: Any, hint: Any) -> tuple[bool, Any]:
    """Returns whether a value has a type, and the value with lists turned into tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True, as_tuples(value)
    if origin in (Union, types.UnionType):
        tried = [_match(value, option) for option in arguments]
        return next((match for match in tried if match[0]), (False, value))
    if hint is None or hint is type(None):
        return value is None, value
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool), value
    if origin is tuple:
        return _match_tuple(value, arguments)
    if origin is not None and issubclass(origin, Mapping):
        items = hasattr(value, "items")
        return items, dict(value.items()) if items else value
    return type(value) is hint, value


def _match_tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False, value
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        return False, value
    matches = [_match(item, hint) for item, hint in zip(value, arguments, strict=True)]
    return all(fits for fits, _ in matches), tuple(item for _, item in matches)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if hint is type(None):
        return "None"
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list of {_describe(arguments[0])}"
        return f"{len(arguments)} values: {', '.join(map(_describe, arguments))}"
    if dataclasses.is_dataclass(hint):
        return f"a mapping with fields of {getattr(hint, '__name__', hint)}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
    return names.get(hint, "a mapping" if origin else getattr(hint, "__name__", str(hint)))


def as_tuples(value: Any) -> Any:
    """Returns lists as tuples and mappings in them as tuples of pairs, which have a hash."""
    if isinstance(value, (list, tuple)):
        return tuple(as_tuples(item) for item in value)
    if hasattr(value, "items"):
        return tuple((key, as_tuples(item)) for key, item in value.items())
    return value
