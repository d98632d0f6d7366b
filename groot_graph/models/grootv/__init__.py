r"""GrootV, the vision networks; :obj:`groot_graph.models.grootv.transformers` and
:obj:`groot_graph.models.grootv.timm` are the same for these libraries.
"""

from groot_graph.models.grootv.checkpoint import convert_grootv_checkpoint, load_grootv
from groot_graph.models.grootv.network import (
    GrootV,
    grootv_base,
    grootv_micro,
    grootv_small,
    grootv_tiny,
)

__all__ = [
    "GrootV",
    "convert_grootv_checkpoint",
    "grootv_base",
    "grootv_micro",
    "grootv_small",
    "grootv_tiny",
    "load_grootv",
]
