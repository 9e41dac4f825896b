"""Where a video transformer looks."""

from vivit.analysis.capture import Attention, AttentionMaps, capture
from vivit.analysis.overlay import heat_on_frames, overlay
from vivit.analysis.rollout import rollout

__all__ = ["Attention", "AttentionMaps", "capture", "heat_on_frames", "overlay", "rollout"]
