from groot_graph.ops.minimum_spanning_forest.api import minimum_spanning_forest

__all__ = ["minimum_spanning_forest"]
