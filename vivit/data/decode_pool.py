"""A pool of decoder processes with timeouts and crash isolation, for files from elsewhere.

A decoder that crashes or hangs ends its process and nothing else: the call raises ClipReadError
and the next one gets a new process. There are as many as there are calls at a time.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np

from vivit.data.decode import Index
from vivit.data.settings import TIMEOUT_SECONDS
from vivit.data.video import ClipReadError

ROOT = Path(__file__).parents[2]
PATIENCE = 10  # times its timeout: for a worker that waits (for a disk) instead of working
counts: Counter[str] = Counter()  # of this process: "started", "crashed", "timed out"
_idle: deque["Decoder"] = deque()


def index(
    path: str | None = None, data: bytes = b"", *, timeout: float = TIMEOUT_SECONDS, **options: Any
) -> Index:
    """Returns decode.index of a path, or of a file's bytes."""
    values, _ = call("vivit.data.decode_worker:index", path, data, timeout=timeout, **options)
    return Index(**values)


def read(
    path: str | None = None, data: bytes = b"", *, timeout: float = TIMEOUT_SECONDS, **options: Any
) -> np.ndarray:
    """Returns decode.read of a path, or of a file's bytes: uint8 [F, H, W, 3]."""
    values, frames = call("vivit.data.decode_worker:read", path, data, timeout=timeout, **options)
    return frames.reshape(values["shape"])


def sha256_of(path: str, *, timeout: float = TIMEOUT_SECONDS) -> str:
    """Returns the SHA-256 of a file, which may be on a disk that hangs."""
    return call("vivit.data.decode_worker:hash_file", path, timeout=timeout)[0]["sha256"]


def call(
    function: str,
    path: str | None = None,
    data: bytes = b"",
    *,
    timeout: float = TIMEOUT_SECONDS,
    **arguments: Any,
) -> tuple[dict[str, Any], np.ndarray]:
    """Returns what "module:name" returns for a path or bytes: values and uint8 [bytes].

    timeout: seconds of CPU time; a decoder that waits is ended after PATIENCE times as long.
    Raises ClipReadError, also if the decoder crashes or takes too long.
    """
    decoder = _next_decoder()
    if path is not None:
        arguments["path"] = path
    request = dict(function=function, arguments=arguments, seconds=timeout, size=len(data))
    try:
        answer, payload = decoder.call(request, data)
    except BaseException:
        decoder.close()  # it may still answer, and the next call must not get that
        raise
    _idle.append(decoder)
    if "error" in answer:
        raise ClipReadError(answer["kind"], answer["error"])
    return answer["values"], payload


def _next_decoder() -> "Decoder":
    while True:
        try:
            decoder = _idle.pop()
        except IndexError:
            return Decoder()
        if decoder.process.poll() is None:
            return decoder
        decoder.close()  # something ended it between two calls


class Decoder:
    """One process of decode_worker.py."""

    def __init__(self) -> None:
        # Interpreters start faster without what the user's environment adds to them.
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vivit.data.decode_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pipesize=1 << 20,
            env={**os.environ, **threads, "PYTHONPATH": _path()},
            start_new_session=True,  # Ctrl-C is for the run, which ends its decoders
        )
        self.close = weakref.finalize(self, _end, self.process)
        counts["started"] += 1

    def call(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        """Returns an answer and its payload. Raises ClipReadError if the process ends."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        # The worker ends itself after that CPU time; the watchdog is for one that waits.
        watchdog = threading.Timer(PATIENCE * request["seconds"], self.process.kill)
        watchdog.start()
        try:
            try:
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.write(data)
                stdin.flush()
            except BrokenPipeError:
                pass  # the missing answer says why
            line = stdout.readline()
            if not line.endswith(b"\n"):
                raise self._ended(request["seconds"], late=not watchdog.is_alive())
            answer = json.loads(line)
            payload = np.empty(answer["bytes"], np.uint8)
            if stdout.readinto(memoryview(payload)) < len(payload):  # pyright: ignore
                raise self._ended(request["seconds"], late=not watchdog.is_alive())
            return answer, payload
        finally:
            watchdog.cancel()

    def _ended(self, seconds: float, *, late: bool) -> ClipReadError:
        code = self.process.wait()
        late = late or code == -signal.SIGPROF
        kind = "timed out" if late else "crashed"
        counts[kind] += 1
        if late:
            return ClipReadError(kind, f"was not decoded within {seconds:g} s of CPU time")
        return ClipReadError(kind, f"the decoder ended with status {code}")


def _path() -> str:
    """Returns a PYTHONPATH with which the worker imports this very package."""
    before = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)


def _end(process: subprocess.Popen) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            try:
                pipe.close()
            except BrokenPipeError:  # a request that was not read
                pass
    process.wait()
