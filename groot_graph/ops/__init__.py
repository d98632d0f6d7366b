r"""Operations on tensors: spanning forests, their rooting, and scans along them."""

from groot_graph.ops.minimum_spanning_forest import (
    minimum_spanning_forest,
    minimum_spanning_forest_stream,
)
from groot_graph.ops.root_forest import root_forest
from groot_graph.ops.selective_tree_scan import selective_tree_scan
from groot_graph.ops.tree_scan import tree_scan

__all__ = [
    "minimum_spanning_forest",
    "minimum_spanning_forest_stream",
    "root_forest",
    "selective_tree_scan",
    "tree_scan",
]
