r"""Single linkage clustering."""

from typing import Any

import numpy as np
from torch import Tensor

from groot_graph.checks import check_number, check_positive_int
from groot_graph.cluster.base import SpanningForestClustering
from groot_graph.cluster.linkage import Edges
from groot_graph.ops.root_forest.api import trusted_root_forest


class SingleLinkage(SpanningForestClustering):
    r"""Single linkage clustering: the trees that are left when the longest edges of a minimum
    spanning tree are cut.

    Points are joined by their exact Euclidean spanning tree
    (:func:`~groot_graph.cluster.euclidean_spanning_tree`), a graph by
    :func:`~groot_graph.minimum_spanning_forest` over its edge weights, on its device. The clusters
    of a graph of nearest neighbors are those of the points where it holds the edges of their tree;
    with few neighbors it may lack the longest ones.

    From `"Minimum Spanning Trees and Single Linkage Cluster Analysis"
    <https://doi.org/10.2307/2346439>`_ (Gower and Ross, 1969).

    Args:
        n_clusters (int, optional): The number of clusters. Must be :obj:`None` where
            :obj:`distance_threshold` is given. A graph of more connected components has these.
            (default: :obj:`2`)
        distance_threshold (float, optional): The distance at and above which clusters are not
            joined, in the unit of the points or of the edge weights. (default: :obj:`None`)

    Attributes:
        labels_ (ndarray): The cluster of every node, of shape :obj:`[num_nodes]`. Clusters are
            numbered by their lowest node, as :attr:`groot_graph.Forest.labels` are.
        n_clusters_ (int): The number of clusters.
        linkage_matrix_ (ndarray): All merges, as SciPy's :func:`~scipy.cluster.hierarchy.linkage`
            returns them, of shape :obj:`[num_nodes - 1, 4]`. Connected components of a graph merge
            at infinity.
        edge_index_ (LongTensor): The edges of the spanning forest, the shortest first, of shape
            :obj:`[2, num_edges]`.
        edge_weight_ (Tensor): Their lengths, of shape :obj:`[num_edges]`.

    The clusters are those of SciPy's :func:`~scipy.cluster.hierarchy.fcluster`, which joins at the
    threshold itself, too, and of :class:`~sklearn.cluster.AgglomerativeClustering`. Where edges of
    equal length stand at the cut between :obj:`n_clusters`, one of them is chosen.

    Example:
        >>> import numpy as np
        >>> from groot_graph.cluster import SingleLinkage
        >>> points = np.array([[0.0], [5.0], [1.0], [5.5], [9.0]])
        >>> SingleLinkage(n_clusters=3).fit_predict(points)
        array([0, 1, 0, 1, 2])
        >>> SingleLinkage(n_clusters=None, distance_threshold=3.8).fit(points).n_clusters_
        2
    """

    def __init__(
        self, n_clusters: int | None = 2, *, distance_threshold: float | None = None
    ) -> None:
        self.n_clusters: Any = n_clusters
        self.distance_threshold = distance_threshold

    def fit(self, X: Any, y: Any = None) -> "SingleLinkage":
        r"""Finds the clusters.

        Args:
            X (array-like or torch_geometric.data.Data): Points, of shape
                :obj:`[num_points, dim]`, or a graph with **edge_index**
                :math:`(2, |\mathcal{E}|)` and its distances **edge_weight**
                :math:`(|\mathcal{E}|)`, such as
                :class:`~groot_graph.transforms.PointsToGraph` makes.
            y (None, optional): Not used, there for scikit-learn's sake.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If there are fewer than two points or than :obj:`n_clusters`, a value is
                not finite, a distance is negative, or not exactly one of :obj:`n_clusters` and
                :obj:`distance_threshold` is given.
        """
        self._check_options()
        edges = self._fit_edges(X)
        if self.n_clusters is not None and self.n_clusters > edges.num_nodes:
            raise ValueError(
                f"'n_clusters' must be at most the number of samples, n_samples="
                f"{edges.num_nodes}, got {self.n_clusters}"
            )
        kept = edges.edge_index[:, : self._num_kept(edges)]
        self.labels_ = _labels(kept, edges.num_nodes)
        self.n_clusters_ = int(self.labels_.max()) + 1
        return self

    def _num_kept(self, edges: Edges) -> int:
        if self.distance_threshold is None:
            return edges.num_nodes - self.n_clusters
        return int((edges.edge_weight < self.distance_threshold).sum())

    def _check_options(self) -> None:
        if (self.n_clusters is None) == (self.distance_threshold is None):
            raise ValueError(
                "exactly one of 'n_clusters' and 'distance_threshold' must be given, the other "
                f"None, got n_clusters={self.n_clusters} and "
                f"distance_threshold={self.distance_threshold}"
            )
        if self.distance_threshold is None:
            check_positive_int("n_clusters", self.n_clusters)
            return
        check_number("distance_threshold", self.distance_threshold)
        if not self.distance_threshold >= 0:
            raise ValueError(
                f"'distance_threshold' must not be negative, got {self.distance_threshold}"
            )


def _labels(edge_index: Tensor, num_nodes: int) -> np.ndarray:
    return trusted_root_forest(edge_index, None, num_nodes).labels.cpu().numpy()
