r"""The scan of a tree."""

from groot_graph.ops.tree_scan.api import tree_scan

__all__ = ["tree_scan"]
