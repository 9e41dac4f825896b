"""Runs of vivit.train, their single checkpoints, and the portable folders that `export` writes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax.traverse_util import unflatten_dict

from vivit.checkpoint import Checkpoints
from vivit.config import IMPORTS, import_modules, read_data_record, read_workdir
from vivit.io import sha256_of
from vivit.model.params import unstack_layers
from vivit.model.settings import ModelSettings
from vivit.model.upgrade import upgrade_model
from vivit.pretrained.files import Archive, Arrays, flat_params, read_json_object
from vivit.pretrained.sources import LoadHints, SourceModel, source
from vivit.records import record
from vivit.settings import Config
from vivit.tasks import Classify, Objective, make_objective

FORMAT = "vivit"  # in the config.json of a portable folder

State = TypeVar("State")


def is_run(path: Path) -> bool:
    """Returns whether a path is a run's folder or one of its checkpoints."""
    return ((path / "config.json").is_file() and (path / "checkpoints").is_dir()) or (
        path.parent.name == "checkpoints" and (path / "state").is_dir()
    )


def read_run(path: Path, *, checkpoint: str) -> Archive:
    """Returns the parameters of a run: the averaged ones, if it averages.

    checkpoint: "best" (the newest, if none has a score), "latest" or a training step. The path may
    be that of a checkpoint, RUN/checkpoints/STEP.
    """
    with _open(path, checkpoint) as (path, run, task, checkpoints, step):
        params, around = task.split(checkpoints.read_params(step))
        arrays = flat_params({**params, **({"around": around} if around else {})})
    config = path / "config.json"
    hashes = {config.name: sha256_of(config), f"checkpoints/{step}": content_hash(arrays)}
    labels = read_data_record(path).get("class_names", ())
    kind = {"name": run.task.name, "heads": list(run.heads.items()) if run.task.heads else []}
    described = {**read_json_object(config), "labels": labels, "task": kind}
    return Archive(path, "run", arrays, described, {}, hashes)


def read_state(run: str, like: State, *, checkpoint: str) -> State:
    """Returns the whole state of a run's checkpoint, placed as `like`.

    Raises ValueError for a path that is not a run, and for a state with other arrays.
    """
    path = Path(run).expanduser()
    if not is_run(path):
        raise ValueError(f"{path} is not a run of vivit.train, so it has no optimiser to resume")
    with _open(path, checkpoint) as (path, _, _, checkpoints, step):
        try:
            return checkpoints.restore(step, like)[0]
        except ValueError as error:
            raise ValueError(
                f"init.optimizer=True needs the arrays of {path}: optim.name, optim.freeze, "
                "train.average_decay, model.scan and all shapes as there; without it the run's "
                f"parameters alone are taken\n{error}"
            ) from None


@contextmanager
def _open(
    path: Path, checkpoint: str
) -> Iterator[tuple[Path, Config, Objective, Checkpoints, int]]:
    """Yields the folder of a run, its config, task and checkpoints, and the step of the one that is
    named, for the path of a run or of a checkpoint; "best" is the newest if none has a score."""
    if path.parent.name == "checkpoints":
        path, checkpoint = path.parent.parent, path.name
    run = read_workdir(path)
    import_modules(run.imports, copies=path / IMPORTS)
    task = make_objective(run.task.name, run.heads)
    with Checkpoints(path / "checkpoints", best=task.best) as checkpoints:
        try:
            step = checkpoints.resolve(checkpoint)
        except ValueError as error:
            if checkpoint != "best" or "score" not in str(error):
                raise
            step = checkpoints.resolve("latest")
        yield path, run, task, checkpoints, step


def content_hash(arrays: Arrays) -> str:
    """The hash of a checkpoint's arrays: its files may be laid out in many ways."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].shape} {arrays[name].dtype}\n".encode())
        total.update(arrays[name].tobytes())
    return total.hexdigest()


def _recognises(archive: Archive) -> bool:
    return archive.format == "run" or (
        archive.config.get("format") == FORMAT and "model" in archive.config
    )


@source("vivit", about="a run of vivit.train, or a portable folder", recognises=_recognises)
def read_vivit(archive: Archive, hints: LoadHints) -> SourceModel:
    """Returns any model of vivit; scanned layers are unrolled."""
    separator = "/" if archive.format == "run" else "."
    tree = unflatten_dict(dict(archive.arrays), sep=separator)
    around: dict[str, Any] = tree.pop("around", {})  # pyright: ignore[reportAssignmentType]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        arrays, around = (flat_params(unstack_layers(x)) for x in (tree, around))
    settings = record(ModelSettings, upgrade_model(archive.config["model"]), at="model")
    task = archive.config.get("task", {"name": "classify", "heads": []})
    heads = Classify(dict(task["heads"])).heads
    return SourceModel(
        asdict(settings),
        params=arrays,
        around=around,
        origins={path: path.replace("/", separator) for path in arrays},
        labels=tuple(archive.config.get("labels", ())),
        task=task["name"],
        groups={head.label: (head.start, head.start + head.classes) for head in heads},
    )
