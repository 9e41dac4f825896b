"""The files of a manifest: found below the data root, and never outside it."""

import hashlib
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import fsspec

from vivit.data.video import ClipReadError

log = logging.getLogger(__name__)

SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts",
    ".m2ts", ".gif", ".ogv", ".3gp", ".3g2", ".mxf", ".vob", ".dv", ".nut", ".rm",
)  # fmt: skip


def is_uri(path: str | Path) -> bool:
    return "://" in str(path)


def data_root(root: str | Path | None, manifest: str | Path) -> str:
    """Returns the folder or URI where paths begin: the manifest's folder if `root` is None."""
    base = str(Path(manifest).parent if root is None else root)
    if not is_uri(base) and not os.path.isdir(base):
        raise ValueError(f"the data root {base!r} is not a folder; give the right --root")
    return base


def locate(root: str | Path, path: str, *, follow_links: bool = True) -> str:
    """Returns the path of a regular file below `root`, or the URI if the root is one.

    Links below the root may lead anywhere, unless `follow_links` is False; ".." and absolute paths
    may not. Raises ClipReadError for what is missing, not a file, not readable, or outside.
    """
    root, path = str(root).removeprefix("file://"), path.removeprefix("file://")
    if is_uri(root) or is_uri(path):
        return _locate_uri(root, path)
    if "\0" in path:
        raise ClipReadError("missing", "has a zero byte in its path")
    base, joined = os.path.abspath(root), os.path.join(os.path.abspath(root), path)
    if ".." in Path(path).parts or not Path(joined).is_relative_to(base):
        raise ClipReadError("outside", f"is not below the data root {root}")
    if not follow_links and os.path.realpath(joined) != os.path.join(os.path.realpath(base), path):
        raise ClipReadError("outside", "is reached by a symbolic link, and links are refused")
    try:
        mode = os.stat(joined)
    except FileNotFoundError:
        raise ClipReadError("missing", "does not exist") from None
    except OSError as error:
        raise ClipReadError("unreadable", error.strerror or str(error)) from None
    if not stat.S_ISREG(mode.st_mode):
        kind = "directory" if stat.S_ISDIR(mode.st_mode) else "device, pipe or socket"
        raise ClipReadError("not a file", f"is a {kind}")
    if not mode.st_size:
        raise ClipReadError("damaged", "has no bytes")
    if not os.access(joined, os.R_OK):
        raise ClipReadError("unreadable", "may not be read by this user")
    return joined


def _locate_uri(root: str, path: str) -> str:
    below = f"{root.rstrip('/')}/"
    uri = path if is_uri(path) else f"{below}{path}"
    if not uri.startswith(below) or ".." in unquote(uri).split("/") or "::" in path:
        raise ClipReadError("outside", f"is not below the data root {root}")
    return uri


def fetch(located: str, *, sha256: str = "") -> tuple[str | None, bytes]:
    """Returns what a decoder gets: a local path, or the bytes of a URI or of a file with a hash.

    With `sha256` the bytes that were checked are the bytes that are decoded.
    """
    if not is_uri(located) and not sha256:
        return located, b""
    try:
        with fsspec.open(located, "rb") if is_uri(located) else open(located, "rb") as file:
            data = file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # whatever the file system behind a URI raises
        raise ClipReadError("unreadable", f"{type(error).__name__}: {error}") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise ClipReadError("damaged", "is not the file that the manifest's sha256 is of")
    return None, data


def videos_below(root: str | Path, *, follow_links: bool = True, report: bool = False) -> list[str]:
    """Returns the paths, relative to `root` and sorted, of all files that are named like videos.

    report: whether the log says how many other files there are.
    """
    if not os.path.isdir(root):
        raise ValueError(f"{str(root)!r} is not a folder")
    found, others = [], Counter()
    for path in _walk(str(root), (), follow_links):
        name = os.path.basename(path)
        if name.startswith("."):
            continue
        if name.lower().endswith(SUFFIXES):
            found.append(os.path.relpath(path, root))
        else:
            others[os.path.splitext(name)[1].lower() or "no ending"] += 1
    counted = ", ".join(f"{count} of {ending}" for ending, count in others.most_common())
    if not found:
        raise ValueError(
            f"no video files ({', '.join(SUFFIXES)}) below {str(root)!r}"
            + (f"; other files: {counted}" if others else "")
        )
    if others and report:
        log.info("left out %d other files below %s: %s", others.total(), root, counted)
    return sorted(found)


def _walk(folder: str, parents: tuple[str, ...], follow_links: bool) -> Iterator[str]:
    """Yields all files below a folder; a link to one of its parents is not followed."""
    real = os.path.realpath(folder)
    if real in parents or not os.access(folder, os.R_OK | os.X_OK) or not os.path.isdir(folder):
        return
    for entry in os.scandir(folder):
        if entry.is_symlink() and not follow_links:
            continue
        if entry.is_dir():
            yield from _walk(entry.path, (*parents, real), follow_links)
        else:
            yield entry.path
