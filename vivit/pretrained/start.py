"""The weights that a training run starts from: `config.init`."""

import ast
import json
import logging
import shlex
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from vivit.config import freeze
from vivit.model import ViViT
from vivit.pretrained import Pretrained, load
from vivit.pretrained.adapt import as_fields

log = logging.getLogger(__name__)

# Fields that no parameter's shape shows, and without which weights mean something else.
MEANING = (
    "activation",
    "norm_epsilon",
    "position",
    "rope",
    "soft_cap",
    "pixel_mean",
    "pixel_std",
)


def load_for_run(
    config: FrozenConfigDict, model: ViViT, workdir: str | Path
) -> tuple[FrozenConfigDict, Pretrained | None]:
    """The config with the hashes of `config.init.path`'s files, and the weights for its model.

    None where there is no such path, and for a run that has a checkpoint of its own: the file may
    be gone by then. ValueError where the model computes something else with the same weights.
    """
    if not config.init.path:
        return config, None
    there = Path(workdir)
    if (there / "config.json").exists() and _has_checkpoint(there):
        recorded = json.loads((there / "config.json").read_text()).get("init", {})
        return _with_hashes(config, recorded.get("sha256", [])), None
    options: dict[str, Any] = {
        k: v for k, v in config.init.items() if k not in ("path", "allow", "sha256")
    }
    if options["head"].startswith(("(", "[")):  # names, as a command line gives them
        options["head"] = tuple(ast.literal_eval(options["head"]))
    try:
        loaded = load(config.init.path, model=as_fields(model), seed=config.seed, **options)
    except ValueError as error:
        show = f"python -m vivit.pretrained inspect {shlex.quote(config.init.path)}"
        raise ValueError(f"config.init: {error}\n`{show}` prints the file's own model") from None
    _check_meaning(config, model, loaded)
    log.info("%s", loaded.report.summary())
    hashes = [f"{name} {digest}" for name, digest in loaded.report.sha256.items()]
    return _with_hashes(config, hashes), loaded


def _has_checkpoint(workdir: Path) -> bool:
    """Whether one is whole: one that is being written has a longer name."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def _with_hashes(config: FrozenConfigDict, hashes: list[str]) -> FrozenConfigDict:
    values = json.loads(config.to_json())
    values["init"]["sha256"] = hashes
    return freeze(values)


def _differ(name: str, source: Any, wanted: Any) -> bool:
    learned = name == "position" and all(kind.startswith("learned") for kind in (source, wanted))
    return source != wanted and not learned  # learned tables are converted, one into the other


def _check_meaning(config: FrozenConfigDict, model: ViViT, loaded: Pretrained) -> None:
    default = {name: getattr(ViViT, name) for name in MEANING}
    source: dict[str, Any] = {**default, **loaded.report.source_config}
    wrong = [
        f"--config.model.{name}={source[name]!r}, not {getattr(model, name)!r}"
        for name in MEANING
        if _differ(name, source[name], getattr(model, name)) and name not in config.init.allow
    ]
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(
            f"the weights of {config.init.path} were trained with:\n  {listed}\n"
            "Set these, or name the fields in config.init.allow to train with the others."
        )
