"""python -m vivit.data prepare NAME FOLDER: writes a data set to train on."""

import argparse

from vivit.config import run_command
from vivit.data.sources import BUILDERS, prepare


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vivit.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare", help="write a data set, unless it is there already")
    command.add_argument("name", help=f"one of: {', '.join(BUILDERS)}")
    command.add_argument("folder", help="where data sets are kept, such as data")
    arguments = parser.parse_args(argv)
    print(f"{arguments.name} is ready in {prepare(arguments.name, arguments.folder)}")


if __name__ == "__main__":
    run_command(main)
