"""python -m vivit.analysis RUN [RUN2]: a page that shows where a run looks, and what it got wrong.

One HTML file that works without a network: frames, attention of each layer and head, attributions,
clips of the confusion, classes, learning curves. Two runs are seen side by side.
"""

from pathlib import Path

from vivit.analysis.report import SHOWN, write_report
from vivit.cli import add_checkpoint_argument, make_parser, run_command, show_log, split_names
from vivit.processes import add_process_arguments, connected


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        "vivit.analysis",
        __doc__,
        "python -m vivit.analysis runs/moving_digits",
        "python -m vivit.analysis runs/joint runs/factorised --clips=3,17",
        "python -m vivit.analysis runs/mine --video=holiday.mp4",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, or of two")
    add_checkpoint_argument(parser)
    parser.add_argument("--split", default="test", help="of the data set (test)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--clips", metavar="N,N", help=f"numbers of clips (default: {SHOWN}, half of them mistakes)"
    )
    which.add_argument("--video", metavar="FILE", help="a video in place of clips of the split")
    parser.add_argument("--methods", help="of attribution, with commas (rollout and others)")
    parser.add_argument("--views", default="", help="4x3 for 4 clips of each video in 3 crops")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data sets are now")
    parser.add_argument(
        "--out", metavar="FILE", help="the page (default: report_SPLIT.html in the first run)"
    )
    add_process_arguments(parser)
    arguments = parser.parse_args(argv)
    show_log()
    if len(arguments.runs) > 2:
        raise ValueError(f"{len(arguments.runs)} runs are given; a page is of one or two")
    path = Path(arguments.out) if arguments.out else None
    if path is not None and path.suffix != ".html":
        raise ValueError(f"--out={path} must end in .html")
    with connected(arguments):
        written = write_report(
            arguments.runs,
            checkpoint=arguments.checkpoint,
            split=arguments.split,
            views=arguments.views,
            data_root=arguments.data_root,
            clips=_numbers(arguments.clips),
            video=arguments.video,
            methods=split_names(arguments.methods) if arguments.methods else None,
            out=path,
        )
        print(f"open {written}")


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--clips={text} is to be numbers of clips, such as 3,17") from None


if __name__ == "__main__":
    run_command(main)
