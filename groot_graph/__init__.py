r"""Tree state space models on graphs, on PyTorch Geometric."""

from groot_graph import nn, transforms
from groot_graph.forest import Forest
from groot_graph.ops import (
    minimum_spanning_forest,
    root_forest,
    selective_tree_scan,
    tree_scan,
)

__version__ = "0.1.0"

__all__ = [
    "Forest",
    "minimum_spanning_forest",
    "nn",
    "root_forest",
    "selective_tree_scan",
    "transforms",
    "tree_scan",
]
