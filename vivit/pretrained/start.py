"""The weights that a training run starts from: `config.init`."""

import ast
import logging
import shlex
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vivit.config import read_workdir
from vivit.io import read_json
from vivit.model.embed import POSITION_EMBEDDINGS
from vivit.model.settings import ModelSettings
from vivit.model.vivit import ViViT, build
from vivit.pretrained.settings import InitSettings, LoadOptions
from vivit.records import record
from vivit.settings import Config

if TYPE_CHECKING:  # it imports every source, which a run without weights does not need
    from vivit.pretrained.loader import Pretrained

log = logging.getLogger(__name__)

State = TypeVar("State")

# Fields that no parameter's shape shows, and without which weights compute something else.
SEMANTIC_FIELDS = (
    "activation",
    "norm_epsilon",
    "position",
    "rope",
    "soft_cap",
    "pixel_mean",
    "pixel_std",
)


# What a file of weights does not decide, as no parameter and no value depends on it.
FREE_FIELDS = ("clip", "classes", "kernel", "dtype", "scan", "remat", "drop_path", "dropout",
               "attention_dropout")  # fmt: skip
# What a person sees first of an architecture.
SHAPE_FIELDS = ("family", "width", "depth", "heads", "mlp_dim", "tubelet", "readout")


def take_model(config: Config, workdir: str | Path) -> Config:
    """Returns the config with the model of `init.path`'s file, if `init.model` says so; that of a
    run that has a checkpoint is recorded."""
    if config.init.model != "from_file":
        return config
    folder = Path(workdir)
    if (folder / "config.json").exists() and _has_checkpoint(folder):
        return replace(config, model=read_workdir(folder).model)
    wanted = {name: getattr(config.model, name) for name in FREE_FIELDS}
    fields = _model_of_file(config.init, wanted)
    return replace(config, model=record(ModelSettings, fields, at="model"))


def _model_of_file(init: InitSettings, wanted: dict[str, Any]) -> dict[str, Any]:
    from vivit.pretrained.loader import read_model

    options = record(LoadOptions, _options(init))
    return read_model(init.path, wanted=wanted, options=options)


def _explain_shape(init: InitSettings, model: ModelSettings) -> str:
    """Returns one line on how the file's architecture differs from the model's, or ""."""
    wanted = {name: getattr(model, name) for name in FREE_FIELDS}
    try:
        file = record(ModelSettings, _model_of_file(init, wanted), at="model")
    except ValueError:
        return ""
    file = build(file).config.settings  # with its sizes filled in
    pairs = {name: (getattr(file, name), getattr(model, name)) for name in SHAPE_FIELDS}
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if not changed:
        return ""
    listed = ", ".join(f"{name} {old} in the file, {new}" for name, (old, new) in changed.items())
    flags = " ".join(
        shlex.quote(f"--config.model.{name}={old}") for name, (old, _) in changed.items()
    )
    return (
        f"another architecture: {listed} in the config. These fit: {flags}, or "
        "--config.init.model=from_file takes the file's."
    )


def load_for_run(
    config: Config, model: ViViT, workdir: str | Path
) -> tuple[Config, "Pretrained | None"]:
    """Returns the config with the hashes of `config.init.path`'s files, and the weights for its
    model: None without a path, and for a run that has a checkpoint, since the file may be gone.

    Raises ValueError where the model computes something else with the same weights.
    """
    if not config.init.path:
        return config, None
    folder = Path(workdir)
    if (folder / "config.json").exists() and _has_checkpoint(folder):
        recorded = read_json(folder / "config.json").get("init", {})
        return _with_hashes(config, recorded.get("sha256", ())), None
    from vivit.pretrained.loader import load

    wanted = asdict(model.config.settings)
    del wanted["size"]  # its sizes are filled in
    try:
        loaded = load(
            config.init.path,
            model=wanted,
            heads=config.task.heads and config.heads,
            seed=config.seed,
            **_options(config.init),
        )
    except ValueError as error:
        show = f"python -m vivit.pretrained inspect {shlex.quote(config.init.path)}"
        first = _explain_shape(config.init, model.config.settings)
        # Of another architecture every array is wrong, which says no more than the first line.
        raise ValueError(
            f"config.init: {first or error}\n`{show}` prints the file's model"
        ) from None
    _check_semantics(config.init, model.config.settings, loaded.report.source_config)
    log.info("%s", loaded.report.summary())
    hashes = [f"{name} {digest}" for name, digest in loaded.report.sha256.items()]
    return _with_hashes(config, hashes), loaded


def state_of_run(init: InitSettings, like: State) -> State:
    """Returns the whole state of the run's checkpoint that `config.init` names, placed as `like`.

    Raises ValueError for a path that is not a run, and for a state with other arrays.
    """
    from vivit.pretrained.runs import read_state

    return read_state(init.path, like, checkpoint=init.checkpoint)


def _options(init: InitSettings) -> dict[str, Any]:
    options = {field.name: getattr(init, field.name) for field in fields(LoadOptions)}
    if init.head[:1] in ("(", "["):  # names, as a command line gives them
        options["head"] = tuple(ast.literal_eval(str(init.head)))
    return options


def _has_checkpoint(workdir: Path) -> bool:
    """Returns whether a checkpoint is whole: one that is being written has a longer name."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def _with_hashes(config: Config, hashes: Any) -> Config:
    return replace(config, init=replace(config.init, sha256=tuple(hashes)))


def _differ(name: str, source: Any, wanted: Any) -> bool:
    if name == "position" and all(POSITION_EMBEDDINGS[kind].learned for kind in (source, wanted)):
        return False  # learned tables are converted, one into the other
    return source != wanted


def _check_semantics(
    init: InitSettings, model: ModelSettings, source_config: dict[str, Any]
) -> None:
    source = record(ModelSettings, source_config)
    pairs = {name: (getattr(source, name), getattr(model, name)) for name in SEMANTIC_FIELDS}
    wrong = [
        f"--config.model.{name}={trained!r}, not {wanted!r}"
        for name, (trained, wanted) in pairs.items()
        if _differ(name, trained, wanted) and name not in init.allow
    ]
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(
            f"the weights of {init.path} were trained with:\n  {listed}\n"
            "Set these, or name the fields in config.init.allow to train with the others."
        )
