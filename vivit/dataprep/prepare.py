"""From a manifest to a TFDS data set in ArrayRecord, which needs no TensorFlow.

Two steps that any machine can do, `encode_staged` (one clip) and `assemble` (one shard), and a plan
that names their files. A step ends with a file under its final name, so a prepare that was killed
resumes where it was, and threads or Beam's workers (beam.py) do the same work.

    OUT/NAME/1.0.0/          clips: labels, times, size and, in H.264, the video
    OUT/NAME/1.0.0/frames/   the frames, a record each, of the formats jpeg and raw
"""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from vivit.data.files import data_root, is_uri
from vivit.data.manifest import ClipRow, raise_all, read_manifest
from vivit.data.sources import DATA_SETS, open_builder
from vivit.dataprep.shards import (
    SHARD_BYTES,
    assemble,
    finish,
    plan_shards,
    remove_staging,
    splits_of,
)
from vivit.dataprep.staging import Plan, Spec, encode_staged
from vivit.io import locked, read_json, write_json

log = logging.getLogger(__name__)
TRIED = 8  # clips whose sizes say how much room all will take
SOURCES = "sources.json"  # size and time of change of the files


def prepare_registered(name: str, root: str | Path) -> Path:
    """Writes data set `name` of DATA_SETS under `root`, unless it exists; returns its folder.

    A folder gets its final name when it is complete; what an interrupted run leaves is named
    `incomplete.*` and never read.
    """
    builder = DATA_SETS[name].builder(data_dir=root, file_format="array_record")
    folder = Path(builder.data_dir)
    if not folder.exists():
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        builder.download_and_prepare()
    open_builder(folder)  # raises ValueError if it is not complete
    return folder


def prepare_manifest(
    manifest: str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    name: str = "",
    spec: Spec = Spec(),
    max_bad_fraction: float = 0.1,
    allow_shared: bool = False,
    run: Callable[..., None] | None = None,
) -> Path:
    """Prepares a manifest's clips under OUT/NAME, or resumes; returns the final folder.

    root: where the paths begin; None for the manifest's folder. name: "" for the manifest's name.
    max_bad_fraction: of clips that may be left out as damaged; they are listed in skipped.csv.
    allow_shared: whether two splits may hold the same clip. run: see `run_locally`.
    Raises ValueError if the manifest is wrong or, after a few clips, the disk too small.
    """
    path = Path(manifest)
    name = name or path.stem.lower().replace("-", "_").replace(".", "_")
    if not name.isidentifier() or not name.islower():
        raise ValueError(f"{name!r} can't name a TFDS data set: use --name=lower_case_words")
    if name in DATA_SETS:
        raise ValueError(f"{name!r} is a registered data set; give the manifest's another --name")
    rows = read_manifest(path)
    plan = Plan(rows, data_root(root, path), Path(out) / name, spec)
    with locked(plan.folder):
        if plan.final.exists():
            _require_same(plan.final / "plan.json", plan)
            _require_same_files(plan.final / SOURCES, plan)
            remove_staging(plan)  # after a kill between the last name and this
            return plan.final
        _begin(plan)
        _check_disk_space(plan)
        (run or run_locally)(plan, encode_staged, range(len(rows.clips)), "clip")
        metas = [read_json(plan.staged(i, ".json")) for i in range(len(rows.clips))]
        _check_bad(plan, metas, max_bad_fraction)
        shared = _shared(plan, metas)
        if shared and not allow_shared:
            raise_all("splits share clips; take them out, or use --allow-shared", shared)
        shards = plan_shards(plan, metas)
        _freeze_shard_plan(plan, shards)
        (run or run_locally)(plan, assemble, range(len(shards)), "shard")
        finish(plan, metas, shards)
    return plan.final


def run_locally(
    plan: Plan, step: Callable[[Plan, int], None], numbers: Iterable[int], unit: str
) -> None:
    """Runs a step for all numbers, on all cores, with a progress bar."""
    numbers = list(numbers)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(step, plan, i) for i in numbers]
        try:
            for future in tqdm(futures, unit=unit, disable=not sys.stderr.isatty()):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _plan_json(plan: Plan) -> dict[str, Any]:
    clips = json.dumps([asdict(clip) for clip in plan.manifest.clips])
    classes = {k: v.described() for k, v in plan.manifest.classes.items()}
    spec = asdict(plan.spec)
    del spec["limits"]
    digest = hashlib.sha256((clips + json.dumps(classes)).encode()).hexdigest()
    place = plan.root if is_uri(plan.root) else os.path.realpath(plan.root)
    root = hashlib.sha256(os.fsencode(place)).hexdigest()
    count = len(plan.manifest.clips)
    return {"manifest": digest, "root": root, "clips": count, "spec": spec}


def _require_same(path: Path, plan: Plan) -> None:
    if not path.exists() or read_json(path) != _plan_json(plan):
        raise ValueError(
            f"{path.parent} was made from another manifest or with other options; "
            "give another --name, or move that folder away"
        )


def _source_files(plan: Plan) -> dict[str, list[int]]:
    """Returns size and time of change (in ns) of each local file that exists."""
    found = {}
    for clip in plan.manifest.clips:
        path = clip.path.rsplit("#", 1)[0] if clip.is_record else clip.path
        if path not in found and not is_uri(plan.root) and not is_uri(path):
            try:
                stat = os.stat(os.path.join(plan.root, path))
            except OSError:
                continue
            found[path] = [stat.st_size, stat.st_mtime_ns]
    return found


def _require_same_files(path: Path, plan: Plan) -> None:
    """Raises ValueError if files were replaced by others of the same name; missing ones are none
    of it, as they may have been deleted after the clips were written."""
    recorded = read_json(path) if path.exists() else {}  # 0.2.0 wrote none
    now = _source_files(plan)
    changed = [name for name, stat in recorded.items() if now.get(name, stat) != stat]
    raise_all(
        f"{len(changed)} files have changed since {path.parent} was started; give another --name, "
        "or move that folder away",
        changed,
    )


def _begin(plan: Plan) -> None:
    path = plan.staging / "plan.json"
    decided = (plan.staging / "shards.json").exists()  # then written shards have deleted clips
    if path.exists() and not decided and not any(plan.staging.glob("clips/*/*.clip")):
        shutil.rmtree(plan.staging)  # nothing was done that could be lost
    if path.exists():
        _require_same(path, plan)
        _require_same_files(plan.staging / SOURCES, plan)
        staged = list((plan.staging / "clips").glob("*/*.json"))
        if not decided:  # tries again to read what failed
            for failed in [path for path in staged if "error" in read_json(path)]:
                failed.unlink()
                staged.remove(failed)
        log.info("resumes: %d of %d clips are done", len(staged), len(plan.manifest.clips))
    else:
        write_json(plan.staging / SOURCES, _source_files(plan), indent=None)
        write_json(path, _plan_json(plan))


def _freeze_shard_plan(plan: Plan, shards: list[dict[str, Any]]) -> None:
    """Writes which clips are in which shard, once: some shards may be written already."""
    path = plan.staging / "shards.json"
    if not path.exists():
        write_json(path, shards, indent=None)
    elif read_json(path) != shards:
        raise ValueError(f"{plan.staging} was changed; move it away and prepare again")


def _check_disk_space(plan: Plan) -> None:
    """Raises ValueError if the disk is too small, judged by clips from all over the manifest."""
    count = len(plan.manifest.clips)
    tried = sorted({round(x) for x in np.linspace(0, count - 1, min(TRIED, count))})
    run_locally(plan, encode_staged, tried, "clip")
    metas = [read_json(plan.staged(i, ".json")) for i in range(count) if _is_staged(plan, i)]
    sizes = [meta["bytes"] for meta in metas if "bytes" in meta]
    if not sizes:
        return  # all are damaged, which is another error
    left = np.mean(sizes) * (count - len(metas))
    # Staged clips are deleted after their shard is written: for a moment they exist twice.
    need = int(1.1 * left) + 2 * min(SHARD_BYTES, int(np.mean(sizes) * count))
    free = shutil.disk_usage(plan.staging).free
    if need > free:
        raise ValueError(
            f"{plan.folder} needs about {need / 1e9:.1f} GB more (judged by {len(sizes)} clips), "
            f"and its disk has {free / 1e9:.1f} GB left; choose another folder, --format or "
            "--short-side"
        )


def _is_staged(plan: Plan, i: int) -> bool:
    return plan.staged(i, ".json").exists()


def _check_bad(plan: Plan, metas: list[dict], max_bad_fraction: float) -> None:
    clips = plan.manifest.clips
    bad = [(clips[i], meta) for i, meta in enumerate(metas) if "error" in meta]
    kinds = Counter(meta["kind"] for _, meta in bad)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if len(bad) == len(clips) or len(bad) > max_bad_fraction * len(clips):
        lines = [f"{clip.name}: {meta['error']}" for clip, meta in bad]
        raise_all(
            f"{len(bad)} of {len(clips)} clips below {plan.root} can't be read ({counts}), "
            f"more than --max-bad-fraction={max_bad_fraction:g}; is --root right? See python -m "
            "vivit.data check",
            lines,
        )
    lost = [s for s in splits_of(plan.manifest) if all(c.split != s for c in _good(plan, metas))]
    raise_all("splits without a clip that can be read", lost)
    if bad:
        log.info("left out %d of %d clips: %s", len(bad), len(clips), counts)


def _good(plan: Plan, metas: list[dict]) -> list[ClipRow]:
    return [plan.manifest.clips[i] for i, meta in enumerate(metas) if "error" not in meta]


def _shared(plan: Plan, metas: list[dict]) -> list[str]:
    """Returns problems: clips of the same content in different splits."""
    seen: dict[str, ClipRow] = {}
    problems = []
    for clip, meta in zip(plan.manifest.clips, metas, strict=True):
        if "error" in meta:
            continue
        other = seen.setdefault(meta["content"], clip)
        if other.split != clip.split:
            problems.append(f"{other.name} ({other.split}) is {clip.name} ({clip.split})")
    return problems
