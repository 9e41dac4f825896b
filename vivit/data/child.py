"""python -m vivit.data.child: answers requests on standard input, one at a time. See guard.py.

A request is a line of JSON (function, arguments, seconds, size) and `size` bytes; an answer is a
line of JSON, and as many bytes as it says in the file that both processes share; no pickles.
"""

import hashlib
import json
import os
import resource
import signal
import sys
from typing import Any

import numpy as np
from av import logging

from vivit.data import decode, encode
from vivit.data.memory import keep_freed_memory

MEMORY = 8 << 30  # bytes of address space: a damaged header must not take the machine's memory


def index(source: str | bytes, **arguments: Any) -> tuple[dict[str, Any], bytes]:
    return decode.index(source, **arguments)._asdict(), b""


def read(source: str | bytes, **arguments: Any) -> tuple[dict[str, Any], np.ndarray]:
    frames = decode.read(source, **arguments)
    return {"shape": frames.shape}, frames


def hash_file(source: str) -> tuple[dict[str, Any], bytes]:
    with open(source, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}, b""


FUNCTIONS = {
    "index": index,
    "read": read,
    "transcode": encode.transcode,
    "hash": hash_file,
}


def answer(shared: int, line: bytes) -> dict[str, Any]:
    """Does what a request asks for; what goes wrong becomes part of the answer."""
    request = json.loads(line)
    arguments = request["arguments"]
    # Ends this process even within a decoder, and where nobody is left to wait for it.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    try:
        payload = sys.stdin.buffer.read(request["size"])
        source = [arguments.pop("path")] if "path" in arguments else [payload]
        values, data = FUNCTIONS[request["function"]](*source, **arguments)
    except decode.Damaged as error:
        return {"kind": error.kind, "error": str(error)}
    except MemoryError:
        return {"kind": "too large", "error": f"needs more than {MEMORY >> 30} GiB; cut it"}
    except Exception as error:  # a mistake of ours, or a library's: it has a name
        kind = "unreadable" if isinstance(error, OSError) else "crashed"
        return {"kind": kind, "error": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    view = memoryview(data).cast("B") if len(data) else b""
    done = 0
    while done < len(view):
        done += os.pwrite(shared, view[done : done + (1 << 30)], done)
    return {"values": values, "bytes": len(view)}


def main() -> None:
    shared = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    keep_freed_memory()
    logging.set_level(None)  # the answers say what was wrong
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    while line := sys.stdin.buffer.readline():
        out.write(json.dumps(answer(shared, line)).encode() + b"\n")


if __name__ == "__main__":
    main()
