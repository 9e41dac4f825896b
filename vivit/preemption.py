"""Signals that end a run early: the loop finishes its training step and saves a checkpoint."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields stop(step), to be asked after every training step: whether the run ends with it.

    The first SIGINT or SIGTERM to any process of the run stops all of them after the same step. A
    second SIGINT, and in a single process a second SIGTERM, does what it always does.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    requested = False

    def restore():
        for number in handled:
            signal.signal(number, before[number])

    def request(number, frame):
        nonlocal requested
        requested = True
        restore()

    def forward(number, frame):
        restore()
        os.kill(os.getpid(), signal.SIGTERM)

    if jax.process_count() == 1:
        handled, handler, stop = SIGNALS, request, lambda step: requested
    else:  # the service that JAX's processes share has a handler of SIGTERM
        handled, handler = SIGNALS[:1], forward
        stop = multihost_utils.reached_preemption_sync_point
    for number in handled:
        signal.signal(number, handler)
    try:
        yield stop
    finally:
        restore()
