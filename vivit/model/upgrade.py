"""Models of version 0.1.0 in the words of this one. No JAX."""

from collections.abc import Mapping
from typing import Any

READOUTS = {"attentive": "vjepa2_pool", "attention": "videoprism_pool", "map": "map_head"}


def upgrade_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a saved model, of this version or 0.1.0, as fields of ModelSettings."""
    model = dict(settings)
    if "readout" in model:
        model["readout"] = READOUTS.get(model["readout"], model["readout"])
    if model.get("stages"):
        model["stages"] = tuple(_upgrade_stage(dict(stage)) for stage in model["stages"])
    return _upgrade_family(model)


def _upgrade_family(model: dict[str, Any]) -> dict[str, Any]:
    """Returns settings whose family has the temporal depth as an option.

    0.1.0 had it as a field, and saved it with every model.
    """
    depth = model.pop("temporal_depth", None)
    if model.get("family", "factorised_encoder") == "factorised_encoder" and depth not in (None, 4):
        model["family"] = f"factorised_encoder(temporal_depth={depth})"
    return model


def _upgrade_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """0.1.0 called attentions mixers, and had TimeSformer's block as a pattern, divided_time."""
    if "mixers" in stage:
        names = tuple(stage.pop("mixers"))
        stage["attentions"] = tuple("time" if n == "divided_time" else n for n in names)
        if "divided_time" in names:
            if set(names) - {"divided_time", "space"}:
                raise ValueError(
                    f"a stage with mixers={names} of version 0.1.0 has no equal: divided_time goes "
                    "with space alone"
                )
            stage["block"] = "divided"
    return stage | {"pool": READOUTS.get(stage["pool"], stage["pool"])}
