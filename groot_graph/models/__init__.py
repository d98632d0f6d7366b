r"""The networks of the paper."""

from groot_graph.models.grootv import GrootV, grootv_base, grootv_small, grootv_tiny
from groot_graph.models.grootv_checkpoint import convert_grootv_checkpoint, load_grootv

__all__ = [
    "GrootV",
    "convert_grootv_checkpoint",
    "grootv_base",
    "grootv_small",
    "grootv_tiny",
    "load_grootv",
]
