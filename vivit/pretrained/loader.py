"""`load`: the weights of a file or folder as the parameters of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from vivit.model.params import stack_layers
from vivit.pretrained import (  # noqa: F401  (sources register when they are imported)
    files,
    hf_images,
    hf_timesformer,
    hf_videomae,
    hf_videoprism,
    hf_vivit,
    hf_vjepa2,
    runs,
    scenic,
    timm_vit,
    vit,
)
from vivit.pretrained.adapt import adapt
from vivit.pretrained.choices import HEADS
from vivit.pretrained.report import Report
from vivit.pretrained.settings import LoadOptions
from vivit.pretrained.sources import SOURCES, LoadHints, Source, SourceModel
from vivit.records import record

SIZE_FIELDS = ("width", "depth", "heads", "mlp_dim")


class Pretrained(NamedTuple):
    """model_config: what `vivit.build` takes. params: of that model. report: the result for every
    array of the file and every parameter. around: what the file has for a network of pre-training
    around the model."""

    model_config: dict[str, Any]
    params: dict[str, Any]
    report: Report
    around: dict[str, Any]


def load(
    path: str | Path,
    *,
    clip: tuple[int, int, int] | None = None,
    family: str | None = None,
    classes: int | None = None,
    model: Mapping[str, Any] | None = None,
    heads: Mapping[str, int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Pretrained:
    """Returns the weights of a file or folder as a model that gives the source model's logits.

    The architecture is read from the weights. What they do not show has the published value, which
    the report notes, or raises ValueError with the candidates.

    clip (frames, height, width), family, classes: of the wanted model, where they differ from the
        source's. model: any other fields of ModelSettings.
    heads: label -> number of classes of a model with several heads, which get the parts of the
        source's head of the same names, as Scenic's checkpoint of Epic-Kitchens has them.
    seed: of what is newly initialised.
    options: fields of `vivit.pretrained.settings.LoadOptions`: source, source_clip, head,
        inflation, position_resize, time_attention, class_token, checkpoint.

    Raises ValueError that lists everything that is unexpected, missing, doubly matched or of a
    wrong shape, or says what is wrong with a damaged file. Nothing partial is returned.
    """
    chosen = record(LoadOptions, options)
    path = Path(path).expanduser()
    archive = read_archive(path, chosen)
    found = find_source(archive, chosen.source)
    wanted = dict(model or {})
    for name, value in (("clip", clip), ("family", family), ("classes", classes)):
        wanted |= {} if value is None else {name: value}
    source = _read(archive, found, LoadHints(chosen.source_clip, wanted.get("clip")))
    kept = kept_classes(source, chosen.head, wanted.get("classes"), heads or {})
    wanted |= {} if kept is None else {"classes": len(kept)}
    model_config = _target(source, wanted)
    adapted = adapt(source, model_config, chosen, classes=kept, seed=seed)
    head = next((row for row in adapted.rows if row.parameter == "head/kernel"), None)
    has_head = head is not None and head.origin
    labels, groups = (source.labels, source.groups) if has_head else ((), {})
    if kept is not None:
        labels, groups = tuple(labels[i] for i in kept) if labels else (), {}
    report = Report(
        found.name,
        str(path),
        adapted.rows,
        adapted.dropped,
        tuple(source.notes),
        labels,
        source.task,
        {name: end - start for name, (start, end) in groups.items()},
        source.model_config,
        archive.sha256,
    )
    source.params.clear()
    arrays: dict[str, Any] = adapted.params
    for name in arrays:  # one by one, so that there are never two copies of all
        arrays[name] = jnp.asarray(arrays[name])
    tree = unflatten_dict(arrays, sep="/")
    around = unflatten_dict({k: jnp.asarray(v) for k, v in source.around.items()}, sep="/")
    if model_config.get("scan"):
        tree, around = stack_layers(tree), stack_layers(around)
    return Pretrained(model_config, tree, report, around)


def read_model(
    path: str | Path, *, wanted: Mapping[str, Any], options: LoadOptions
) -> dict[str, Any]:
    """Returns the fields of ModelSettings of a file's model, with the wanted ones."""
    archive = read_archive(Path(path).expanduser(), options)
    hints = LoadHints(options.source_clip, wanted.get("clip"))
    return _target(_read(archive, find_source(archive, options.source), hints), wanted)


def read_archive(path: Path, options: LoadOptions) -> files.Archive:
    """Returns the arrays and the config of a file, a folder, or a run."""
    if runs.is_run(path):
        return runs.read_run(path, checkpoint=options.checkpoint)
    return files.read(path)


def find_source(archive: files.Archive, name: str) -> Source:
    """Returns the source of that name, or for "auto" the only one that recognises an archive."""
    found = [SOURCES[n] for n in SOURCES if SOURCES[n].recognises(archive)]
    if name != "auto":
        if SOURCES[name] not in found:
            others = "".join(f", but one of {other.name}" for other in found)
            raise ValueError(f"{archive.path} is not a file of source {name!r}{others}")
        return SOURCES[name]
    if len(found) == 1:
        return found[0]
    listed = "\n  ".join(f"{n}: {SOURCES[n].about}" for n in SOURCES)
    hint = ""
    if archive.described and not archive.config:
        hint = " There is no config.json next to it, which says what model it is."
    some = ", ".join(list(archive.arrays)[:5])
    several = f"several sources, {', '.join(s.name for s in found)}" if found else "no known source"
    raise ValueError(
        f"{archive.path} ({archive.format}, with {some}, ...) is of {several}.{hint} "
        f"Name one by source=...:\n  {listed}"
    )


def _read(archive: files.Archive, found: Source, hints: LoadHints) -> SourceModel:
    """Returns the model of an archive, whose arrays are given up."""
    try:
        source = found.read(archive, hints)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{archive.path} is not as {found.name} has it: {error!r}") from error
    archive.arrays.clear()
    clip = source.model_config["clip"]
    if hints.source_clip and tuple(clip) != hints.source_clip:
        raise ValueError(f"source_clip={hints.source_clip}, but {archive.path} has {clip}")
    return source


def kept_classes(
    source: SourceModel,
    head: str | tuple[str, ...],
    classes: int | None,
    heads: Mapping[str, int],
) -> tuple[int, ...] | None:
    """Returns the classes, by number, that are kept of the source's head: those of a group
    ("nouns") or of names, or those of the groups of several heads; None where all are, and for
    other names of HEADS.

    Raises ValueError that lists the names that the file has.
    """
    if isinstance(head, str) and head in HEADS:
        if not (source.groups and heads):
            return None
        bias = np.empty(source.model_config["classes"])
        replaced = HEADS[head](bias, sum(heads.values())) is None
        return None if replaced else _classes_of_heads(source, heads)
    names = (head,) if isinstance(head, str) else head
    unknown = [name for name in names if name not in source.labels]
    if len(names) == 1 and names[0] in source.groups:
        kept = tuple(range(*source.groups[names[0]]))
    elif names and not unknown:
        kept = tuple(source.labels.index(name) for name in names)
    else:
        known = [*source.groups, *source.labels]
        listed = f"{', '.join(known[:20])}{', ...' if known[20:] else ''}" or "none"
        raise ValueError(
            f"{head=}: no classes {unknown} in the file; it names: {listed}. Or use one of "
            f"{', '.join(HEADS)}"
        )
    if classes is not None and classes != len(kept):
        raise ValueError(f"{head=} has {len(kept)} classes and {classes=}; leave out one of them")
    return kept


def _classes_of_heads(source: SourceModel, heads: Mapping[str, int]) -> tuple[int, ...] | None:
    """Returns the source's classes in the order of a model's heads; None if all are in order.

    Raises ValueError if the parts of the source's head are not called, or not as large, as these.
    """
    named = {name.removesuffix("s"): span for name, span in source.groups.items()}
    spans = [named.get(label.removesuffix("s"), (0, 0)) for label in heads]
    if [end - start for start, end in spans] != list(heads.values()):
        parts = ", ".join(f"{name} ({b - a})" for name, (a, b) in source.groups.items())
        listed = ", ".join(f"{label} ({classes})" for label, classes in heads.items())
        raise ValueError(
            f"the file's head has the parts {parts}, and the model's heads are {listed}: call "
            "those in task.heads alike, or set head='replace'"
        )
    kept = tuple(i for span in spans for i in range(*span))
    return None if kept == tuple(range(source.model_config["classes"])) else kept


def _target(source: SourceModel, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the wanted model's config: the source's with the wanted fields."""
    config = dict(source.model_config)
    if wanted.get("family") and not wanted.get("stages"):
        config.pop("stages", None)
    if wanted.get("size"):  # it gives what the source's sizes give
        config = {key: value for key, value in config.items() if key not in SIZE_FIELDS}
        if "/" in wanted["size"]:
            config.pop("tubelet", None)
    if config.get("stages") and {"readout", "depth"} & set(wanted) and not wanted.get("stages"):
        raise ValueError(
            f"this source's stages fix its depth and readout: {config['stages']}; give "
            'model={"stages": ...}, or family=... for other ones'
        )
    config |= wanted
    tubelet = config.get("tubelet")
    is_image = source.model_config["clip"][0] == 1
    if is_image and config["clip"][0] > 1 and "tubelet" not in wanted and tubelet:
        config["tubelet"] = (2, *tubelet[1:])
        source.notes.append(
            f"an image model for clips: tubelets of 2 frames, {config['tubelet']}, as ViViT's; "
            'model={"tubelet": ...} for others'
        )
    return config
