"""python -m vivit.pretrained {inspect,convert,export} PATH ...: prints what a file of weights
holds, or writes a copy of it for vivit (convert) or for other programs (export)."""

import argparse
import ast
import shlex
from dataclasses import fields
from typing import Any

from vivit.cli import add_command, make_parser, run_command, show_log, three_sizes
from vivit.pretrained import WRITERS, Pretrained, export, load
from vivit.pretrained.settings import LoadOptions
from vivit.schema import meanings


def _names(text: str) -> str | tuple[str, ...]:
    return tuple(text.split(",")) if "," in text else text


# How the options that are not a plain string are read.
TYPES: dict[str, Any] = {"source_clip": three_sizes, "head": _names}


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not like position=learned")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "vivit.pretrained",
        __doc__,
        "python -m vivit.pretrained inspect B_16.npz",
        "python -m vivit.pretrained convert runs/mine weights/mine",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = add_command(
        commands,
        "inspect",
        "print the model and the result for each array",
        "python -m vivit.pretrained inspect B_16.npz",
        "python -m vivit.pretrained inspect runs/mine --family=joint --clip=32x224x224",
    )
    convert = add_command(
        commands,
        "convert",
        "write a portable folder that load reads",
        "python -m vivit.pretrained convert runs/mine weights/mine --checkpoint=latest",
        "python -m vivit.pretrained convert B_16.npz weights/b16 --clip=32x224x224",
    )
    export_ = add_command(
        commands,
        "export",
        "write a folder for other programs",
        "python -m vivit.pretrained export runs/mine weights/hf --to=hf_vivit",
        "python -m vivit.pretrained export runs/mine weights/mine --to=portable",
    )
    export_.add_argument(
        "--to",
        choices=sorted(WRITERS),
        required=True,
        help="hf_... for transformers, portable for any reader of safetensors",
    )
    for command in (inspect, convert, export_):
        command.add_argument("path", help="a file, a folder, a run, or a run's checkpoint")
        _add_load_arguments(command)
    for command in (convert, export_):
        command.add_argument("out", help="a new folder")
    return parser


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", help="of the wanted model, where it is not the file's")
    parser.add_argument("--clip", type=three_sizes, metavar="FxHxW", help="of the wanted model")
    parser.add_argument("--classes", type=int, metavar="N", help="of the wanted model")
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="of what is newly initialised (default: 0)"
    )
    parser.add_argument(
        "--model", type=_field, action="append", default=[], metavar="FIELD=VALUE",
        help="any other field of the wanted model, as in config.model",
    )  # fmt: skip
    about = meanings(LoadOptions)
    for field in fields(LoadOptions):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=field.default,
            type=TYPES.get(field.name, str),
            help=about[field.name],
        )


def _load(arguments: argparse.Namespace) -> Pretrained:
    taken = ("family", "clip", "classes", "seed", *(field.name for field in fields(LoadOptions)))
    options = {name: getattr(arguments, name) for name in taken}
    return load(arguments.path, model=dict(arguments.model), **options)


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
    params, report = loaded.params, loaded.report
    folder = export(
        arguments.out,
        loaded.model_config,
        params,
        to=to,
        labels=report.labels,
        task=report.task,
        heads=report.groups,
        around=loaded.around if WRITERS[to].around else None,
    )
    print(f"-> {folder}")


if __name__ == "__main__":
    run_command(main)
