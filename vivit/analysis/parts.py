"""Parts that the pages of all runs have."""

import json
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vivit.analysis.overlay import heat_on_frames, overlay
from vivit.analysis.page import film, text
from vivit.io import read_json
from vivit.model.config import ModelConfig
from vivit.run import Run

Frames = UInt8[np.ndarray, "F H W 3"]


def cost_cards(run: Run) -> list[tuple[str, str]]:
    """Returns what a run's model costs, for `cards`; nothing for a run that has not recorded it."""
    path = run.folder / "cost.json"
    if not path.exists():
        return []
    cost = read_json(path)
    return [
        ("parameters", f"{cost['parameters']:,}"),
        ("multiply-adds per clip", f"{cost['multiply_adds'] / 1e6:,.1f} M"),
    ]


def config_details(config: dict[str, Any]) -> str:
    """Returns a config as JSON that a click unfolds."""
    shown = text(json.dumps(config, indent=2))
    return f"<details><summary>all of it</summary><pre>{shown}</pre></details>"


def film_scale(clip: Frames) -> int:
    """Returns by how much a clip is enlarged, so that small ones can be seen."""
    return max(1, 128 // clip.shape[1])


def rollout_films(
    clip: Frames, part: Float[np.ndarray, "T S"], config: ModelConfig
) -> tuple[str, Frames]:
    """Returns a clip next to itself with its rollout, and the latter's frames."""
    heat = heat_on_frames(part, grid=config.grid, clip=config.clip)
    covered, scale = overlay(clip, heat, mean=1 / part.size), film_scale(clip)
    films = film(clip, scale=scale, alt="the clip") + film(
        covered, scale=scale, alt="the clip with its rollout"
    )
    return f'<div class="side">{films}</div>', covered
