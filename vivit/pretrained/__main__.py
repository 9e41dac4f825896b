"""python -m vivit.pretrained {inspect,convert,export} PATH ...: what a file of weights holds, and
copies of it for us (convert) or for others (export)."""

import argparse
import ast
import shlex
from typing import Any

from vivit.cli import run_command, show_log
from vivit.pretrained import SOURCES, Pretrained, load
from vivit.pretrained.adapt import CLASS_TOKEN, TIME_ATTENTION
from vivit.pretrained.export import WRITERS, export
from vivit.pretrained.resize import INFLATIONS, RESIZES


def _clip(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 32x224x224: frames, height, width")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not like position=learned")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vivit.pretrained", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="print the model and what became of each array")
    convert = commands.add_parser("convert", help="write a portable folder that load reads")
    export_ = commands.add_parser("export", help="write a folder for other programs")
    export_.add_argument("--to", choices=sorted(WRITERS), required=True)
    for command in (inspect, convert, export_):
        command.add_argument("path", help="a file, a folder, a run, or a run's checkpoint")
        _add_load_arguments(command)
    for command in (convert, export_):
        command.add_argument("out", help="a new folder")
    return parser


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", default="auto", choices=["auto", *SOURCES])
    parser.add_argument("--family")
    parser.add_argument("--clip", type=_clip, metavar="FxHxW")
    parser.add_argument("--classes", type=int)
    parser.add_argument(
        "--source-clip", type=_clip, metavar="FxHxW", help="the file's, if it can't tell"
    )
    parser.add_argument("--head", default="auto", help="auto, keep, replace, or names, with commas")
    parser.add_argument("--inflation", default="central_frame", choices=[*INFLATIONS, "fresh"])
    parser.add_argument("--positions", default="linear", choices=sorted(RESIZES))
    parser.add_argument("--time-attention", default="zero_out", choices=TIME_ATTENTION)
    parser.add_argument("--class-token", default="keep", choices=CLASS_TOKEN)
    parser.add_argument("--checkpoint", default="best", help="of a run: best, latest or a step")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn afresh")
    parser.add_argument(
        "--model", type=_field, action="append", default=[], metavar="FIELD=VALUE",
        help="any other field of vivit.ViViT",
    )  # fmt: skip


def _load(arguments: argparse.Namespace) -> Pretrained:
    own = ("command", "path", "out", "to", "head", "model")
    options = {name: value for name, value in vars(arguments).items() if name not in own}
    head = arguments.head
    names = tuple(head.split(",")) if "," in head else head
    return load(arguments.path, head=names, model=dict(arguments.model), **options)


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    show_log()
    loaded = _load(arguments)
    if arguments.command == "inspect":
        print(loaded.report)
        print("\nas flags of vivit.train:")
        for name, value in loaded.model_config.items():
            if value is not None:
                text = value if isinstance(value, str) else repr(value)
                print("  " + shlex.quote(f"--config.model.{name}={text}"))
        return
    print(loaded.report.summary())
    to = arguments.to if arguments.command == "export" else "portable"
    params, labels = loaded.params, loaded.report.labels
    print(f"-> {export(arguments.out, loaded.model_config, params, to=to, labels=labels)}")


if __name__ == "__main__":
    run_command(main)
