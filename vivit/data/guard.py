"""Decoders at arm's length: each thread has a child process that decodes for it.

A decoder that crashes or hangs takes its child with it and nothing else: the call raises Damaged
and the next one gets a new child.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vivit.data.decode import Damaged, Index

TIMEOUT = 60.0  # seconds for one call
ROOT = Path(__file__).parents[2]
counts: Counter[str] = Counter()  # of this process: "started", "crashed", "timed out"
_own = threading.local()


def index(
    path: str | None = None, data: bytes = b"", *, timeout: float = TIMEOUT, **arguments: Any
) -> Index:
    """decode.index of a path, or of a file's bytes, in this thread's child."""
    values, _ = call("index", path, data, timeout=timeout, **arguments)
    return Index(**values)


def read(
    path: str | None = None, data: bytes = b"", *, timeout: float = TIMEOUT, **arguments: Any
) -> np.ndarray:
    """decode.read in this thread's child: uint8 [F, H, W, 3]."""
    values, frames = call("read", path, data, timeout=timeout, **arguments)
    return frames.reshape(values["shape"])


def call(
    function: str,
    path: str | None = None,
    data: bytes = b"",
    *,
    timeout: float = TIMEOUT,
    **arguments: Any,
) -> tuple[dict[str, Any], np.ndarray]:
    """What a function of child.py gives for a path or for bytes: values and uint8 [bytes]."""
    if not hasattr(_own, "child"):
        _own.child = Child()
    try:
        return _own.child.call(function, path, data, timeout=timeout, **arguments)
    except _Gone as gone:
        _own.child.close()
        del _own.child
        counts[gone.how] += 1
        raise Damaged(gone.how, str(gone)) from None


class _Gone(Exception):
    def __init__(self, how: str, message: str) -> None:
        super().__init__(message)
        self.how = how


class Child:
    """One process of child.py and the file that it answers in."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):  # not in /dev/shm, which containers make small
            self.shared = os.memfd_create("vivit")
        else:
            with tempfile.TemporaryFile() as file:
                self.shared = os.dup(file.fileno())
        # Interpreters start faster without what the user's environment adds to them.
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vivit.data.child", str(self.shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[self.shared],
            bufsize=0,
            env={**os.environ, **threads, "PYTHONPATH": _path()},
            start_new_session=True,  # Ctrl-C is for the run, which closes its children
        )
        self._close = weakref.finalize(self, _end, self.process, self.shared)
        counts["started"] += 1

    def call(
        self, function: str, path: str | None, data: bytes, *, timeout: float, **arguments: Any
    ) -> tuple[dict[str, Any], np.ndarray]:
        if path is not None:
            arguments["path"] = path
        request = {
            "function": function,
            "arguments": arguments,
            "seconds": timeout,
            "size": len(data),
        }
        try:
            self._write(json.dumps(request).encode() + b"\n")
            self._write(data)
        except BrokenPipeError:
            pass  # what became of it is told by the missing answer
        answer = json.loads(self._line(timeout + 5))  # the child's own alarm rings before
        if "error" in answer:
            raise Damaged(answer["kind"], answer["error"])
        out = np.empty(answer["bytes"], np.uint8)
        done = 0
        while done < len(out):
            done += os.preadv(self.shared, [memoryview(out)[done : done + (1 << 30)]], done)
        return answer["values"], out

    def close(self) -> None:
        self._close()

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def _line(self, timeout: float) -> bytes:
        assert self.process.stdout is not None
        line, until = b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], until - time.monotonic())
            part = self.process.stdout.read(1 << 16) if ready else b""
            if not ready:
                raise _Gone("timed out", f"no answer within {timeout:g} s")
            if not part:
                raise self._ended(timeout)
            line += part
        return line

    def _ended(self, timeout: float) -> _Gone:
        code = self.process.wait()
        if code == -14:  # its alarm
            return _Gone("timed out", f"was not decoded within {timeout - 5:g} s")
        return _Gone("crashed", f"the decoder ended with status {code}")


def _path() -> str:
    """Where the child finds this very package, wherever it was imported from."""
    before = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)


def _end(process: subprocess.Popen, shared: int) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    process.wait()
    os.close(shared)
