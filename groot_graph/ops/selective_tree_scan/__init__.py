r"""The selective scan."""

from groot_graph.ops.selective_tree_scan.api import selective_tree_scan

__all__ = ["selective_tree_scan"]
