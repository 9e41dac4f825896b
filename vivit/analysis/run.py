"""A trained run, opened to look at."""

from pathlib import Path

from vivit.run import Run


def open_run(
    workdir: str | Path,
    *,
    checkpoint: str = "best",
    split: str = "test",
    data_root: str | None = None,
) -> Run:
    """Returns a folder that vivit.train made, opened at the checkpoint "best", "latest" or a step.

    data_root: where the data sets are; None for where the run had them.
    Raises ValueError if the folder holds no run or no such checkpoint.
    """
    run = Run(workdir, checkpoint, split, data_root)
    _ = run.step
    return run
