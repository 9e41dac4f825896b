"""Weight files as named arrays, read without running anything that they hold."""

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
from flax.traverse_util import flatten_dict
from safetensors import safe_open

from vivit import io

Arrays = dict[str, np.ndarray]


class Archive(NamedTuple):
    """The arrays of a path, by name.

    format: "npz", "msgpack", "safetensors", "torch", or "run".
    config: of the config.json next to the weights, or of the run; {} for none.
    processor: of the preprocessor_config.json next to the weights; {} for none.
    sha256: of every file that was read, by name.
    described: whether the format needs a config.json, which says what model it is.
    """

    path: Path
    format: str
    arrays: Arrays
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    sha256: dict[str, str]
    described: bool = False


class Format(NamedTuple):
    """A file format. described: whether it needs a config.json, which says what model it is."""

    name: str
    read: Callable[[Path], Arrays]
    described: bool = False


PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


def read(path: Path) -> Archive:
    """Returns all arrays of a file, or of the weights in a folder.

    Raises ValueError for what can't be read.
    """
    if not path.exists():
        raise ValueError(f"no file or folder {str(path)!r}; weights are not downloaded: fetch them")
    file = _weights_in(path) if path.is_dir() else path
    form = _format_of(file)
    arrays = _without_wrapper(form.read(file))
    if not arrays:
        raise ValueError(f"{file} holds no arrays")
    files = [file]
    if file.name.endswith(INDEX):
        files += sorted({file.parent / name for name in _shards(file).values()})
    found: dict[str, dict[str, Any]] = {}
    for name in ("config.json", *PROCESSORS) if form.described else ():
        neighbour = file.parent / name
        if neighbour.exists():
            found[name] = read_json_object(neighbour)
            files.append(neighbour)
    hashes = {f.name: io.sha256_of(f) for f in files}
    config = found.pop("config.json", {})
    processor = next(iter(found.values()), {})
    return Archive(path, form.name, arrays, config, processor, hashes, form.described)


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the object of a JSON file. Raises ValueError for anything else."""
    try:
        value = io.read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def flat_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of a tree of parameters by path, such as "stage_0/norm/scale"."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    return flat


def _without_wrapper(arrays: Arrays) -> Arrays:
    """Removes "module.", which data-parallel training in PyTorch puts before all names."""
    start = "module."
    wrapped = bool(arrays) and all(name.startswith(start) for name in arrays)
    return {n.removeprefix(start): a for n, a in arrays.items()} if wrapped else arrays


INDEX = ".safetensors.index.json"
_NAMES = (  # of weights in a folder; the first that exists counts
    "model.safetensors",
    f"model{INDEX}",
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


def _format_of(file: Path) -> Format:
    """By the name, or for a name without a known suffix (Scenic's "checkpoint") the contents."""
    torch = Format("torch", _read_torch, described=True)
    npz = Format("npz", _read_npz)
    by_suffix = {
        INDEX: Format("safetensors", _read_shards, described=True),
        ".npz": npz,
        ".safetensors": Format("safetensors", _read_safetensors, described=True),
        ".bin": torch,
        ".pt": torch,
        ".pth": torch,
        ".pyth": torch,
    }
    for suffix, form in by_suffix.items():
        if file.name.endswith(suffix):
            return form
    return npz if zipfile.is_zipfile(file) else Format("msgpack", _read_msgpack)


@contextmanager
def _readable(file: Path, form: str) -> Iterator[None]:
    """Turns whatever a reader raises for a damaged file into a ValueError of one line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file} is damaged or is not a {form} file: {error}") from error
    except Exception as error:  # zlib's, zipfile's, tokenize's, the pickle module's, ...
        raise ValueError(f"{file} is damaged or is not a {form} file: {error!r}") from error


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
    """Raises ValueError where a header promises more or less than the member holds: NumPy allocates
    what is promised before it reads."""
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
    promised, held = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if promised != held:
        raise ValueError(f"{info.filename} promises {promised} bytes and holds {held}")


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
    """Returns array -> its file, by name; the files lie in the index's folder."""
    files = read_json_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index} has no weight_map")
    for name in files.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith("tensors"):
            raise ValueError(
                f"{index} names {name!r}, which is not a safetensors file of its folder"
            )
    return files


def _read_shards(index: Path) -> Arrays:
    files, arrays = _shards(index), {}
    for name in sorted(set(files.values())):
        shard = _read_safetensors(index.parent / name)
        wanted = {key for key, file in files.items() if file == name}
        if wanted != set(shard):
            wrong = ", ".join(sorted(wanted ^ set(shard)))
            raise ValueError(f"{index} and {name} do not agree on: {wrong}")
        arrays |= shard
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
            raise ValueError(f"it holds a {type(loaded).__name__}, not tensors by name")
        tensors = {str(name): v.detach() for name, v in loaded.items() if hasattr(v, "detach")}
        return {
            name: (v.to(torch.float32) if v.is_floating_point() else v).numpy()
            for name, v in tensors.items()
        }


def _read_msgpack(file: Path) -> Arrays:
    with _readable(file, "Flax msgpack"):
        tree = serialization.msgpack_restore(file.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__}, not a tree of arrays")
        return dict(_leaves(tree, ""))


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in items:
        if isinstance(value, (Mapping, list, tuple)):
            yield from _leaves(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", np.asarray(value)
