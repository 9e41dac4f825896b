"""A trained run, opened to look at."""

from pathlib import Path

from vivit.run import Run


def open_run(workdir: str | Path, *, checkpoint: str = "best", split: str = "test") -> Run:
    """Returns a folder that vivit.train made, opened at the checkpoint "best", "latest" or a step.

    Raises ValueError if the folder holds no run or no such checkpoint.
    """
    run = Run(workdir, checkpoint, split)
    _ = run.step
    return run
