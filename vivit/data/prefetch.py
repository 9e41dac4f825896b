"""Batches that are on the devices before a training step asks for them."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from vivit.data.pipeline import Batch, Batches


class Prefetched:
    """Batches that a thread loads and places, `depth` of them ahead of the one in use.

    place: puts a batch on the devices. waited: seconds for which the devices had nothing to do, as
    the next batch was not there.
    """

    def __init__(self, batches: Batches, place: Callable[[Batch], Any], *, depth: int) -> None:
        self.batches, self.waited = batches, 0.0
        self._place = place
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._ahead: deque[Future[tuple[Any, np.ndarray]]] = deque()
        for _ in range(depth):
            self._ahead.append(self._thread.submit(self._load))

    def _load(self) -> tuple[Any, np.ndarray]:
        batch, failures = self.batches.load()
        return self._place(batch), failures

    def get(self, finish: Callable[[], Any]) -> Any:
        """Returns the next batch on the devices.

        finish: waits until the devices have done what they were given; called if the batch is not
        there, so that only the time in which they are idle counts as waiting.
        """
        ready = self._ahead.popleft()
        self._ahead.append(self._thread.submit(self._load))
        if not ready.done():
            finish()
            since = time.perf_counter()
            ready.exception()  # waits
            self.waited += time.perf_counter() - since
        batch, failures = ready.result()
        self.batches.count(failures)  # here, as its log and its errors belong to the main thread
        return batch

    def close(self) -> None:
        """Ends the thread, after the batch that it loads, and the batches."""
        self._thread.shutdown(cancel_futures=True)
        self.batches.close()
