"""Weight files as named arrays, read without running anything that they hold."""

import hashlib
import json
import math
import pickle  # for the name of an error
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import serialization
from safetensors import safe_open

Arrays = dict[str, np.ndarray]


class Archive(NamedTuple):
    """What a path holds. format: "npz", "msgpack", "safetensors" or "torch". config: of the
    config.json beside the weights, or {}. processor: of the preprocessor_config.json, or {}.
    sha256: of every file that was read."""

    path: Path
    format: str
    arrays: Arrays
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    sha256: dict[str, str]


def read(path: str | Path) -> Archive:
    """All arrays of a file, or of the weights in a folder. ValueError for what can't be read."""
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"no file or folder {str(path)!r}; weights are not downloaded: fetch them")
    file = _weights_in(path) if path.is_dir() else path
    form, reader = _reader(file)
    arrays = _without_wrapper(reader(file))
    if not arrays:
        raise ValueError(f"{file} holds no arrays")
    files = [file]
    if form == "safetensors" and file.suffix == ".json":
        files += sorted({file.parent / name for name in _shards(file).values()})
    config = {}
    if form in ("safetensors", "torch"):
        for name in ("config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
            beside = file.parent / name
            if beside.exists():
                config[name] = read_json(beside)
                files.append(beside)
    about = config.pop("config.json", {})
    processor = next(iter(config.values()), {})
    return Archive(path, form, arrays, about, processor, {f.name: sha256(f) for f in files})


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. ValueError for anything else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, no JSON object")
    return value


def _without_wrapper(arrays: Arrays) -> Arrays:
    """Names without "module.", which data-parallel training in PyTorch puts before all of them."""
    start = "module."
    wrapped = bool(arrays) and all(name.startswith(start) for name in arrays)
    return {n.removeprefix(start): a for n, a in arrays.items()} if wrapped else arrays


_NAMES = (  # of weights in a folder; the first that is there counts
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "checkpoint",
)


def _weights_in(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    numbered = [p for p in folder.glob("checkpoint_*") if p.is_file()]
    if len(numbered) == 1:
        return numbered[0]
    raise ValueError(
        f"no weights in {folder}: looked for {', '.join(_NAMES)}, checkpoint_NUMBER; name the file"
    )


def _reader(file: Path) -> tuple[str, Callable[[Path], Arrays]]:
    """By the name, and for a name that says nothing (Scenic's "checkpoint") by the contents."""
    if file.name.endswith(".safetensors.index.json"):
        return "safetensors", _read_shards
    by_suffix = {
        ".npz": ("npz", _read_npz),
        ".safetensors": ("safetensors", _read_safetensors),
        ".bin": ("torch", _read_torch),
        ".pt": ("torch", _read_torch),
        ".pth": ("torch", _read_torch),
        ".pyth": ("torch", _read_torch),
    }
    if file.suffix in by_suffix:
        return by_suffix[file.suffix]
    if zipfile.is_zipfile(file):
        return by_suffix[".npz"]
    return "msgpack", _read_msgpack


@contextmanager
def _readable(file: Path, form: str) -> Iterator[None]:
    """Whatever a reader raises for a damaged file, as one line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file} is damaged or is no {form} file: {error}") from error
    except Exception as error:  # zlib's, zipfile's, tokenize's, the pickle module's, ...
        raise ValueError(f"{file} is damaged or is no {form} file: {error!r}") from error


def _read_npz(file: Path) -> Arrays:
    arrays = {}
    with _readable(file, "npz"), zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                _check_npy_header(info, member)
            with archive.open(info) as member:
                name = info.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"{name} is in it twice")
                array = np.lib.format.read_array(member, allow_pickle=False)
                # numpy has no name for bfloat16 in its files.
                arrays[name] = array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array
    return arrays


def _check_npy_header(info: zipfile.ZipInfo, member: Any) -> None:
    """numpy allocates what a header promises before it reads: the promise must be kept."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{info.filename} has the unknown npy version {version}")
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(member)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, which are never unpickled")
    promised, there = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if promised != there:
        raise ValueError(f"{info.filename} promises {promised} bytes and holds {there}")


def _read_safetensors(file: Path) -> Arrays:
    with _readable(file, "safetensors"):
        try:
            return _tensors(file, "np")
        except (TypeError, AttributeError, KeyError):  # numpy itself knows no bfloat16
            return _tensors(file, "flax")


def _tensors(file: Path, framework: str) -> Arrays:
    with safe_open(file, framework=framework) as opened:
        names = list(opened.keys())
        return {name: np.asarray(opened.get_tensor(name)) for name in names}


def _shards(index: Path) -> dict[str, str]:
    """name of an array -> name of its file, which lies in the index's folder."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index} has no weight_map")
    for name in files.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith("tensors"):
            raise ValueError(f"{index} names {name!r}, which is no safetensors file of its folder")
    return files


def _read_shards(index: Path) -> Arrays:
    files, arrays = _shards(index), {}
    for name in sorted(set(files.values())):
        there = _read_safetensors(index.parent / name)
        wanted = {key for key, file in files.items() if file == name}
        if wanted != set(there):
            wrong = ", ".join(sorted(wanted ^ set(there)))
            raise ValueError(f"{index} and {name} do not agree on: {wrong}")
        arrays |= there
    return arrays


def _read_torch(file: Path) -> Arrays:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{file} is a PyTorch file: install torch to read it, or convert it to safetensors"
        ) from None
    with _readable(file, "PyTorch"):
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise ValueError("it holds more than tensors, and only tensors are read") from None
        for key in ("state_dict", "model_state", "model", "module"):  # as training scripts wrap
            if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
        if not isinstance(loaded, Mapping):
            raise ValueError(f"it holds a {type(loaded).__name__}, no tensors by name")
        tensors = {str(name): v.detach() for name, v in loaded.items() if hasattr(v, "detach")}
        return {
            name: (v.to(torch.float32) if v.is_floating_point() else v).numpy()
            for name, v in tensors.items()
        }


def _read_msgpack(file: Path) -> Arrays:
    with _readable(file, "Flax msgpack"):
        tree = serialization.msgpack_restore(file.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__}, no tree of arrays")
        return dict(_leaves(tree, ""))


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in items:
        if isinstance(value, (Mapping, list, tuple)):
            yield from _leaves(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", np.asarray(value)
