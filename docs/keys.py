"""python docs/keys.py: fills the tables of docs/configs.md.

Keys and what they mean are read from the schema's docstrings, names from the registries.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_type_hints

from docstrings import escape

from vivit.attention import KERNELS, PATTERNS
from vivit.attention.reductions import REDUCTIONS
from vivit.attention.rotary import ROTATIONS
from vivit.data.augment import AUGMENTATIONS
from vivit.data.randaugment import OPERATIONS
from vivit.data.sampling import PAD_MODES, SAMPLINGS
from vivit.data.settings import AugmentSettings, DataSettings, SamplingSettings, ViewsSettings
from vivit.data.sources import DATA_SETS
from vivit.data.views import AVERAGES
from vivit.model.block import BLOCKS
from vivit.model.embed import EMBEDDINGS, POSITION_EMBEDDINGS
from vivit.model.layers import ACTIVATIONS
from vivit.model.readout import READOUTS
from vivit.model.settings import FAMILIES, SIZES, ModelSettings, StageSettings
from vivit.model.stage import REMAT
from vivit.optim import OPTIMIZERS, SCHEDULES
from vivit.parallel import MODES
from vivit.pretrained import SOURCES
from vivit.pretrained.choices import CLASS_TOKENS, HEADS, INFLATIONS, TIME_ATTENTIONS
from vivit.pretrained.resize import RESIZES
from vivit.pretrained.settings import InitSettings
from vivit.pretraining.jepa import TARGETS
from vivit.pretraining.masks import MASKS
from vivit.pretraining.regularisers import REGULARISERS
from vivit.ramps import RAMPS
from vivit.registry import Registry
from vivit.schema import meanings
from vivit.settings import Config, OptimSettings, ParallelSettings, TrainSettings
from vivit.tasks import TASKS
from vivit.tasks.settings import TaskSettings

PAGE = Path(__file__).with_name("configs.md")
PARTS = {  # where each part stands in a config
    "config": Config,
    "task": TaskSettings,
    "model": ModelSettings,
    "stages": StageSettings,
    "init": InitSettings,
    "data": DataSettings,
    "sampling": SamplingSettings,
    "views": ViewsSettings,
    "augment": AugmentSettings,
    "optim": OptimSettings,
    "train": TrainSettings,
    "parallel": ParallelSettings,
}
OF_SIZE = "from `size` where it is None."
FROM_SIZE = dict.fromkeys(("width", "depth", "heads", "mlp_dim"), OF_SIZE)
MORE = {
    ModelSettings: {**FROM_SIZE, "tubelet": f"time, height and width of a tubelet; {OF_SIZE}"},
    DataSettings: {"root": "the folder of data sets, or of the files of a manifest."},
}
REGISTRIES: dict[
    str, tuple[Registry, str]
] = {  # each with the key of a config that takes its names
    "FAMILIES": (FAMILIES, "model.family"),
    "PATTERNS": (PATTERNS, "model.family, attentions of stages"),
    "KERNELS": (KERNELS, "model.kernel"),
    "SIZES": (SIZES, "model.size"),
    "READOUTS": (READOUTS, "model.readout, pool of stages"),
    "REDUCTIONS": (REDUCTIONS, "reduce of stages"),
    "BLOCKS": (BLOCKS, "block of stages"),
    "EMBEDDINGS": (EMBEDDINGS, "model.embedding"),
    "POSITION_EMBEDDINGS": (POSITION_EMBEDDINGS, "model.position"),
    "ROTATIONS": (ROTATIONS, "model.rope"),
    "ACTIVATIONS": (ACTIVATIONS, "model.activation"),
    "REMAT": (REMAT, "model.remat"),
    "SOURCES": (SOURCES, "init.source"),
    "HEADS": (HEADS, "init.head"),
    "INFLATIONS": (INFLATIONS, "init.inflation"),
    "RESIZES": (RESIZES, "init.position_resize"),
    "TIME_ATTENTIONS": (TIME_ATTENTIONS, "init.time_attention"),
    "CLASS_TOKENS": (CLASS_TOKENS, "init.class_token"),
    "DATA_SETS": (DATA_SETS, "data.name, or any prepared data set"),
    "SAMPLINGS": (SAMPLINGS, "data.sampling.kind"),
    "PAD_MODES": (PAD_MODES, "data.sampling.pad_mode"),
    "AVERAGES": (AVERAGES, "data.views.average"),
    "AUGMENTATIONS": (AUGMENTATIONS, "augment.extra"),
    "OPERATIONS": (OPERATIONS, "drawn by augment.operations"),
    "OPTIMIZERS": (OPTIMIZERS, "optim.name"),
    "SCHEDULES": (SCHEDULES, "optim.schedule"),
    "RAMPS": (RAMPS, "train.ramps"),
    "MASKS": (MASKS, "options of task.name"),
    "REGULARISERS": (REGULARISERS, "regulariser of task jepa"),
    "TARGETS": (TARGETS, "target of task jepa"),
    "TASKS": (TASKS, "task.name"),
    "MODES": (MODES, "parallel.mode"),
}


def names() -> str:
    """Returns a Markdown table of all registries: names, options and the key that takes them."""
    lines = ["| registry | names, with options and their defaults | key |", "|---|---|---|"]
    for title, (registry, key) in REGISTRIES.items():
        listed = ", ".join(f"`{_with_options(name, registry[name])}`" for name in sorted(registry))
        lines.append(f"| {title} | {listed} | {key} |")
    return "\n".join(lines)


def _with_options(name: str, entry: Any) -> str:
    options = getattr(entry, "options", {})
    listed = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name}({listed})" if listed else name


def table(part: type[Any]) -> str:
    """Returns a Markdown table of a dataclass's fields: name, default and description.

    Raises ValueError that lists fields without a description, but for nested parts.
    """
    fields = [field for field in dataclasses.fields(part) if field.init]
    about = MORE.get(part, {}) | meanings(part)
    hints, lines, missing = get_type_hints(part), [], []
    for field in fields:
        if dataclasses.is_dataclass(hints[field.name]):
            kind = hints[field.name]
            name = next(name for name, other in PARTS.items() if other is kind)
            lines.append(f"| `{field.name}` | | [see below](#{name}) |")
        elif field.name in about:
            text = escape(about[field.name])
            lines.append(f"| `{field.name}` | {_default(field)} | {text[0].upper()}{text[1:]} |")
        else:
            missing.append(field.name)
    if missing:
        raise ValueError(f"{part.__name__} does not describe {', '.join(missing)}")
    return "\n".join(["| key | default | |", "|---|---|---|", *lines])


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    if field.default is dataclasses.MISSING:
        return "required"
    text = repr(field.default)
    return f"`{text}`" if len(text) < 40 else "`RULES`"


def page(text: str) -> str:
    """Returns the page with all its tables filled."""
    tables = {name: table(part) for name, part in PARTS.items()} | {"names": names()}
    for name, made in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(
            pattern, lambda m, made=made: f"{m[1]}{made}\n{m[2]}", text, flags=re.DOTALL
        )
        assert count == 1, name
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
