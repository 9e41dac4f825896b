"""The docstrings of vivit as Markdown: the fields that one describes become a list.

Used by docs/keys.py, and by mkdocs as an extension of griffe.
"""

import re

try:
    import griffe

    Extension = griffe.Extension
except ImportError:  # without the extra `docs`, docs/keys.py still runs
    Extension: type = object


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


def escape(text: str) -> str:
    """Returns text with what Markdown would take as markup in backslashes."""
    return re.sub(r"([*\[\]<>|])", r"\\\1", text)


class FieldLists(Extension):
    """Lists the described fields and arguments of every documented object."""

    def on_instance(self, *, obj, **kwargs) -> None:
        if not obj.docstring or obj.is_alias:
            return
        listed = re.findall(r"^ *(\w+(?:, \w+)*): ", obj.docstring.value, flags=re.MULTILINE)
        names = [name for line in listed for name in line.split(", ")]
        names += [p.name for p in obj.parameters] if obj.is_function else list(obj.members)
        text, found = described(obj.docstring.value, names)
        listed = "\n".join(f"- `{name}`: {escape(about)}" for name, about in found.items())
        obj.docstring.value = f"{text}\n\n{listed}" if listed else text
