"""How every command runs, logs and fails."""

import argparse
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_command(main: Callable[[], None]) -> None:
    """Runs a command line; a user's mistake is one line on standard error, and exit status 1."""
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")


def show_log() -> None:
    """Shows on standard error what vivit logs, such as the kernel that "auto" chose."""
    logging.basicConfig()
    for handler in logging.getLogger().handlers:  # a library may have made it
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("vivit", "__main__"):  # the second is the module that python -m runs
        logging.getLogger(name).setLevel(logging.INFO)


def add_run_arguments(parser: argparse.ArgumentParser) -> Any:
    """Adds --workdir, --checkpoint, --split and --data-root, which choose parameters and clips.

    Returns the group of --workdir, to which a command may add what can be given instead of it.
    """
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", metavar="RUN", help="the folder of a run")
    add_checkpoint_argument(parser)
    parser.add_argument("--split", default="test", help="a split of the data set (test)")
    parser.add_argument(
        "--data-root",
        metavar="FOLDER",
        help="where the data sets are, if not where the run had them",
    )
    return which


def add_runs_arguments(parser: argparse.ArgumentParser, nargs: Any, *, help: str) -> None:
    """Adds RUN, several of them, and --checkpoint, --split, --clips, --data-root and --out, of
    commands that measure encoders on the first clips of a split."""
    parser.add_argument("runs", nargs=nargs, metavar="RUN", help=help)
    add_checkpoint_argument(parser)
    parser.add_argument("--split", default="validation", help="of the data set (validation)")
    parser.add_argument("--clips", type=int, metavar="N", help="the first N clips (default: all)")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data sets are now")
    parser.add_argument("--out", metavar="FILE", help="where all of it is written as JSON")


def add_film_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir, --video, --checkpoint and --data-root, of commands that show a film."""
    parser.add_argument("--workdir", metavar="RUN", required=True, help="the folder of a run")
    parser.add_argument("--video", metavar="FILE", required=True, help="a film of any length")
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="where the data sets are, for old runs' class names"
    )


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, which chooses one of a run."""
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="of the run: best (by validation; default), latest or a step",
    )


def split_names(text: str) -> list[str]:
    """Returns the names in a text such as "rollout,smoothgrad(16, 0.3)", each once: commas within
    brackets separate options."""
    names = re.split(r",(?![^(]*\))", text)
    return list(dict.fromkeys(name.strip() for name in names))


def new_file(path: str | None) -> Path | None:
    """Returns the path of a file that a command is to write, None for none.

    Raises ValueError for one that exists.
    """
    if path is not None and Path(path).exists():
        raise ValueError(f"{path} exists; name a new file")
    return None if path is None else Path(path)


def make_parser(prog: str, doc: str | None, *examples: str) -> argparse.ArgumentParser:
    """Returns a parser whose help has a command's description and examples."""
    return argparse.ArgumentParser(prog=f"python -m {prog}", **_described(doc, examples))


def add_command(commands: Any, name: str, help: str, *examples: str, more: str = "") -> Any:
    """Adds a command to a parser's sub-parsers; its help has examples, and `more` below them."""
    return commands.add_parser(name, help=help, **_described(help, examples, more=more))


def _described(text: str | None, examples: tuple[str, ...], *, more: str = "") -> dict[str, Any]:
    listed = "\n  ".join(["examples:", *examples])
    return {
        "description": text,
        "epilog": f"{listed}\n\n{more}" if more else listed,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def three_sizes(text: str) -> tuple[int, int, int]:
    """Returns frames, height and width of a text such as "32x224x224"."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 32x224x224: frames, height, width")
    return int(parts[0]), int(parts[1]), int(parts[2])
