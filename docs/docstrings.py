"""The docstrings of vivit as Markdown: the fields that one describes become a list.

Used by docs/keys.py, and by mkdocs as an extension of griffe.
"""

import re

from vivit.schema import described

try:
    import griffe

    Extension = griffe.Extension
except ImportError:  # without the extra `docs`, docs/keys.py still runs
    Extension: type = object


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
