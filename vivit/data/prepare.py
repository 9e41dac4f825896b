"""From a manifest to a TFDS data set in ArrayRecord, which needs no TensorFlow.

Two steps that any machine can do, `stage` (one clip) and `assemble` (one shard), and a plan that
names their files. What is done is a file under its final name, so a prepare that was killed goes
on where it was, and threads here or Beam's workers (beam.py) do the same work.

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
from tqdm import tqdm

from vivit.data.files import data_root, is_uri
from vivit.data.manifest import Clip, raise_all, read_manifest
from vivit.data.shards import SHARD_BYTES, assemble, finish, plan_shards, splits_of, tidy
from vivit.data.staging import Plan, Spec, read_json, stage
from vivit.io import locked, write_atomically

log = logging.getLogger(__name__)
TRIED = 8  # clips whose sizes tell how much room all will take


def prepare_manifest(
    manifest: str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    name: str = "",
    spec: Spec = Spec(),
    bad_share: float = 0.1,
    allow_shared: bool = False,
    run: Callable[..., None] | None = None,
) -> Path:
    """Prepares a manifest's clips under OUT/NAME, or goes on with it; returns the final folder.

    root: where the paths begin; the manifest's folder. name: the manifest's name.
    bad_share: of clips that may be left out as damaged; they are listed in skipped.csv.
    allow_shared: whether two splits may hold the same clip. run: see `run_here`.
    ValueError if the manifest is wrong or, after a few clips, the disk too small.
    """
    path = Path(manifest)
    name = name or path.stem.lower().replace("-", "_").replace(".", "_")
    if not name.isidentifier() or not name.islower():
        raise ValueError(f"{name!r} can't name a TFDS data set: use --name=lower_case_words")
    rows = read_manifest(path)
    plan = Plan(rows, data_root(root, path), Path(out) / name, spec)
    with locked(plan.folder):
        if plan.final.exists():
            _require_same(plan.final / "plan.json", plan)
            tidy(plan)  # where a kill came between the last name and this
            return plan.final
        _begin(plan)
        _check_room(plan)
        (run or run_here)(plan, stage, range(len(rows.clips)), "clip")
        metas = [read_json(plan.staged(i, ".json")) for i in range(len(rows.clips))]
        _check_bad(plan, metas, bad_share)
        shared = _shared(plan, metas)
        if shared and not allow_shared:
            raise_all("splits share clips; take them out, or use --allow-shared", shared)
        shards = plan_shards(plan, metas)
        _settle_shards(plan, shards)
        (run or run_here)(plan, assemble, range(len(shards)), "shard")
        finish(plan, metas, shards)
    return plan.final


def run_here(
    plan: Plan, step: Callable[[Plan, int], None], numbers: Iterable[int], unit: str
) -> None:
    """Does a step for all numbers, on all cores, with a progress bar."""
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
    classes = {k: asdict(v) for k, v in plan.manifest.classes.items()}
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


def _begin(plan: Plan) -> None:
    path = plan.staging / "plan.json"
    decided = (plan.staging / "shards.json").exists()  # then clips go as their shards come
    if path.exists() and not decided and not any(plan.staging.glob("clips/*/*.clip")):
        shutil.rmtree(plan.staging)  # nothing was done that could be lost
    if path.exists():
        _require_same(path, plan)
        staged = list((plan.staging / "clips").glob("*/*.json"))
        if not decided:  # what could not be read is tried again
            for failed in [path for path in staged if "error" in read_json(path)]:
                failed.unlink()
                staged.remove(failed)
        done = len(staged)
        log.info("going on: %d of %d clips are done", done, len(plan.manifest.clips))
    else:
        write_atomically(path, json.dumps(_plan_json(plan), indent=1) + "\n")


def _settle_shards(plan: Plan, shards: list[dict[str, Any]]) -> None:
    """What is in which shard is decided once: some of them may be written already."""
    path = plan.staging / "shards.json"
    if not path.exists():
        write_atomically(path, json.dumps(shards))
    elif read_json(path) != shards:
        raise ValueError(f"{plan.staging} was changed; move it away and prepare again")


def _check_room(plan: Plan) -> None:
    """ValueError where the disk is too small, by the size of clips from all over the manifest."""
    count = len(plan.manifest.clips)
    tried = sorted({round(x) for x in np.linspace(0, count - 1, min(TRIED, count))})
    run_here(plan, stage, tried, "clip")
    metas = [read_json(plan.staged(i, ".json")) for i in range(count) if _is_staged(plan, i)]
    sizes = [meta["bytes"] for meta in metas if "bytes" in meta]
    if not sizes:
        return  # all damaged: that has its own error
    left = np.mean(sizes) * (count - len(metas))
    # Staged clips go as their shards are written: for a moment the largest are there twice.
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


def _check_bad(plan: Plan, metas: list[dict], bad_share: float) -> None:
    clips = plan.manifest.clips
    bad = [(clips[i], meta) for i, meta in enumerate(metas) if "error" in meta]
    kinds = Counter(meta["kind"] for _, meta in bad)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if len(bad) == len(clips) or len(bad) > bad_share * len(clips):
        lines = [f"{clip.name}: {meta['error']}" for clip, meta in bad]
        raise_all(
            f"{len(bad)} of {len(clips)} clips below {plan.root} can't be read ({told}), more "
            f"than --bad-share={bad_share:g}; is --root right? See python -m vivit.data check",
            lines,
        )
    lost = [s for s in splits_of(plan.manifest) if all(c.split != s for c in _good(plan, metas))]
    raise_all("splits without a clip that can be read", lost)
    if bad:
        log.info("left out %d of %d clips: %s", len(bad), len(clips), told)


def _good(plan: Plan, metas: list[dict]) -> list[Clip]:
    return [plan.manifest.clips[i] for i, meta in enumerate(metas) if "error" not in meta]


def _shared(plan: Plan, metas: list[dict]) -> list[str]:
    """Clips of the same content in different splits."""
    seen: dict[str, Clip] = {}
    problems = []
    for clip, meta in zip(plan.manifest.clips, metas, strict=True):
        if "error" in meta:
            continue
        other = seen.setdefault(meta["content"], clip)
        if other.split != clip.split:
            problems.append(f"{other.name} ({other.split}) is {clip.name} ({clip.split})")
    return problems
