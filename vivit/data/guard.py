"""Decoders at arm's length: child processes that decode.

A decoder that crashes or hangs takes its child with it and nothing else: the call raises Damaged
and the next one gets a new child.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np

from vivit.data.decode import Damaged, Index

TIMEOUT = 60.0  # seconds for one call
ROOT = Path(__file__).parents[2]
KEPT = 64 << 20  # bytes of an answer whose memory a child keeps for the next
counts: Counter[str] = Counter()  # of this process: "started", "crashed", "timed out"
_idle: deque["Child"] = deque()  # children between two calls


def index(
    path: str | None = None, data: bytes = b"", *, timeout: float = TIMEOUT, **arguments: Any
) -> Index:
    """decode.index of a path, or of a file's bytes, in a child."""
    values, _ = call("index", path, data, timeout=timeout, **arguments)
    return Index(**values)


def read(
    path: str | None = None, data: bytes = b"", *, timeout: float = TIMEOUT, **arguments: Any
) -> np.ndarray:
    """decode.read in a child: uint8 [F, H, W, 3]."""
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
    child = _take()
    try:
        answer = child.call(function, path, data, timeout=timeout, **arguments)
    except Damaged:
        _idle.append(child)
        raise
    except _Gone as gone:
        child.close()
        counts[gone.how] += 1
        raise Damaged(gone.how, str(gone)) from None
    except BaseException:
        child.close()  # it may still answer, and the next call must not get that
        raise
    _idle.append(child)
    return answer


def _take() -> "Child":
    """A child that waits for work, or a new one: there are as many as calls at a time."""
    try:
        return _idle.pop()
    except IndexError:
        return Child()


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
            [sys.executable, "-P", "-m", "vivit.data.child", str(self.shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[self.shared],
            bufsize=0,
            env={**os.environ, **threads, "PYTHONPATH": _path()},
            start_new_session=True,  # Ctrl-C is for the run, which closes its children
        )
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
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
        until = time.monotonic() + timeout + 5  # the child's own alarm rings before
        try:
            self._write(json.dumps(request).encode() + b"\n", until)
            self._write(data, until)
        except BrokenPipeError:
            pass  # what became of it is told by the missing answer
        answer = json.loads(self._line(timeout, until))
        if "error" in answer:
            raise Damaged(answer["kind"], answer["error"])
        out = np.empty(answer["bytes"], np.uint8)
        done = 0
        while done < len(out):
            moved = os.preadv(self.shared, [memoryview(out)[done : done + (1 << 30)]], done)
            if not moved:
                raise _Gone("crashed", f"the answer ends after {done} of {len(out)} bytes")
            done += moved
        if len(out) > KEPT:
            os.ftruncate(self.shared, 0)  # it is memory
        return answer["values"], out

    def close(self) -> None:
        self._close()

    def _write(self, data: bytes, until: float) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        view = memoryview(data)
        while view:
            _wait(pipe.fileno(), select.POLLOUT, until)
            view = view[pipe.write(view) or 0 :]

    def _line(self, timeout: float, until: float) -> bytes:
        pipe = self.process.stdout
        assert pipe is not None
        line = b""
        while not line.endswith(b"\n"):
            _wait(pipe.fileno(), select.POLLIN, until)
            part = pipe.read(1 << 16)
            if not part:
                raise self._ended(timeout)
            line += part
        return line

    def _ended(self, timeout: float) -> _Gone:
        code = self.process.wait()
        if code == -14:  # its alarm
            return _Gone("timed out", f"was not decoded within {timeout:g} s")
        return _Gone("crashed", f"the decoder ended with status {code}")


def _wait(descriptor: int, event: int, until: float) -> None:
    """Until a pipe can be used; poll, as select knows the first 1,024 descriptors only."""
    poll = select.poll()
    poll.register(descriptor, event)
    left = until - time.monotonic()
    if left <= 0 or not poll.poll(1000 * left):
        raise _Gone("timed out", "no answer in time")


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
