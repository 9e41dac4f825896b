"""The files of a manifest: found below the data root, and never outside it."""

import hashlib
import os
import stat
from pathlib import Path
from urllib.parse import unquote

import fsspec

from vivit.data.decode import Damaged

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")


def is_uri(path: str | Path) -> bool:
    return "://" in str(path)


def data_root(root: str | Path | None, manifest: str | Path) -> str:
    """A folder or a URI where paths begin; the manifest's folder, where none is given."""
    base = str(Path(manifest).parent if root is None else root)
    if not is_uri(base) and not os.path.isdir(base):
        raise ValueError(f"the data root {base!r} is no folder; give the right --root")
    return base


def locate(root: str | Path, path: str) -> str:
    """The path of a regular file below `root`, links resolved; of a URI below it, the URI.

    Damaged for what is missing, not a file, not readable, or elsewhere.
    """
    root, path = str(root).removeprefix("file://"), path.removeprefix("file://")
    if is_uri(root) or is_uri(path):
        uri = path if is_uri(path) else f"{root.rstrip('/')}/{path}"
        steps = unquote(uri).split("/")
        if not uri.startswith(f"{root.rstrip('/')}/") or ".." in steps or "::" in path:
            raise Damaged("outside", f"is not below the data root {root}")
        return uri
    if "\0" in path:
        raise Damaged("missing", "has a zero byte in its path")
    base = os.path.realpath(root)
    real = os.path.realpath(os.path.join(base, path))
    if os.path.commonpath([base, real]) != base:
        raise Damaged("outside", f"is not below the data root {root}")
    try:
        mode = os.stat(real)
    except FileNotFoundError:
        raise Damaged("missing", "is not there") from None
    except OSError as error:
        raise Damaged("unreadable", error.strerror or str(error)) from None
    if not stat.S_ISREG(mode.st_mode):
        kind = "directory" if stat.S_ISDIR(mode.st_mode) else "device, pipe or socket"
        raise Damaged("not a file", f"is a {kind}")
    if not mode.st_size:
        raise Damaged("damaged", "has no bytes")
    if not os.access(real, os.R_OK):
        raise Damaged("unreadable", "may not be read by this user")
    return real


def fetch(located: str, *, sha256: str = "") -> tuple[str | None, bytes]:
    """What a decoder is given: a local path, or the bytes of a URI, or of a file with a checksum.

    With `sha256` the bytes that were checked are the bytes that are decoded.
    """
    if not is_uri(located) and not sha256:
        return located, b""
    try:
        with fsspec.open(located, "rb") if is_uri(located) else open(located, "rb") as file:
            data = file.read()
    except Exception as error:  # whatever the file system behind a URI raises
        raise Damaged("unreadable", f"{type(error).__name__}: {error}") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged("damaged", "is not the file that the manifest's sha256 is of")
    return None, data


def videos_below(root: str | Path) -> list[str]:
    """Paths, relative to `root` and sorted, of all files that are named like videos."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(folder, name), root))
    if not found:
        raise ValueError(f"no video files ({', '.join(SUFFIXES)}) below {str(root)!r}")
    return sorted(found)
