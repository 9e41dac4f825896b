"""Configs of earlier versions in the words of this one, so that their runs open."""

from collections.abc import Mapping
from typing import Any

from vivit.mesh import FSDP
from vivit.model.upgrade import upgrade_model

# What keys of 0.1.0 are called now. Runs are mapped by `upgrade`; on a command line and in a config
# file an old key is an error that names the new one.
RENAMED = {
    "data.bad_share": "data.max_bad_fraction",
    "data.sampling.short": "data.sampling.pad_mode",
    "augment.colour_share": "augment.colour_jitter",
    "init.positions": "init.position_resize",
}
MOVED = {
    "model.temporal_depth": 'an option of model.family: "factorised_encoder(temporal_depth=2)"',
    "optim.lr_floor": 'an option of optim.schedule: "cosine(floor=1e-5)"',
    "optim.b1": 'an option of optim.name: "adamw(b1=0.9)"',
    "optim.b2": 'an option of optim.name: "adamw(b2=0.98)"',
    "optim.momentum": 'an option of optim.name: "sgd(momentum=0.9)"',
    "optim.weight_decay": 'an option of optim.name: "adamw(weight_decay=0.1)"',
}
# Of 0.1.0's optimisers, the arguments that each one used, with the defaults of this version.
_OPTIMISERS = {
    "adamw": {"b1": 0.9, "b2": 0.999, "weight_decay": 0.05},
    "sgd": {"momentum": 0.9, "weight_decay": 0.05},
}


# The default of parallel.rules before there was an axis `tensor`.
_RULES = [
    ["(query|key|value)/kernel$", [FSDP, None, None]],
    ["attention_\\w+/out/kernel$", [None, None, FSDP]],
    ["mlp/\\w+/kernel$", [FSDP, None]],
]


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a config.json, of this or an earlier version, by today's keys."""
    config = dict(config)
    parallel = dict(config.get("parallel", {}))
    if parallel.get("rules") == _RULES:
        config["parallel"] = {k: v for k, v in parallel.items() if k != "rules"}
    if "schedule" in config.get("optim", {"schedule": ""}):
        return config  # of this version
    for old, new in RENAMED.items():
        section, *path = old.split(".")
        if section in config:
            config[section] = _rename(config[section], path, new.split(".")[-1])
    config["optim"] = _upgrade_optim(config["optim"])
    config["model"] = upgrade_model(config["model"])
    return config


def _rename(section: Mapping[str, Any], path: list[str], name: str) -> dict[str, Any]:
    """Returns a section of a config whose key at `path` is called `name`."""
    first, *rest = path
    if rest:
        nested = section.get(first, {})
        return {**section, first: _rename(nested, rest, name)} if nested else dict(section)
    return {name if key == first else key: value for key, value in section.items()}


def _upgrade_optim(optim: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.optim` whose optimiser and schedule have their arguments as options.

    Options that have their default are left out, as people write them.
    """
    taken = _OPTIMISERS.get(optim["name"], {})
    options = {k: optim[k] for k, default in taken.items() if k in optim and optim[k] != default}
    floor = {"floor": optim["lr_floor"]} if optim["lr_floor"] else {}
    kept = ("lr", "warmup_steps", "clip_norm", "layer_decay", "freeze")
    return {
        **{key: optim[key] for key in kept if key in optim},
        "name": _with_options(optim["name"], options),
        "schedule": _with_options("cosine", floor),
    }


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}({listed})" if listed else name
