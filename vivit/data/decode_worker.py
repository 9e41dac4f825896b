"""python -m vivit.data.decode_worker: answers requests on standard input; see decode_pool.py.

A request is a line of JSON (function, arguments, seconds, size) and `size` bytes; an answer is a
line of JSON and as many bytes as it says; no pickles.
"""

import hashlib
import importlib
import json
import os
import resource
import signal
import sys
from typing import Any

import numpy as np
from av import logging

from vivit.data import decode
from vivit.data.memory import keep_freed_memory
from vivit.data.video import ClipReadError

MEMORY = 8 << 30  # bytes of address space: a damaged header must not take the machine's memory


def index(source: str | bytes, **arguments: Any) -> tuple[dict[str, Any], bytes]:
    return decode.index(source, **arguments)._asdict(), b""


def read(source: str | bytes, **arguments: Any) -> tuple[dict[str, Any], np.ndarray]:
    frames = decode.read(source, **arguments)
    return {"shape": frames.shape}, frames


def hash_file(source: str) -> tuple[dict[str, Any], bytes]:
    with open(source, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}, b""


def answer(line: bytes) -> tuple[dict[str, Any], Any]:
    """Runs the function of a request, "module:name"; returns its result or error, and its bytes."""
    request = json.loads(line)
    arguments = request["arguments"]
    # Ends this process even within a decoder. It counts CPU time: how busy the machine is must not
    # decide which clips a batch has.
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    try:
        payload = sys.stdin.buffer.read(request["size"])
        source = [arguments.pop("path")] if "path" in arguments else [payload]
        module, name = request["function"].split(":")
        values, data = getattr(importlib.import_module(module), name)(*source, **arguments)
    except ClipReadError as error:
        return _failure(error.kind, str(error))
    except MemoryError:
        return _failure("too large", f"needs more than {MEMORY >> 30} GiB; cut it")
    except Exception as error:  # a mistake of ours, or a library's: it has a name
        kind = "unreadable" if isinstance(error, OSError) else "crashed"
        return _failure(kind, f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    view = memoryview(data).cast("B") if len(data) else b""
    return {"values": values, "bytes": len(view)}, view


def _failure(kind: str, error: str) -> tuple[dict[str, Any], bytes]:
    return {"kind": kind, "error": error, "bytes": 0}, b""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    keep_freed_memory()
    logging.set_level(None)  # the answers say what was wrong
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    while line := sys.stdin.buffer.readline():
        values, data = answer(line)
        out.write(json.dumps(values).encode() + b"\n")
        out.write(data)
        out.flush()


if __name__ == "__main__":
    main()
