"""Weight files as named arrays, read without running anything that they hold."""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import serialization
from safetensors import SafetensorError, safe_open

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
    arrays = reader(file)
    _check_finite(arrays, file)
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
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, no JSON object")
    return value


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
    except (SafetensorError, zipfile.BadZipFile, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged or is no {form} file: {error!r}") from error
    except (MemoryError, OverflowError, EOFError, AttributeError) as error:
        raise ValueError(f"{file} is damaged or is no {form} file: {error!r}") from error


def _read_npz(file: Path) -> Arrays:
    arrays = {}
    with _readable(file, "npz"), zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                _check_npy_header(info, member)
            with archive.open(info) as member:
                name = info.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
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
    for name in set(files.values()):
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
    import pickle

    try:
        with _readable(file, "PyTorch"):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than tensors, and only tensors are read: {error}"
        ) from None
    for key in ("state_dict", "model_state", "model", "module"):  # as training scripts wrap them
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = {k: v for k, v in loaded.items() if hasattr(v, "detach")}
    return {
        name: value.detach().to(torch.float32).numpy() if value.is_floating_point() else
        value.detach().numpy()
        for name, value in tensors.items()
    }  # fmt: skip


def _read_msgpack(file: Path) -> Arrays:
    with _readable(file, "Flax msgpack"):
        try:
            tree = serialization.msgpack_restore(file.read_bytes())
        except Exception as error:  # msgpack has many of its own
            raise ValueError(str(error) or type(error).__name__) from None
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__}, no tree of arrays")
        return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", np.asarray(value)


def _check_finite(arrays: Arrays, file: Path) -> None:
    if not arrays:
        raise ValueError(f"{file} holds no arrays")
    bad = []
    for name, array in arrays.items():
        if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
            if not np.isfinite(array).all():
                bad.append(name)
    if bad:
        listed = "\n  ".join(bad[:20]) + (f"\n  and {len(bad) - 20} more" if bad[20:] else "")
        raise ValueError(f"{file} has NaN or infinity in {len(bad)} arrays:\n  {listed}")
