"""Pretrained weights in and out: public video and image transformers as models of ours.

from vivit import pretrained

loaded = pretrained.load("weights/vivit-b-16x2-kinetics400")
logits = vivit.build(loaded.model_config).apply({"params": loaded.params}, clips)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from vivit.model import stack_layers
from vivit.pretrained import (
    files,
    hf_timesformer,
    hf_videomae,
    hf_videoprism,
    hf_vivit,
    hf_vjepa2,
    own,
    scenic,
    vit,
)
from vivit.pretrained.adapt import Surgery, adapt, kept_classes
from vivit.pretrained.export import export
from vivit.pretrained.report import Report, Row
from vivit.pretrained.table import SOURCES, Asked, Native, Source

__all__ = ["SOURCES", "Pretrained", "Report", "Row", "export", "load"]

_TABLES = (vit, scenic, hf_vivit, hf_timesformer, hf_videomae, hf_vjepa2, hf_videoprism, own)
SIZE_FIELDS = ("width", "depth", "heads", "mlp_dim")


class Pretrained(NamedTuple):
    """model_config: what `vivit.build` takes. params: of that model. report: what became of every
    array of the file and of every parameter."""

    model_config: dict[str, Any]
    params: dict[str, Any]
    report: Report


def load(
    path: str | Path,
    *,
    source: str = "auto",
    family: str | None = None,
    clip: tuple[int, int, int] | None = None,
    classes: int | None = None,
    model: Mapping[str, Any] | None = None,
    source_clip: tuple[int, int, int] | None = None,
    head: str | tuple[str, ...] = "auto",
    inflation: str = "central_frame",
    positions: str = "linear",
    time_attention: str = "zero_out",
    class_token: str = "keep",
    checkpoint: str = "best",
    seed: int = 0,
) -> Pretrained:
    """Weights of a file or folder, as a model of ours that gives the source model's logits.

    source: a name of SOURCES; "auto" finds it from the file. The architecture is read from the
        weights. What they can't tell has the published value, which the report notes, or raises
        ValueError with the candidates.
    family, clip (frames, height, width), classes: of the model that is wanted, where they differ
        from the source's; `model`: any other fields of it.
    source_clip: the clip that the weights were trained with, where they can't tell; it must fit.
    head: "auto" keeps the head if it has as many classes as wanted and replaces it by zeros
        otherwise; "keep"; "replace"; names of classes, or of a group of them ("nouns"), to slice.
    inflation: a name of INFLATIONS, from a patch kernel to a tubelet's; or "fresh".
    positions: a name of RESIZES, from one grid to another: over time, rows and columns each.
    time_attention: for attention over time that the source has not: "zero_out" copies the source's
        attention, with an output of zeros, so that the model starts as the source's of every frame
        (ViViT, 2103.15691, section 3.4); "copy" copies all; "scenic" copies all but the norm;
        "fresh". (Scenic's "zero", with queries, keys and values of zeros too, never learns.)
    class_token: "keep" gives the source's to the first stage; "fresh" as Scenic does in its
        factorised encoder.
    checkpoint: of a run: "best", "latest" or a step.
    seed: of what is drawn afresh.

    ValueError lists everything that is unexpected, missing, doubly matched or of a wrong shape,
    and says what is wrong with a damaged file. Nothing partial is returned.
    """
    path = Path(path).expanduser()
    archive = (
        own.read_run(path, checkpoint=str(checkpoint)) if own.is_run(path) else files.read(path)
    )
    found = find_source(archive, source)
    given = {"family": family, "clip": clip, "classes": classes}
    wanted = {**(model or {}), **{k: v for k, v in given.items() if v is not None}}
    try:
        native = found.read(archive, Asked(source_clip, wanted.get("clip")))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not as {found.name} has it: {error!r}") from error
    archive.arrays.clear()
    if source_clip and tuple(native.model_config["clip"]) != tuple(source_clip):
        raise ValueError(f"{source_clip=}, but {path} has {native.model_config['clip']}")
    kept = kept_classes(native, head, wanted.get("classes"))
    if kept is not None:
        wanted["classes"] = len(kept)
    surgery = Surgery(
        head=head if isinstance(head, str) else "slice",
        classes=kept,
        inflation=inflation,
        positions=positions,
        time_attention=time_attention,
        class_token=class_token,
        seed=seed,
    )
    model_config = _target(native, wanted)
    params, rows, dropped = adapt(native, model_config, surgery)
    labels = native.labels
    if kept is not None:
        labels = tuple(labels[i] for i in kept) if labels else ()
    elif not any(row.parameter == "head/kernel" and row.origin for row in rows):
        labels = ()  # the head is another
    native.params.clear()
    for name in list(params):  # one after the other, so that there are never two copies of all
        params[name] = jnp.asarray(params[name])
    tree = unflatten_dict(params, sep="/")
    tree = stack_layers(tree) if model_config.get("scan") else tree
    report = Report(
        found.name,
        str(path),
        tuple(rows),
        dropped,
        tuple(native.notes),
        labels,
        native.model_config,
        archive.sha256,
    )
    return Pretrained(model_config, tree, report)


def find_source(archive: files.Archive, name: str) -> Source:
    """The source of that name, or the one that recognises an archive."""
    found = [SOURCES[n] for n in SOURCES if SOURCES[n].recognises(archive)]
    if name != "auto" and SOURCES[name] not in found:
        others = "".join(f", but one of {other.name}" for other in found)
        raise ValueError(f"{archive.path} is no file of source {name!r}{others}")
    if name != "auto":
        return SOURCES[name]
    if len(found) == 1:
        return found[0]
    listed = "\n  ".join(f"{n}: {SOURCES[n].about}" for n in SOURCES)
    hint = ""
    if archive.format in ("safetensors", "torch") and not archive.config:
        hint = " There is no config.json beside it, which says what model it is."
    some = ", ".join(list(archive.arrays)[:5])
    raise ValueError(
        f"{archive.path} ({archive.format}, with {some}, ...) is of no known source.{hint} "
        f"Known, to be named by source=...:\n  {listed}"
    )


def _target(native: Native, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The wanted model's config: the source's, but for what was asked for."""
    config = dict(native.model_config)
    if wanted.get("family") and not wanted.get("stages"):
        config.pop("stages", None)
    if wanted.get("size"):  # it says what the source's sizes say
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
    is_image = native.model_config["clip"][0] == 1
    if is_image and config["clip"][0] > 1 and "tubelet" not in wanted and tubelet:
        config["tubelet"] = (2, *tubelet[1:])
        native.notes.append(
            f"an image model for clips: tubelets of 2 frames, {config['tubelet']}, as ViViT's; "
            'model={"tubelet": ...} for others'
        )
    return config
