"""Shards of a prepared data set, and what TFDS wants beside them."""

import csv
import functools
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import naming
from tensorflow_datasets.core import splits as splits_lib

from vivit.data.encode import CLOCK
from vivit.data.manifest import UNLABELLED, Manifest
from vivit.data.staging import VERSION, Plan, Spec, read_json
from vivit.io import write_atomically

SHARD_BYTES = 512 << 20
WRITER_OPTIONS = "group_size:1,uncompressed"  # video does not shrink; every record by itself
OPAQUE = tfds.features.Tensor(shape=(), dtype=np.object_)  # bytes, as a Tensor that needs no TF
NUMBER = tfds.features.Scalar(dtype=np.int64)


def plan_shards(plan: Plan, metas: list[dict]) -> list[dict[str, Any]]:
    """Shards in order: their split, their number in it, their clips and their first frame."""
    shards: list[dict[str, Any]] = []
    for split in splits_of(plan.manifest):
        own: list[dict[str, Any]] = []
        frame, size = 0, 0
        for i, meta in enumerate(metas):
            if plan.manifest.clips[i].split != split or "error" in meta:
                continue
            if not own or size >= SHARD_BYTES:
                own.append({"split": split, "shard": len(own), "clips": [], "first_frame": frame})
                size = 0
            own[-1]["clips"].append(i)
            size += meta["bytes"]
            frame += len(meta["ticks"])
        shards += [{**shard, "shards": len(own)} for shard in own]
    return shards


def assemble(plan: Plan, number: int) -> None:
    """Writes a shard from its staged clips, which are then deleted; once."""
    shard = read_json(plan.staging / "shards.json")[number]
    done = plan.staging / "shards" / f"{number:05d}.json"
    if not done.exists():
        parts = [_shard_path(plan, shard)]
        if plan.spec.has_frames:
            parts.append(_shard_path(plan, shard, frames=True))
        writers = []
        for path in parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            writers.append(array_record_module.ArrayRecordWriter(f"{path}.part", WRITER_OPTIONS))
        frame = shard["first_frame"]
        for i in shard["clips"]:
            meta = read_json(plan.staged(i, ".json"))
            data = plan.staged(i, ".clip").read_bytes()
            if hashlib.sha256(data).hexdigest() != meta["sha256"]:
                raise ValueError(f"{plan.staged(i, '.clip')} was changed; delete it and its .json")
            writers[0].write(_clip_record(plan, i, meta, data, frame))
            if plan.spec.has_frames:
                for picture in _pictures(meta, data):
                    writers[1].write(_frame_record(plan.spec, picture))
            frame += len(meta["ticks"])
        sums = {}
        for path, writer in zip(parts, writers, strict=True):
            writer.close()
            sums[str(path.relative_to(plan.staging))] = _settle(Path(f"{path}.part"))
            os.replace(f"{path}.part", path)
        write_atomically(done, json.dumps(sums))
    for i in shard["clips"]:
        plan.staged(i, ".clip").unlink(missing_ok=True)


def finish(plan: Plan, metas: list[dict], shards: list[dict]) -> None:
    """Metadata, the list of what was left out, and the final name, in this order."""
    staging, clips = plan.staging, plan.manifest.clips
    sums: dict[str, Any] = {}
    for number in range(len(shards)):
        sums |= read_json(staging / "shards" / f"{number:05d}.json")
    good = [meta for meta in metas if "error" not in meta]
    skipped = [
        [clips[i].id, clips[i].name, meta["kind"], meta["error"]]
        for i, meta in enumerate(metas)
        if "error" in meta
    ]
    unlabelled = Counter(
        f"{clip.split}/{label}"
        for clip, meta in zip(clips, metas, strict=True)
        for label, number in clip.labels.items()
        if number == UNLABELLED and "error" not in meta
    )
    metadata = {
        "format": plan.spec.format,
        "labels": {k: list(v.names) for k, v in plan.manifest.classes.items()},
        "mirrored": {k: v.mirrored() for k, v in plan.manifest.classes.items()},
        "largest": [max(m["height"] for m in good), max(m["width"] for m in good)],
        "smallest": min(min(m["height"], m["width"]) for m in good),
        "unlabelled": dict(unlabelled),
        "skipped": len(skipped),
        "shards": sums,
    }
    _write_info(plan, metas, shards, metadata, frames=False)
    if plan.spec.has_frames:
        _write_info(plan, metas, shards, {}, frames=True)
    listed = io.StringIO()
    writer = csv.writer(listed, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["id", "clip", "kind", "error"], *skipped])
    write_atomically(staging / "skipped.csv", listed.getvalue())
    os.replace(staging, plan.final)
    tidy(plan)


@functools.cache  # they are asked for with every record
def clip_features(labels: tuple[str, ...], spec: Spec) -> tfds.features.FeaturesDict:
    """What a clip's record holds. ticks: int64 little-endian, 1/90000 s; first_frame: its number
    among the frames of its split."""
    own = {"video": OPAQUE} if not spec.has_frames else {"first_frame": NUMBER}
    texts = dict.fromkeys(("id", "path", "sha256", "ticks"), OPAQUE)
    numbers = dict.fromkeys(("height", "width", "frames", "duration_ticks"), NUMBER)
    return tfds.features.FeaturesDict({**texts, **numbers, **dict.fromkeys(labels, NUMBER), **own})


@functools.cache
def frame_features(spec: Spec) -> tfds.features.FeaturesDict:
    if spec.format == "jpeg":
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        return tfds.features.FeaturesDict({"frame": image})
    return tfds.features.FeaturesDict({"frame": OPAQUE})


def splits_of(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(clip.split for clip in manifest.clips))


def _clip_record(plan: Plan, i: int, meta: dict, data: bytes, first_frame: int) -> bytes:
    clip, spec = plan.manifest.clips[i], plan.spec
    features = clip_features(tuple(plan.manifest.classes), spec)
    own = {"video": data} if not spec.has_frames else {"first_frame": first_frame}
    values = {
        "id": clip.id.encode(),
        "path": clip.name.encode(),
        "sha256": meta["sha256"].encode(),
        "ticks": np.array(meta["ticks"], "<i8").tobytes(),
        "height": meta["height"],
        "width": meta["width"],
        "frames": len(meta["ticks"]),
        "duration_ticks": round(meta["seconds"] * CLOCK),
        **clip.labels,
        **own,
    }
    return features.serialize_example(features.encode_example(values))


def _frame_record(spec: Spec, picture: bytes) -> bytes:
    # An encoded picture goes in as it is: tfds would want it in a file, or decoded.
    return frame_features(spec).serialize_example({"frame": picture})


def _pictures(meta: dict, data: bytes) -> Iterator[bytes]:
    sizes = meta["sizes"]
    if len(sizes) == 1 != len(meta["ticks"]):  # raw: one block
        sizes = [len(data) // len(meta["ticks"])] * len(meta["ticks"])
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size


def _template(plan: Plan, split: str, *, frames: bool) -> naming.ShardedFileTemplate:
    folder = plan.staging / "frames" if frames else plan.staging
    name = f"{plan.folder.name}_frames" if frames else plan.folder.name
    return naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )


def _shard_path(plan: Plan, shard: dict, *, frames: bool = False) -> Path:
    template = _template(plan, shard["split"], frames=frames)
    path = template.sharded_filepath(shard_index=shard["shard"], num_shards=shard["shards"])
    return Path(path)


def _settle(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file that is on the disk for good."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def tidy(plan: Plan) -> None:
    """Takes away what only an unfinished prepare needs."""
    for name in ("clips", "shards"):
        shutil.rmtree(plan.final / name, ignore_errors=True)
    (plan.final / "shards.json").unlink(missing_ok=True)


def _write_info(
    plan: Plan, metas: list[dict], shards: list[dict], metadata: dict, *, frames: bool
) -> None:
    labels = tuple(plan.manifest.classes)
    features = frame_features(plan.spec) if frames else clip_features(labels, plan.spec)
    info = _builder(plan, features, metadata, frames=frames).info
    folder = plan.staging / "frames" if frames else plan.staging
    found = []
    for split in splits_of(plan.manifest):
        own = [shard for shard in shards if shard["split"] == split]
        count = lambda i: len(metas[i]["ticks"]) if frames else 1
        template = _template(plan, split, frames=frames)
        size = sum(Path(_shard_path(plan, shard, frames=frames)).stat().st_size for shard in own)
        lengths = [sum(count(i) for i in shard["clips"]) for shard in own]
        found.append(
            splits_lib.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    info.set_splits(splits_lib.SplitDict(found))
    info.write_to_directory(folder)


def _builder(plan: Plan, features, metadata: dict, *, frames: bool) -> tfds.core.DatasetBuilder:
    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = f"{plan.folder.name}_frames" if frames else plan.folder.name

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Clips prepared by vivit from a manifest.",
                features=features,
                metadata=tfds.core.MetadataDict(metadata),
            )

        def _split_generators(self, dl_manager):
            return {}

        def _generate_examples(self):
            yield from ()

    Prepared.VERSION = tfds.core.Version(VERSION)
    return Prepared(data_dir=plan.folder.parent, file_format="array_record")
