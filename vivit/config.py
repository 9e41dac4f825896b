"""Configs from command lines and files, and the folder of a run that keeps its config."""

import argparse
import ast
import dataclasses
import importlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from vivit.io import read_json, sha256_of, write_json
from vivit.records import record
from vivit.settings import Config
from vivit.upgrade import MOVED, RENAMED, upgrade

log = logging.getLogger(__name__)

DATA_RECORD = "data.json"  # in a run's folder
IMPORTS = "imports"  # in a run's folder: copies of the modules of config.imports


def as_config(values: Config | ConfigDict | Mapping[str, Any]) -> Config:
    """Returns a config, checked, from a ConfigDict or from the values of a config.json.

    Raises ValueError that lists all unknown keys and values of a wrong type.
    """
    if isinstance(values, Config):
        return values
    mapping = json.loads(values.to_json()) if isinstance(values, ConfigDict) else values
    return record(Config, mapping)


def as_config_dict(settings: Any) -> ConfigDict:
    """Returns settings as a locked ConfigDict, whose values keep their types."""
    config = ConfigDict()
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is None:  # a placeholder, so that a value of the right type may replace it
            kinds = [kind for kind in get_args(hints[field.name]) if kind is not NoneType]
            value = placeholder(getattr(kinds[0], "__origin__", kinds[0]))
        config[field.name] = as_config_dict(value) if dataclasses.is_dataclass(value) else value
    return config.lock()


def as_json(config: Config) -> dict[str, Any]:
    """Returns the values of a config as its config.json holds them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Config | None]:
    """Returns the parser's arguments, and the config of `--config=FILE --config.KEY=VALUE ...`.

    Raises ValueError for a file that cannot be read, an unknown key or a value of a wrong type.
    """
    parser.add_argument("--config", metavar="FILE", help="a Python file with get_config()")
    change = "--config.KEY=VALUE changes a value of the config: --config.optim.lr=3e-4"
    parser.epilog = "\n\n".join(filter(None, (change, parser.epilog)))
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if not word.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognised arguments: {' '.join(unknown)}")
    if arguments.config is None:
        if rest:
            parser.error(f"{rest[0]} needs --config=FILE")
        return arguments, None
    return arguments, read_config(arguments.config, rest)


def read_config(file: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the config of a Python file with `--config.KEY=VALUE` overrides.

    Raises ValueError for a file that cannot be read, an unknown key or a value of a wrong type.
    """
    if not Path(file).exists():
        known = sorted(map(str, Path(file).parent.glob("*.py")))
        close = get_close_matches(file, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "configs/ has some"
        raise ValueError(f"no config file {file!r}; {hint}")
    _check_keys(_load(file, ()), overrides)
    mappings = {f"--config.{key}": key for key in _mapping_keys(Config)}
    others = [word for word in overrides if word.partition("=")[0] not in mappings]
    values = json.loads(_load(file, others).to_json())
    for word in overrides:  # ml_collections takes all values but mappings
        flag, _, text = word.partition("=")
        if flag in mappings:
            section, _, name = mappings[flag].rpartition(".")
            values.setdefault(section, {})[name] = _as_mapping(flag, text)
    return as_config(values)


def _as_mapping(flag: str, text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(
            f"{flag}={text}: write a mapping, like {flag}=\"{{'first': 8, 'second': 10}}\""
        )
    return value


def _mapping_keys(part: type[Any], at: str = "") -> Iterator[str]:
    """Yields the keys of a config whose values are mappings."""
    for name, hint in get_type_hints(part).items():
        if dataclasses.is_dataclass(hint):
            yield from _mapping_keys(hint, f"{at}{name}.")  # pyright: ignore[reportArgumentType]
        elif get_origin(hint) is Mapping:
            yield f"{at}{name}"


def _load(file: str, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    argv = ["vivit", f"--config={file}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        config = values["config"].value
        getattr(config, "seed", None)  # a file that failed to load raises its error at first use
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = str(error).strip('"').replace("\\n", " ").replace("\\'", "'")
        raise ValueError(f"config {file}: {reason}{renamed([reason])}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"get_config() of {file} returns a {type(config).__name__}; return a ConfigDict"
        )
    return config


def _check_keys(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Raises ValueError that lists the overrides whose key a config does not have."""
    known = [*_keys(config), *_mapping_keys(Config)]
    last = {key.rsplit(".", 1)[-1]: key for key in known}
    problems = []
    for key in (word.removeprefix("--config.").partition("=")[0] for word in overrides):
        if key in known:
            continue
        close = get_close_matches(key, known, n=1, cutoff=0.8)
        match = last.get(key.rsplit(".", 1)[-1]) or (close[0] if close else None)
        section = key.rpartition(".")[0]
        siblings = [k for k in known if k.rpartition(".")[0] == section != ""] or list(config)
        hint = f"did you mean {match}?" if match else f"known: {', '.join(siblings)}"
        problems.append(f"no key {key!r}{renamed([key]) or f'; {hint}'}")
    if problems:
        raise ValueError("; ".join(problems))


def _keys(config: ConfigDict, at: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def renamed(texts: Iterable[str]) -> str:
    """Returns what keys of 0.1.0 that some texts mention are called now, or ""."""
    joined = " ".join(texts)
    mentioned = [f"{old} is now {new}" for old, new in (RENAMED | MOVED).items() if old in joined]
    return f": {'; '.join(mentioned)}" if mentioned else ""


def import_modules(names: Iterable[str], *, copies: Path | None = None) -> None:
    """Imports `config.imports`: modules of the user that register patterns, sizes, data sets ...

    copies: a run's folder of them, as `copy_modules` wrote it. It is named where a module is
        missing or differs; nothing is imported from it, as the run may be anybody's.
    """
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            hint = ""
            if copies is not None and copies.exists():
                hint = (
                    f"; {copies} has what the run was trained with: if you trust it, run the "
                    f"command again with PYTHONPATH={copies}"
                )
            raise ValueError(f"config.imports names {name!r}: {error}{hint}") from error
        if copies is not None:
            _warn_of_changes(module, copies)


def copy_modules(names: Iterable[str], folder: Path) -> None:
    """Copies the modules of `config.imports` into a run, once, with their hashes in hashes.json."""
    hashes = {}
    if (folder / "hashes.json").exists():
        return
    for name in names:
        for part, file in _files_of(importlib.import_module(name)).items():
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / part)
            hashes[part] = sha256_of(file)
    if hashes:
        write_json(folder / "hashes.json", hashes)


def _warn_of_changes(module: ModuleType, copies: Path) -> None:
    path = copies / "hashes.json"
    recorded = read_json(path) if path.exists() else {}
    for part, file in _files_of(module).items():
        if part in recorded and recorded[part] != sha256_of(file):
            log.warning("%s differs from what the run was trained with, %s", file, copies / part)


def _files_of(module: ModuleType) -> dict[str, Path]:
    """Returns the Python files of a module or package, by their paths below sys.path's folder."""
    if not getattr(module, "__file__", None):  # made in memory, or without a file of its own
        return {}
    file, parts = Path(str(module.__file__)), module.__name__.split(".")
    if file.name != "__init__.py":
        return {"/".join(parts) + ".py": file}
    files = file.parent.rglob("*.py")
    return {"/".join([*parts, *f.relative_to(file.parent).parts]): f for f in files}


def claim_workdir(workdir: str | Path, config: Config) -> Path:
    """Returns the run's folder, with its config.json.

    A run may resume on other devices: config.json gets the new `parallel`, and the log says so.
    Raises ValueError if the folder belongs to another config, or holds files and no run.
    """
    folder = Path(workdir)
    path = folder / "config.json"
    if path.exists():
        recorded = read_workdir(folder)
        changes = differences(as_json(recorded), as_json(config))
        if all(line.startswith("parallel.") for line in changes):
            if changes:
                log.info("resuming on other devices: %s", "; ".join(changes))
                write_json(path, as_json(config), indent=2)
        else:
            lines = "\n".join(f"  {line}" for line in changes)
            raise ValueError(
                f"{workdir} holds a run with another config (recorded -> given):\n{lines}\n"
                "Use another --workdir, or the config that the run started with."
            )
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run; use another --workdir")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, as_json(config), indent=2)
    return folder


def read_workdir(workdir: str | Path) -> Config:
    """Returns the config of a run's folder, of this or an earlier version.

    Raises ValueError if the folder holds no run.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: there is no {path}; train one with vivit.train")
    try:
        return as_config(upgrade(read_json(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_data_record(workdir: str | Path) -> dict[str, Any]:
    """Returns what a run recorded of its data: name, root, label, class names; {} if nothing."""
    path = Path(workdir) / DATA_RECORD
    return read_json(path) if path.exists() else {}


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Returns lines "key: old -> new" for all that differs between two nested mappings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        missing = "(missing)"
        lines = [
            differences(old.get(k, missing), new.get(k, missing), f"{at}.{k}" if at else k)
            for k in keys
        ]
        return [line for part in lines for line in part]
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]
