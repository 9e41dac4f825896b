"""Times of functions that take turns, so that a machine's other work falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Seconds(NamedTuple):
    """Medians: of CPU time, and until the result is there."""

    cpu: float
    wall: float


def take_turns(calls: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, Seconds]:
    """Returns name -> medians over `rounds` in which all are called, after one that warms up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = lambda taken: Seconds(*map(statistics.median, zip(*taken, strict=True)))
    return {name: medians(taken) for name, taken in times.items()}
