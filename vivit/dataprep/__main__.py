"""python -m vivit.data convert | check | prepare | describe: from files to data sets."""

import argparse
import logging
import sys
from pathlib import Path

import vivit.dataprep.dmvr
import vivit.dataprep.published  # noqa: F401  both register their formats
from vivit.cli import run_command, show_log
from vivit.data.files import data_root
from vivit.data.settings import LARGEST_FRAME, TIMEOUT_SECONDS, ReadLimits
from vivit.data.sources import DATA_SETS, MANIFESTS
from vivit.dataprep.check import check, summary, write_findings, write_hashes
from vivit.dataprep.convert import FORMATS, convert
from vivit.dataprep.encode import ENCODERS
from vivit.dataprep.pictures import describe, write_page
from vivit.dataprep.prepare import prepare_manifest, prepare_registered
from vivit.dataprep.staging import Spec


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vivit.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _convert_arguments(commands)
    _check_arguments(commands)
    _prepare_arguments(commands)
    command = commands.add_parser("describe", help="numbers and pictures of a prepared data set")
    command.add_argument("folder", help="OUT/NAME, as prepare wrote it")
    command.add_argument("--sheet", help="where the contact sheet goes; into the folder")
    command.add_argument("--label", default="", help="of the histogram; the first one")
    command.set_defaults(run=lambda a: print(describe(a.folder, sheet=a.sheet, label=a.label)))
    show_log()
    logging.getLogger("absl").setLevel(logging.ERROR)  # tfds's advice on OpenCV
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


def _convert_arguments(commands) -> None:
    command = commands.add_parser("convert", help="annotation files -> a manifest")
    command.add_argument("format", choices=list(FORMATS), help="of the annotation files")
    command.add_argument("--videos", required=True, help="the folder of the videos")
    command.add_argument("--annotations", nargs="*", default=[], metavar="FILE")
    command.add_argument("--out", required=True, help="the manifest: a .csv or .parquet file")
    for name in ("classes", "verbs", "nouns", "holdout", "seed"):
        command.add_argument(f"--{name}", help="an option of some formats: docs/data.md")
    _links_argument(command)
    command.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    names = ("classes", "verbs", "nouns", "holdout", "seed")
    options = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    manifest, missing = convert(
        arguments.format,
        arguments.videos,
        arguments.annotations,
        arguments.out,
        follow_links=not arguments.refuse_links,
        **options,
    )
    for split in dict.fromkeys(clip.split for clip in manifest.clips):
        print(f"{split}: {len(manifest.split(split))} clips")
    print(f"{len(missing)} videos are missing; wrote {arguments.out}")


def _links_argument(command) -> None:
    text = "refuse files that are reached by symbolic links, in folders that are not trusted"
    command.add_argument("--refuse-links", action="store_true", help=text)


def _limits_arguments(command) -> None:
    command.add_argument("--root", help="where the paths begin; the manifest's folder")
    command.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_SECONDS,
        help="seconds of CPU time for 10 s of video (default: %(default)g)",
    )
    command.add_argument(
        "--largest-frame", type=int, default=LARGEST_FRAME, help="pixels of a frame to decode"
    )
    _links_argument(command)


def _limits(arguments: argparse.Namespace) -> ReadLimits:
    return ReadLimits(arguments.timeout, arguments.largest_frame, not arguments.refuse_links)


def _check_arguments(commands) -> None:
    command = commands.add_parser("check", help="find what is wrong with the files of a manifest")
    command.add_argument("manifest")
    _limits_arguments(command)
    command.add_argument("--frames", type=int, default=1, help="fewer make a clip too short")
    command.add_argument("--decode", action="store_true", help="decode every frame")
    command.add_argument("--out", help="name of the reports, without .json and .html")
    command.add_argument("--write-hashes", metavar="FILE", help="the manifest with sha256")
    command.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> None:
    manifest = Path(arguments.manifest)
    root = data_root(arguments.root, manifest)
    limits = _limits(arguments)
    report = check(
        manifest, root=root, frames=arguments.frames, decode=arguments.decode, limits=limits
    )
    print(summary(report))
    out = arguments.out or str(manifest.with_suffix(".check"))
    write_findings(Path(f"{out}.json"), report)
    write_page(Path(f"{out}.html"), report, manifest, root, limits)
    print(f"wrote {out}.json and {out}.html")
    if arguments.write_hashes:
        write_hashes(manifest, report, arguments.write_hashes)
        print(f"wrote {arguments.write_hashes}")
    if report.leaks or not any(finding.frames for finding in report.findings):
        sys.exit(1)  # a run should not start with this


def _prepare_arguments(commands) -> None:
    command = commands.add_parser("prepare", help="write a data set, unless it exists")
    command.add_argument("source", help=f"a manifest, or one of: {', '.join(DATA_SETS)}")
    command.add_argument("out", help="where data sets are kept, such as data")
    _limits_arguments(command)
    command.add_argument("--name", default="", help="of the data set; the manifest's name")
    command.add_argument("--format", default="h264", choices=list(ENCODERS))
    command.add_argument("--short-side", type=int, default=256, help="pixels; never enlarged")
    command.add_argument("--square", action="store_true", help="keep the frames' middle only")
    command.add_argument("--quality", type=int, help="x264's crf (20) or JPEG's quality (90)")
    command.add_argument("--fps", type=float, help="frames per second to keep, of more")
    command.add_argument(
        "--max-bad-fraction", type=float, default=0.1, help="of clips, that may be left out"
    )
    command.add_argument("--allow-shared", action="store_true", help="clips in several splits")
    command.add_argument(
        "--beam", nargs=argparse.REMAINDER, help="run on Apache Beam, with its options after this"
    )
    command.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> None:
    if not arguments.source.endswith(MANIFESTS):
        if arguments.source not in DATA_SETS:
            raise ValueError(
                f"{arguments.source!r} is neither a manifest (.csv, .parquet) nor one of: "
                f"{', '.join(DATA_SETS)}"
            )
        folder = prepare_registered(arguments.source, arguments.out)
        print(f"{arguments.source} is ready in {folder}")
        return
    run = None
    if arguments.beam is not None:
        from vivit.dataprep.beam import run_on_beam

        run = run_on_beam(arguments.beam)
    folder = prepare_manifest(
        arguments.source,
        arguments.out,
        root=arguments.root,
        name=arguments.name,
        spec=Spec(
            arguments.format,
            arguments.short_side,
            arguments.square,
            arguments.quality,
            arguments.fps,
            _limits(arguments),
        ),
        max_bad_fraction=arguments.max_bad_fraction,
        allow_shared=arguments.allow_shared,
        run=run,
    )
    print(f"{folder.parent.name} is ready in {folder}")


if __name__ == "__main__":
    run_command(main)
