"""A trace of some training steps, for xprof and TensorBoard."""

import re
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the training steps `first` to `last` of a run into RUN/profile; None: nothing."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        self._folder, self._steps, self._running = folder / "profile", steps or (0, 0), False

    def before(self, step: int) -> None:
        if step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """result: arrays of the step, which the trace waits for."""
        if self._running and step == self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def parse_profile(text: str) -> tuple[int, int]:
    """Returns the first and the last training step of "100:110"."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--profile={text} is not like 100:110, the first and the last step")
    return int(match[1]), int(match[2])
