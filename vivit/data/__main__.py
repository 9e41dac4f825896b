"""python -m vivit.data: prepares data sets; the commands are in vivit.dataprep."""

from vivit.cli import run_command
from vivit.dataprep.__main__ import main

if __name__ == "__main__":
    run_command(main)
