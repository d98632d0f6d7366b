r"""Clusters of points and graphs, cut out of their spanning forests, in scikit-learn's manner."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "groot_graph.cluster needs scikit-learn: pip install groot-graph[cluster]"
    ) from error

from groot_graph.cluster.euclidean import euclidean_spanning_tree
from groot_graph.cluster.hdbscan import HDBSCAN
from groot_graph.cluster.single_linkage import SingleLinkage

__all__ = ["HDBSCAN", "SingleLinkage", "euclidean_spanning_tree"]
