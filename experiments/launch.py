"""python -m experiments.launch --config=FILE --sweep=NAME: trains and evaluates a sweep's runs.

A sweep is a generator `sweep_NAME` in the config's file that yields overrides such as
{"model.kernel": "chunked"}. The runs go one after another on this machine; one that fails is
reported and the others continue. Launched again, finished runs are skipped and interrupted ones
resume.
"""

import importlib.util
import inspect
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from vivit.cli import make_parser, run_command
from vivit.config import as_config, renamed
from vivit.run import Run
from vivit.settings import Config


class SweepRun(NamedTuple):
    """One run of a sweep: the name of its folder, and what it changes of the config."""

    name: str
    overrides: dict[str, Any]


def load_sweep(file: str, name: str) -> list[SweepRun]:
    """Returns the runs of a sweep.

    Raises ValueError that lists all overrides that the config does not take.
    """
    module = _load(file)
    sweeps = {
        key.removeprefix("sweep_"): value
        for key, value in vars(module).items()
        if key.startswith("sweep_") and inspect.isfunction(value)
    }
    if name not in sweeps:
        raise ValueError(f"{file} has no sweep {name!r}; it has: {', '.join(sorted(sweeps))}")
    runs, problems = [], []
    for overrides in sweeps[name]():
        problems += _problems(module.get_config(), overrides)
        runs.append(SweepRun(_name(overrides), dict(overrides)))
    names = [run.name for run in runs]
    problems += [f"two runs are {n}" for n in sorted(set(names)) if names.count(n) > 1]
    if problems:
        listed = "\n  ".join(dict.fromkeys(problems))
        raise ValueError(f"sweep {name!r} of {file}:\n  {listed}")
    return runs


def launch(file: str, runs: list[SweepRun], folder: Path) -> list[str]:
    """Trains and evaluates the runs in sub-folders; returns the names of those that failed."""
    failed = []
    for number, run in enumerate(runs, start=1):
        title = f"[{number}/{len(runs)}] {run.name}"
        workdir = folder / run.name
        if _done(workdir, _config(file, run.overrides)):
            print(f"{title}: done already", flush=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{title}: running", flush=True)
        started, log = time.monotonic(), folder / f"{run.name}.log"
        with open(log, "a") as output:
            ok = all(
                subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode == 0
                for command in commands(file, run, workdir)
            )
        seconds = time.monotonic() - started
        if ok:
            print(f"{title}: {_last_line(log)} ({seconds:.0f} s)", flush=True)
        else:
            failed.append(run.name)
            print(
                f"{title}: FAILED after {seconds:.0f} s: {_last_line(log)} (see {log})", flush=True
            )
    return failed


def commands(file: str, run: SweepRun, workdir: Path) -> Iterator[list[str]]:
    """Yields the command lines of a run: training, then the evaluation of its best checkpoint."""
    overrides = [f"--config.{key}={value}" for key, value in run.overrides.items()]
    python = [sys.executable, "-m"]
    yield [*python, "vivit.train", f"--config={file}", f"--workdir={workdir}", *overrides]
    yield [*python, "vivit.evaluate", f"--workdir={workdir}"]


def _load(file: str) -> ModuleType:
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.exists() or spec is None or spec.loader is None:
        raise ValueError(f"no config file {file!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _problems(config: Any, overrides: Mapping[str, Any]) -> list[str]:
    try:
        config.update_from_flattened_dict(overrides)
        as_config(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = str(error).strip("\"'").replace("\\n", " ")
        return [f"{dict(overrides)}: {text} {renamed(overrides)}".strip()]
    return []


def _config(file: str, overrides: Mapping[str, Any]) -> Config:
    config = _load(file).get_config()
    config.update_from_flattened_dict(overrides)
    return as_config(config)


def _done(workdir: Path, config: Config) -> bool:
    """Returns whether a run with this very config was trained to its last step and evaluated."""
    run = Run(workdir)
    if not (workdir / "config.json").exists() or not any(workdir.glob("eval/test_*.json")):
        return False
    # A run's config records the hashes of the weights that it started from.
    recorded = replace(run.config, init=replace(run.config.init, sha256=config.init.sha256))
    return recorded == config and run.finished  # vivit.train refuses another config


def _name(overrides: Mapping[str, Any]) -> str:
    """Returns a folder's name, such as family=joint,seed=0."""

    def short(value: Any) -> str:
        text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return text.replace("/", "_")

    return ",".join(f"{k.rsplit('.', 1)[-1]}={short(v)}" for k, v in overrides.items()) or "base"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "experiments.launch",
        __doc__,
        "python -m experiments.launch --config=configs/ablate_attention.py --sweep=family",
        "python -m experiments.launch --config=my_sweep.py --sweep=kernel --dry-run",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a config that has generators of sweeps"
    )
    parser.add_argument(
        "--sweep", required=True, metavar="NAME", help="of a generator sweep_NAME in that file"
    )
    parser.add_argument(
        "--runs",
        default="runs",
        metavar="FOLDER",
        help="runs go to FOLDER/CONFIG/SWEEP/NAME (default: runs)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    arguments = parser.parse_args(argv)
    runs = load_sweep(arguments.config, arguments.sweep)
    folder = Path(arguments.runs, Path(arguments.config).stem, arguments.sweep)
    if arguments.dry_run:
        for run in runs:
            for command in commands(arguments.config, run, folder / run.name):
                print(shlex.join(["python", *command[1:]]))
        return
    failed = launch(arguments.config, runs, folder)
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are done in {folder}")
    if failed:
        sys.exit("failed: " + " ".join(failed))


if __name__ == "__main__":
    run_command(main)
