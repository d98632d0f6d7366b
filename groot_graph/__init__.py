r"""Tree state space models on graphs, on PyTorch Geometric."""

from groot_graph import datasets, nn, transforms
from groot_graph.errors import NotANumberError
from groot_graph.forest import Forest
from groot_graph.ops.minimum_spanning_forest import (
    minimum_spanning_forest,
    minimum_spanning_forest_stream,
)
from groot_graph.ops.root_forest import root_forest
from groot_graph.ops.selective_tree_scan import selective_tree_scan
from groot_graph.ops.tree_scan import tree_scan

__version__ = "0.1.0"

__all__ = [
    "Forest",
    "NotANumberError",
    "datasets",
    "minimum_spanning_forest",
    "minimum_spanning_forest_stream",
    "nn",
    "root_forest",
    "selective_tree_scan",
    "transforms",
    "tree_scan",
]
