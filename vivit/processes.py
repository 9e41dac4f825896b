"""The processes of one run: how they find each other, agree and fail together.

Every process runs the same command. Process 0 writes files and logs; all of them compute.
"""

import argparse
import json
import logging
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vivit.config import differences
from vivit.io import sha256_of

HEARTBEAT = 10  # seconds without a sign of life after which a process is taken for dead
LONGEST_WORK = 24 * 3600  # seconds that the others wait at the end for process 0, as for a report
# Launchers' counts of processes. JAX would give a single process the first device only.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# What JAX says where it knows no cluster, and to a program, such as a notebook, that has used JAX
# before it calls a command's main(): that has the processes that it has.
ALONE = ("coordinator_address should be defined", "must be called before")


class SharedError(ValueError):
    """A mistake that every process of a run knows of, so that each can end in peace."""


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --coordinator, --processes, --process and --wait, for `connected`."""
    group = parser.add_argument_group(
        "several processes",
        "Found without options on Cloud TPU, GKE, Slurm and Open MPI. Elsewhere start the command "
        "once per process, with:",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="an address of process 0 that all can reach"
    )
    group.add_argument(
        "--processes", type=int, metavar="N", help="how many there are; 1: look for no others"
    )
    group.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
    group.add_argument(
        "--wait", type=int, default=300, metavar="SECONDS", help="for the others to start (300)"
    )


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[None]:
    """Joins the processes of a run, by the options of `add_process_arguments`.

    A program that has used JAX already keeps the processes that it has. An exception within ends
    this process at once, so that the others end too, after HEARTBEAT seconds. Raises ValueError if
    the others cannot be reached.
    """
    _join(options)
    if is_first():
        quiet = nullcontext()
    else:
        quiet = redirect_stdout(None)
        for name in ("vivit", "__main__"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with quiet:
            yield
    except (SharedError, SystemExit) as error:  # all processes end
        if is_first():
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        sys.exit(1 if code else 0)
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        # Leaving in peace would wait for the others, which wait for this one.
        if isinstance(error, ValueError):
            print(f"process {jax.process_index()}: error: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        os._exit(1)


def _join(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in ("coordinator", "processes", "process")}
    if given["processes"] == 1 and given["coordinator"] is None:
        return
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(
            "--coordinator=HOST:PORT, --processes=N and --process=I go together; "
            f"{' and '.join(missing)} is not given"
        )
    if missing:
        _join_cluster(options.wait)
    else:
        _join_at(**given, wait=options.wait)


def _join_cluster(wait: int) -> None:
    if any(os.environ.get(name) == "1" for name in COUNTS):
        return
    try:
        _initialize(wait, "this cluster's other processes")
    except Exception as error:  # of a cluster's interface, which may be any
        if any(text in str(error) for text in ALONE):
            return
        raise ValueError(
            f"this cluster's other processes were not found: {error}\n--coordinator=HOST:PORT "
            "--processes=N --process=I name them; --processes=1 looks for none"
        ) from error


def _join_at(coordinator: str, processes: int, process: int, *, wait: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator={coordinator} is not like 10.0.0.1:1234")
    if not 0 <= process < processes:
        raise ValueError(f"--process={process} is not in 0 .. {processes - 1}, the --processes")
    if process:
        _wait_for(host, int(port), wait)
    else:
        _require_free(int(port))
    try:
        _initialize(
            wait, f"all {processes} processes at {coordinator}", coordinator, processes, process
        )
    except RuntimeError as error:
        raise ValueError(f"--coordinator={coordinator}: {error}") from error


def _initialize(wait: int, others: str, *arguments: Any) -> None:
    """Calls jax.distributed.initialize, and ends the process with an error after `wait` seconds;
    jaxlib itself would end it with a stack trace."""

    def give_up():
        message = f"error: {others} did not start in {wait} s; --wait waits longer"
        print(message, file=sys.stderr, flush=True)
        os._exit(1)

    alarm = threading.Timer(wait, give_up)
    alarm.start()
    try:
        jax.distributed.initialize(
            *arguments,
            initialization_timeout=wait + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LONGEST_WORK,
        )
    finally:
        alarm.cancel()


def _require_free(port: int) -> None:
    """Raises ValueError for a port that is taken, with which jaxlib crashes."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen at port {port}: {error}; choose another"
        ) from error


def _wait_for(host: str, port: int, seconds: int) -> None:
    """Waits until a port answers."""
    start = time.monotonic()
    while True:
        try:
            with socket.create_connection((host, port), timeout=5):
                return
        except OSError as error:
            waited = time.monotonic() - start
            if waited > seconds:
                raise ValueError(
                    f"no process 0 at {host}, port {port}, in {waited:.0f} s: {error}. Is it "
                    "running, and is the port open between the machines? --wait waits longer"
                ) from error
            time.sleep(0.5)


def is_first() -> bool:
    """Returns whether this process writes files and logs."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the JSON values that the processes gave, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text), np.int32))
    padded = np.pad(text, (0, int(lengths.max()) - len(text)))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def together(do: Callable[[], Any]) -> None:
    """Calls a function on every process; a ValueError of any is raised on all."""
    problem, cause = None, None
    try:
        do()
    except ValueError as error:
        problem, cause = str(error), error
    problems = {i: message for i, message in enumerate(gather(problem)) if message is not None}
    if cause is not None and jax.process_count() == 1:
        raise cause
    for i, message in problems.items():
        raise SharedError(f"process {i}: {message}" if i else message) from cause


def on_first(do: Callable[[], Any]) -> None:
    """Calls a function on process 0, for which the others wait; its ValueError is raised on all."""
    together(do if is_first() else lambda: None)


def require_shared(path: Path) -> None:
    """Raises ValueError on all processes if one does not see a file that process 0 has written."""

    def look():
        for _ in range(20):  # a network file system may show it later
            if path.exists():
                return
            time.sleep(1)
        raise ValueError(f"{path} is not here; the folder must be one that all processes share")

    together(look)


def agree(record: dict[str, Any]) -> None:
    """Raises ValueError on all processes if they have not the same record and code."""
    if jax.process_count() == 1:
        return
    records = gather({**record, "code": _code()})
    for i, other in enumerate(records):
        lines = differences(records[0], other)
        if lines:
            listed = "\n  ".join(lines[:20])
            raise SharedError(f"process {i} differs from process 0:\n  {listed}")


def _code() -> dict[str, str]:
    """Returns the versions of what computes, and a hash of each file of vivit."""
    folder = Path(__file__).parent
    files = {str(p.relative_to(folder.parent)): sha256_of(p) for p in folder.rglob("*.py")}
    return {"python": platform.python_version(), "jax": jax.__version__, **files}
