"""python -m vivit.data convert | check | prepare | describe: from files to data sets."""

import argparse
import inspect
import logging
import sys
from pathlib import Path

import vivit.dataprep.class_folders
import vivit.dataprep.dmvr
import vivit.dataprep.published  # noqa: F401  they register their formats
from vivit.cli import add_command, make_parser, run_command, show_log
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
    parser = make_parser(
        "vivit.data",
        __doc__,
        "python -m vivit.data convert folder --videos films --out films.csv",
        "python -m vivit.data prepare films.csv data",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _convert_arguments(commands)
    _check_arguments(commands)
    _prepare_arguments(commands)
    command = add_command(
        commands,
        "describe",
        "numbers and pictures of a prepared data set",
        "python -m vivit.data describe data/films",
        "python -m vivit.data describe data/films --sheet films.png --label verb",
    )
    command.add_argument("folder", help="OUT/NAME, as prepare wrote it")
    command.add_argument(
        "--sheet", metavar="FILE", help="the contact sheet (default: contact_sheet.png in it)"
    )
    command.add_argument(
        "--label", default="", help="whose classes are counted (default: the first)"
    )
    command.set_defaults(run=lambda a: print(describe(a.folder, sheet=a.sheet, label=a.label)))
    show_log()
    logging.getLogger("absl").setLevel(logging.ERROR)  # tfds's advice on OpenCV
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


CONVERT_OPTIONS = {  # of some formats: their docstrings are in the help
    "classes": ("FILE", "class names or numbers: kinetics, list, something, ucf101, diving48, ..."),
    "verbs": ("FILE", "epic_kitchens: EPIC_100_verb_classes.csv"),
    "nouns": ("FILE", "epic_kitchens: EPIC_100_noun_classes.csv"),
    "holdout": ("V,T", "folder: fractions for validation and test (default: 0.1,0.1)"),
    "seed": ("N", "folder: of the files that are held out (default: 0)"),
    "group": ("REGEX|COLUMN", "folder: what keeps files in one split: a regular expression whose "
              "group names a film or person, or a column of --annotations with a column path"),
}  # fmt: skip


def _convert_arguments(commands) -> None:
    about = "\n\n".join(f"{name}: {inspect.getdoc(FORMATS[name])}" for name in FORMATS)
    command = add_command(
        commands,
        "convert",
        "annotation files -> a manifest",
        "python -m vivit.data convert folder --videos films --out films.csv",
        r"python -m vivit.data convert folder --videos films --out films.csv --group '(.*)_\d+\.'",
        "python -m vivit.data convert kinetics --videos k400 --annotations train.csv val.csv \\\n"
        "      --out k400.csv",
        more=f"formats:\n\n{about}",
    )
    command.add_argument("format", choices=list(FORMATS), help="of the annotation files")
    command.add_argument("--videos", metavar="FOLDER", required=True, help="where the videos are")
    command.add_argument(
        "--annotations", nargs="*", default=[], metavar="FILE", help="as they were published"
    )
    command.add_argument(
        "--out", metavar="FILE", required=True, help="the manifest: a .csv or .parquet file"
    )
    for name, (metavar, text) in CONVERT_OPTIONS.items():
        command.add_argument(f"--{name}", metavar=metavar, help=text)
    command.add_argument(
        "--skip", action="store_true", help="folder: leave out files that are in no class folder"
    )
    _links_argument(command)
    command.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    names = CONVERT_OPTIONS
    options = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    options |= {"skip": True} if arguments.skip else {}
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
    print(f"{len(missing)} annotated videos are missing; wrote {arguments.out}")


def _links_argument(command) -> None:
    text = "refuse files that are reached by symbolic links, in folders that are not trusted"
    command.add_argument("--refuse-links", action="store_true", help=text)


def _limits_arguments(command) -> None:
    command.add_argument(
        "--root", metavar="FOLDER", help="where the paths begin (default: the manifest's folder)"
    )
    command.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=TIMEOUT_SECONDS,
        help="seconds of CPU time for 10 s of video (default: %(default)g)",
    )
    command.add_argument(
        "--largest-frame",
        type=int,
        metavar="PIXELS",
        default=LARGEST_FRAME,
        help="of a frame to decode (default: %(default)d)",
    )
    _links_argument(command)


def _limits(arguments: argparse.Namespace) -> ReadLimits:
    return ReadLimits(arguments.timeout, arguments.largest_frame, not arguments.refuse_links)


def _check_arguments(commands) -> None:
    command = add_command(
        commands,
        "check",
        "find what is wrong with the files of a manifest",
        "python -m vivit.data check films.csv",
        "python -m vivit.data check films.csv --decode --frames 32",
    )
    command.add_argument("manifest", help="a .csv or .parquet file")
    _limits_arguments(command)
    command.add_argument(
        "--frames", type=int, metavar="N", default=1, help="fewer make a clip too short"
    )
    command.add_argument("--decode", action="store_true", help="decode every frame")
    command.add_argument(
        "--no-similar", action="store_true", help="do not look for clips that look alike"
    )
    command.add_argument(
        "--out", metavar="NAME", help="of the reports NAME.json and NAME.html (default: MANIFEST)"
    )
    command.add_argument(
        "--write-hashes", metavar="FILE", help="write the manifest with the files' SHA-256 too"
    )
    command.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> None:
    manifest = Path(arguments.manifest)
    root = data_root(arguments.root, manifest)
    limits = _limits(arguments)
    report = check(
        manifest,
        root=root,
        frames=arguments.frames,
        decode=arguments.decode,
        similar=not arguments.no_similar,
        limits=limits,
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
    command = add_command(
        commands,
        "prepare",
        "write a data set, unless it exists",
        "python -m vivit.data prepare moving_digits data",
        "python -m vivit.data prepare films.csv data --format jpeg --short-side 128",
    )
    command.add_argument("source", help=f"a manifest, or one of: {', '.join(DATA_SETS)}")
    command.add_argument("out", help="where data sets are kept, such as data")
    _limits_arguments(command)
    command.add_argument(
        "--name", default="", help="of the data set (default: the manifest's name)"
    )
    command.add_argument(
        "--format", default="h264", choices=list(ENCODERS), help="of the clips (default: h264)"
    )
    command.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        default=256,
        help="of frames that are larger (default: 256)",
    )
    command.add_argument("--square", action="store_true", help="keep the frames' middle only")
    command.add_argument(
        "--quality", type=int, metavar="N", help="x264's crf (20) or JPEG's quality (90)"
    )
    command.add_argument(
        "--fps", type=float, metavar="RATE", help="frames per second to keep of clips with more"
    )
    command.add_argument(
        "--max-bad-fraction",
        type=float,
        metavar="F",
        default=0.1,
        help="of the clips may be damaged, and is left out (default: 0.1)",
    )
    command.add_argument(
        "--allow-shared", action="store_true", help="accept clips that are in several splits"
    )
    command.add_argument(
        "--beam",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="run on Apache Beam, with its options after this",
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
