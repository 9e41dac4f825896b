"""Signals that end a run early: the loop finishes its training step and saves a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether a signal requested that this process stops."""

    requested: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Lets the first SIGINT or SIGTERM set `requested`; a second one does what it always does."""
    stop = Stop()

    def request(number, frame):
        stop.requested = True
        restore()

    def restore():
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in before:
        signal.signal(name, request)
    try:
        yield stop
    finally:
        restore()
