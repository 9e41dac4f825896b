"""What the keys of a config mean, read from the docstrings of the schema."""

import dataclasses
import re
from typing import Any, get_type_hints

from vivit.pretrained.settings import InitSettings, LoadOptions

BASES: dict[type, type] = {InitSettings: LoadOptions}  # describes the fields that are inherited


def described(docstring: str, names: list[str]) -> tuple[str, dict[str, str]]:
    """Returns a docstring without the descriptions of `names`, and name -> description.

    A description is "name: text" or "name, other: text", at the start of a line or after a
    sentence, and ends at the next one or at an empty line.
    """
    word = "|".join(map(re.escape, names)) or r"(?!)"
    start = rf"(?:^|(?<=\. )|(?<=; )) *((?:{word})(?:, (?:{word}))*): "
    rest, found = [], {}
    for paragraph in docstring.strip().split("\n\n"):
        before, *parts = re.split(start, paragraph, flags=re.MULTILINE)
        rest.append(before.strip())
        for listed, text in zip(parts[::2], parts[1::2], strict=True):
            found |= dict.fromkeys(listed.split(", "), " ".join(text.split()))
    return "\n\n".join(part for part in rest if part), found


def meanings(part: type) -> dict[str, str]:
    """Returns field -> description of a part of the schema."""
    names = [field.name for field in dataclasses.fields(part)]
    inherited = described(BASES[part].__doc__ or "", names)[1] if part in BASES else {}
    return inherited | described(part.__doc__ or "", names)[1]


def show(settings: Any, at: str = "") -> str:
    """Returns a config as lines "KEY = VALUE", each above what the key means."""
    about, lines = meanings(type(settings)), []
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        name, value = f"{at}{field.name}", getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and dataclasses.is_dataclass(hints[field.name]):
            lines.append(show(value, f"{name}."))
        else:
            text = about.get(field.name, "")
            lines.append(f"{name} = {value!r}" + (f"\n    {text}" if text else ""))
    return "\n".join(lines)
