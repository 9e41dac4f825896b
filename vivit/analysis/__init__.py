"""Where a video transformer looks."""

from vivit.analysis import relevance as relevance  # it registers its methods
from vivit.analysis.attention import Attention
from vivit.analysis.attribution import attribute
from vivit.analysis.capture import AttentionMaps, capture
from vivit.analysis.kept import Kept
from vivit.analysis.overlay import heat_on_frames, overlay
from vivit.analysis.rollout import rollout
from vivit.analysis.run import Run, open_run

__all__ = [
    "Attention",
    "AttentionMaps",
    "Kept",
    "Run",
    "attribute",
    "capture",
    "heat_on_frames",
    "open_run",
    "overlay",
    "rollout",
]
