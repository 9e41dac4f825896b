"""Pretrained weights in and out: public video and image transformers as models of vivit.

from vivit import pretrained

loaded = pretrained.load("weights/vivit-b-16x2-kinetics400")
logits = vivit.build(loaded.model_config).apply({"params": loaded.params}, clips)

The names load their modules when they are first used, so that a run without pretrained weights
imports none of them.
"""

from typing import TYPE_CHECKING

from vivit.lazy import lazy

if TYPE_CHECKING:
    from vivit.pretrained.hf_writers import WRITERS, export
    from vivit.pretrained.loader import SOURCES, Pretrained, load
    from vivit.pretrained.report import Report, Row

_HOMES = {
    "SOURCES": "loader",
    "Pretrained": "loader",
    "load": "loader",
    "Report": "report",
    "Row": "report",
    "WRITERS": "hf_writers",
    "export": "hf_writers",
}
__all__ = ["SOURCES", "WRITERS", "Pretrained", "Report", "Row", "export", "load"]
__getattr__ = lazy(__name__, _HOMES)
