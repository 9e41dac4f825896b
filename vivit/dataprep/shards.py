"""Shards of a prepared data set, and the metadata with which TFDS opens them."""

import csv
import functools
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import dataset_info, file_adapters, naming
from tensorflow_datasets.core import splits as splits_lib

from vivit.data.decode import CLOCK
from vivit.data.manifest import Manifest, count_unlabelled
from vivit.dataprep.staging import VERSION, Plan, Spec
from vivit.io import read_json, sha256_of, write_atomically, write_json

SHARD_BYTES = 512 << 20
WRITER_OPTIONS = "group_size:1,uncompressed"  # video does not shrink; every record by itself
OPAQUE = tfds.features.Tensor(shape=(), dtype=np.object_)  # bytes, as a Tensor that needs no TF
NUMBER = tfds.features.Scalar(dtype=np.int64)
NUMBERS = tfds.features.Tensor(shape=(None,), dtype=np.int64)


def plan_shards(plan: Plan, metas: list[dict]) -> list[dict[str, Any]]:
    """Returns shards in order: their split, number in it, clips and first frame."""
    shards: list[dict[str, Any]] = []
    for split in splits_of(plan.manifest):
        parts: list[dict[str, Any]] = []
        frame, size = 0, 0
        for i, meta in enumerate(metas):
            if plan.manifest.clips[i].split != split or "error" in meta:
                continue
            if not parts or size >= SHARD_BYTES:
                number = len(parts)
                parts.append({"split": split, "shard": number, "clips": [], "first_frame": frame})
                size = 0
            parts[-1]["clips"].append(i)
            size += meta["bytes"]
            frame += len(meta["ticks"])
        shards += [{**shard, "shards": len(parts)} for shard in parts]
    return shards


def assemble(plan: Plan, number: int) -> None:
    """Writes a shard from its staged clips, once, and then deletes these."""
    shard = read_json(plan.staging / "shards.json")[number]
    done = plan.staging / "shards" / f"{number:05d}.json"
    if not done.exists():
        paths = [_shard_path(plan, shard)]
        if plan.spec.encoder.frame_records:
            paths.append(_shard_path(plan, shard, frames=True))
        _write_shard(plan, shard, [Path(f"{path}.part") for path in paths])
        sums = {}
        for path in paths:
            sums[str(path.relative_to(plan.staging))] = _fsync_and_hash(Path(f"{path}.part"))
            os.replace(f"{path}.part", path)
        write_json(done, sums, indent=None)
    for i in shard["clips"]:
        plan.staged(i, ".clip").unlink(missing_ok=True)


def _write_shard(plan: Plan, shard: dict, paths: list[Path]) -> None:
    """Writes the clips of a shard, and their frames where these are records."""
    writers = []
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        writers.append(ArrayRecordWriter(str(path), WRITER_OPTIONS))
    frame = shard["first_frame"]
    for i in shard["clips"]:
        meta = read_json(plan.staged(i, ".json"))
        data = plan.staged(i, ".clip").read_bytes()
        if hashlib.sha256(data).hexdigest() != meta["sha256"]:
            raise ValueError(f"{plan.staged(i, '.clip')} was changed; delete it and its .json")
        writers[0].write(_clip_record(plan, i, meta, data, frame))
        if plan.spec.encoder.frame_records:
            features = frame_features(plan.spec)
            for picture in _pictures(meta, data):
                # An encoded picture is written as it is: tfds would take a file, or pixels.
                writers[1].write(features.serialize_example({"frame": picture}))
        frame += len(meta["ticks"])
    for writer in writers:
        writer.close()


def finish(plan: Plan, metas: list[dict], shards: list[dict]) -> None:
    """Writes metadata and the list of clips that are left out, and gives the folder its name."""
    _write_info(plan, metas, shards, _metadata(plan, metas, len(shards)), frames=False)
    if plan.spec.encoder.frame_records:
        _write_info(plan, metas, shards, {}, frames=True)
    listed = io.StringIO()
    writer = csv.writer(listed, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["id", "clip", "kind", "error"])
    for clip, meta in zip(plan.manifest.clips, metas, strict=True):
        if "error" in meta:
            writer.writerow([clip.id, clip.name, meta["kind"], meta["error"]])
    write_atomically(plan.staging / "skipped.csv", listed.getvalue())
    os.replace(plan.staging, plan.final)
    remove_staging(plan)


def _metadata(plan: Plan, metas: list[dict], shards: int) -> dict[str, Any]:
    """Returns what vivit.data.prepared reads, besides what TFDS needs."""
    sums: dict[str, Any] = {}
    for number in range(shards):
        sums |= read_json(plan.staging / "shards" / f"{number:05d}.json")
    good = [meta for meta in metas if "error" not in meta]
    clips = zip(plan.manifest.clips, metas, strict=True)
    kept = [clip for clip, meta in clips if "error" not in meta]
    unlabelled = {
        f"{split}/{label}": count
        for split in splits_of(plan.manifest)
        for label, count in count_unlabelled(
            [clip for clip in kept if clip.split == split], plan.manifest.classes
        ).items()
        if count
    }
    return {
        "format": plan.spec.format,
        "labels": {k: list(v.names) for k, v in plan.manifest.classes.items()},
        "several": [k for k, v in plan.manifest.classes.items() if v.several],
        "mirrored": {k: v.flip_label() for k, v in plan.manifest.classes.items()},
        "largest": [max(m["height"] for m in good), max(m["width"] for m in good)],
        "smallest": min(min(m["height"], m["width"]) for m in good),
        "unlabelled": unlabelled,
        "skipped": len(metas) - len(good),
        "shards": sums,
    }


@functools.cache  # they are needed for every record
def clip_features(
    labels: tuple[str, ...], spec: Spec, *, several: tuple[str, ...]
) -> tfds.features.FeaturesDict:
    """Returns the features of a clip's record. several: labels of which a clip may have several.

    ticks: int64 little-endian, 1/90000 s. first_frame: its number among the frames of its split.
    """
    content = {"first_frame": NUMBER} if spec.encoder.frame_records else {"video": OPAQUE}
    texts = dict.fromkeys(("id", "path", "sha256", "ticks"), OPAQUE)
    numbers = dict.fromkeys(("height", "width", "frames", "duration_ticks", *labels), NUMBER)
    lists = dict.fromkeys(several, NUMBERS)
    return tfds.features.FeaturesDict({**texts, **numbers, **lists, **content})


@functools.cache
def frame_features(spec: Spec) -> tfds.features.FeaturesDict:
    """Returns the features of a frame's record."""
    picture = spec.encoder.picture
    image = lambda: tfds.features.Image(shape=(None, None, 3), encoding_format=picture)
    return tfds.features.FeaturesDict({"frame": image() if picture else OPAQUE})


def splits_of(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(clip.split for clip in manifest.clips))


def _features(plan: Plan) -> tfds.features.FeaturesDict:
    classes = plan.manifest.classes
    several = tuple(k for k, v in classes.items() if v.several)
    return clip_features(tuple(classes), plan.spec, several=several)


def _clip_record(plan: Plan, i: int, meta: dict, data: bytes, first_frame: int) -> bytes:
    clip, spec = plan.manifest.clips[i], plan.spec
    features = _features(plan)
    content = {"first_frame": first_frame} if spec.encoder.frame_records else {"video": data}
    values = {
        "id": clip.id.encode(),
        "path": clip.name.encode(),
        "sha256": meta["sha256"].encode(),
        "ticks": np.array(meta["ticks"], "<i8").tobytes(),
        "height": meta["height"],
        "width": meta["width"],
        "frames": len(meta["ticks"]),
        "duration_ticks": round(meta["seconds"] * CLOCK),
        **{k: np.array(v, np.int64) for k, v in clip.labels.items()},
        **content,
    }
    return features.serialize_example(features.encode_example(values))


def _pictures(meta: dict, data: bytes) -> Iterator[bytes]:
    sizes = meta["sizes"]
    if len(sizes) == 1 != len(meta["ticks"]):  # raw: one block
        sizes = [len(data) // len(meta["ticks"])] * len(meta["ticks"])
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size


def _template(plan: Plan, split: str | None, *, frames: bool) -> naming.ShardedFileTemplate:
    folder = epath.Path(plan.staging / "frames" if frames else plan.staging)
    name = f"{plan.folder.name}_frames" if frames else plan.folder.name
    return naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )


def _shard_path(plan: Plan, shard: dict, *, frames: bool = False) -> Path:
    template = _template(plan, shard["split"], frames=frames)
    path = template.sharded_filepath(shard_index=shard["shard"], num_shards=shard["shards"])
    return Path(path)


def _fsync_and_hash(path: Path) -> dict[str, Any]:
    """Returns size and SHA-256 of a file after it is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def remove_staging(plan: Plan) -> None:
    """Deletes what only an unfinished prepare needs."""
    for name in ("clips", "shards"):
        shutil.rmtree(plan.final / name, ignore_errors=True)
    (plan.final / "shards.json").unlink(missing_ok=True)


def _write_info(
    plan: Plan, metas: list[dict], shards: list[dict], metadata: dict, *, frames: bool
) -> None:
    """Writes the metadata with which tfds.builder_from_directory opens the shards."""
    template = _template(plan, None, frames=frames)
    identity = dataset_info.DatasetIdentity(
        name=str(template.dataset_name),
        version=tfds.core.Version(VERSION),
        data_dir=str(template.data_dir),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Clips prepared by vivit from a manifest.",
        features=frame_features(plan.spec) if frames else _features(plan),
        metadata=tfds.core.MetadataDict(metadata),
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    count = lambda i: len(metas[i]["ticks"]) if frames else 1
    splits = []
    for split in splits_of(plan.manifest):
        parts = [shard for shard in shards if shard["split"] == split]
        paths = [_shard_path(plan, shard, frames=frames) for shard in parts]
        splits.append(
            splits_lib.SplitInfo(
                name=split,
                shard_lengths=[sum(count(i) for i in shard["clips"]) for shard in parts],
                num_bytes=sum(path.stat().st_size for path in paths),
                filename_template=_template(plan, split, frames=frames),
            )
        )
    info.set_splits(splits_lib.SplitDict(splits))
    info.write_to_directory(template.data_dir)
