r"""Generated tasks whose answer lies many edges away."""

from groot_graph.datasets.clique_path import CliquePath
from groot_graph.datasets.crossed_ring import CrossedRing
from groot_graph.datasets.ring_transfer import RingTransfer
from groot_graph.datasets.tree_neighbors_match import TreeNeighborsMatch

__all__ = ["CliquePath", "CrossedRing", "RingTransfer", "TreeNeighborsMatch"]
