"""Our own checkpoints: a run's folder, one of its checkpoints, or a portable folder."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from vivit.checkpoint import Checkpoints
from vivit.config import import_modules
from vivit.model import as_tuples, unstack_layers
from vivit.pretrained.files import Archive, Arrays, read_json, sha256
from vivit.pretrained.table import Asked, Native, source

FORMAT = "vivit"  # in the config.json of a portable folder


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder or one of its checkpoints."""
    return ((path / "config.json").is_file() and (path / "checkpoints").is_dir()) or (
        path.parent.name == "checkpoints" and (path / "state").is_dir()
    )


def read_run(path: Path, *, checkpoint: str) -> Archive:
    """The parameters of a run: the averaged ones, where it has them.

    checkpoint: "best" (the newest, where none has a score), "latest" or a step. The path may be
    that of a checkpoint itself, RUN/checkpoints/STEP.
    """
    if path.parent.name == "checkpoints":
        path, checkpoint = path.parent.parent, path.name
    config = read_json(path / "config.json")
    import_modules({"imports": config.get("imports", ())})
    with Checkpoints(path / "checkpoints") as checkpoints:
        try:
            step = checkpoints.resolve(checkpoint)
        except ValueError as error:
            if checkpoint != "best" or "score" not in str(error):
                raise
            step = checkpoints.resolve("latest")
        params = checkpoints.read_params(step)
    arrays = flatten_dict(params, sep="/")
    hashes = {
        "config.json": sha256(path / "config.json"),
        f"checkpoints/{step}": _content_hash(arrays),
    }
    return Archive(path, "run", arrays, config, {}, hashes)


def _content_hash(arrays: Arrays) -> str:
    """A checkpoint is many files, laid out in many ways; what counts is in its arrays."""
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
def read_own(archive: Archive, asked: Asked) -> Native:
    """Any of our models; scanned layers are unrolled."""
    config: Mapping[str, Any] = archive.config["model"]
    separator = "/" if archive.format == "run" else "."
    tree = unflatten_dict(dict(archive.arrays), sep=separator)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        tree = unstack_layers(tree)
    arrays = flatten_dict(tree, sep="/")
    native = Native(
        {name: as_tuples(value) for name, value in config.items()},
        params=arrays,
        origins={path: path.replace("/", separator) for path in arrays},
        labels=tuple(archive.config.get("labels", ())),
    )
    return native
