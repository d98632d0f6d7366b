r"""The minimum spanning forest of a graph."""

from groot_graph.ops.minimum_spanning_forest.api import minimum_spanning_forest
from groot_graph.ops.minimum_spanning_forest.stream import minimum_spanning_forest_stream

__all__ = ["minimum_spanning_forest", "minimum_spanning_forest_stream"]
