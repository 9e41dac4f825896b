"""Configs from command lines and files, and the folder of a run that keeps its config."""

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from vivit.io import write_atomically


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, FrozenConfigDict | None]:
    """The parser's own arguments, and the config of `--config=FILE --config.KEY=VALUE ...`.

    ValueError for a file that can't be read, an unknown key or a value of a wrong type.
    """
    parser.add_argument("--config", metavar="FILE", help="a Python file with get_config()")
    parser.epilog = "--config.KEY=VALUE changes a value of the config: --config.optim.lr=3e-4"
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if not word.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognised arguments: {' '.join(unknown)}")
    if arguments.config is None:
        if rest:
            parser.error(f"{rest[0]} needs --config=FILE")
        return arguments, None
    return arguments, read_config(arguments.config, rest)


def read_config(file: str, overrides: Sequence[str] = ()) -> FrozenConfigDict:
    """The config of a Python file with `--config.KEY=VALUE` overrides, as JSON gives it back."""
    if not Path(file).exists():
        raise ValueError(f"no config file {file!r}; configs/ has some")
    values = flags.FlagValues()
    argv = ["vivit", f"--config={file}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        config = values["config"].value
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = str(error).strip("\"'").replace("\\n", " ").replace("\\'", "'")
        raise ValueError(
            f"config {file} {' '.join(overrides)}: {reason}\n"
            "Write --config.KEY=VALUE with a key of configs/common.py and a value of its type."
        ) from error
    if not isinstance(config, ConfigDict):
        getattr(config, "seed", None)  # a file that failed to load raises its own error here
        raise ValueError(f"get_config() of {file} returns a {type(config).__name__}, no ConfigDict")
    return freeze(json.loads(config.to_json()))


def import_modules(config: Any) -> None:
    """Imports `config.imports`: modules of the user that register patterns, sizes, data sets ..."""
    for name in config["imports"]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(f"config.imports names {name!r}: {error}") from error


def freeze(values: dict[str, Any]) -> FrozenConfigDict:
    """A config from JSON. Mappings in lists, as stages are, become pairs: it can hold no others."""

    def convert(value: Any, in_list: bool) -> Any:
        if isinstance(value, dict):
            items = {key: convert(item, in_list) for key, item in value.items()}
            return tuple(items.items()) if in_list else items
        if isinstance(value, list):
            return tuple(convert(item, True) for item in value)
        return value

    return FrozenConfigDict(convert(values, False))


def claim_workdir(workdir: str | Path, config: FrozenConfigDict) -> Path:
    """The run's folder with its config.json. ValueError if it belongs to another config."""
    folder = Path(workdir)
    path = folder / "config.json"
    if path.exists():
        changes = differences(json.loads(path.read_text()), json.loads(config.to_json()))
        if changes:
            lines = "\n".join(f"  {line}" for line in changes)
            raise ValueError(
                f"{workdir} holds a run with another config (there -> now):\n{lines}\n"
                "Use another --workdir, or the config that the run began with."
            )
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run; use another --workdir")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(json.loads(config.to_json()), indent=2) + "\n")
    return folder


def read_workdir(workdir: str | Path) -> FrozenConfigDict:
    """The config of a run's folder; its user modules are imported."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: there is no {path}; train one with vivit.train")
    config = freeze(json.loads(path.read_text()))
    import_modules(config)
    return config


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Lines "key: old -> new" for all that differs between two nested mappings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        missing = "(not there)"
        lines = [
            differences(old.get(k, missing), new.get(k, missing), f"{at}.{k}" if at else k)
            for k in keys
        ]
        return [line for part in lines for line in part]
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]
