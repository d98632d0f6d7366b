r"""The rooting of a forest."""

from groot_graph.ops.root_forest.api import root_forest

__all__ = ["root_forest"]
