r"""Hierarchical density-based clustering."""

import math
from typing import Any

import numpy as np

from groot_graph.checks import check_bool, check_choice, check_number, check_positive_int
from groot_graph.cluster.base import SpanningForestClustering
from groot_graph.cluster.linkage import Edges, spanning_tree_of


class HDBSCAN(SpanningForestClustering):
    r"""Hierarchical density-based clustering with noise: the clusters that persist longest when
    the edges of a spanning tree are cut, the longest first.

    .. math::
        w_{ij} = \max ( d_{ij}, \; \kappa_i, \; \kappa_j )

    is the mutual reachability distance that the tree is grown over, where the core distance
    :math:`\kappa_i` is the distance to the last of the :obj:`min_samples` nearest points of
    :math:`i`, itself the first of them.

    Points are joined by their exact tree (:func:`~groot_graph.cluster.euclidean_spanning_tree`),
    a graph by :func:`~groot_graph.minimum_spanning_forest` over its edges, on its device. **The
    clusters of a graph of nearest neighbors are approximate**, because it lacks long edges: they
    come near those of the points where it has a few times :obj:`min_samples` neighbors each. A node
    of fewer than :obj:`min_samples - 1` edges is noise. The tree is condensed, and its clusters
    are chosen, on the CPU by fast_hdbscan.

    From `"Density-Based Clustering Based on Hierarchical Density Estimates"
    <https://doi.org/10.1007/978-3-642-37456-2_14>`_ (Campello, Moulavi and Sander, 2013).

    Args:
        min_cluster_size (int, optional): The fewest points of a cluster. (default: :obj:`5`)
        min_samples (int, optional): The number of points that decide on a core distance, as
            scikit-learn counts: the point itself is one of them.
            (default: :obj:`min_cluster_size`)
        cluster_selection_epsilon (float, optional): Clusters that part below this distance are
            kept together. (default: :obj:`0.0`)
        max_cluster_size (int, optional): The most points of a cluster that is chosen by
            :obj:`"eom"`. (default: no limit)
        cluster_selection_method (str, optional): :obj:`"eom"` chooses the clusters of greatest
            stability (excess of mass), :obj:`"leaf"` the smallest ones. (default: :obj:`"eom"`)
        allow_single_cluster (bool, optional): Whether all points may be one cluster.
            (default: :obj:`False`)

    Attributes:
        labels_ (ndarray): The cluster of every node, -1 for noise, of shape :obj:`[num_nodes]`.
            Clusters are numbered by their lowest node.
        probabilities_ (ndarray): How strongly every node belongs to its cluster, from 0 (noise) to
            1 (its densest nodes, those of clusters within it aside), of shape
            :obj:`[num_nodes]`.
        linkage_matrix_ (ndarray): All merges of single linkage over :math:`w`, as SciPy's
            :func:`~scipy.cluster.hierarchy.linkage` returns them, of shape
            :obj:`[num_nodes - 1, 4]`. Connected components of a graph merge at infinity.
        edge_index_ (LongTensor): The edges of the spanning forest, the shortest first, of shape
            :obj:`[2, num_edges]`.
        edge_weight_ (Tensor): Their :math:`w`, of shape :obj:`[num_edges]`.

    The clusters are those of scikit-learn's :class:`~sklearn.cluster.HDBSCAN`, but for ties: where
    several edges are equally long, their sequence may decide which points are noise.

    Example:
        >>> import numpy as np
        >>> from groot_graph.cluster import HDBSCAN
        >>> points = np.array([0.0, 0.1, 0.25, 5.0, 5.1, 5.3, 99.0])[:, None]
        >>> HDBSCAN(min_cluster_size=3, min_samples=2).fit_predict(points)
        array([ 0,  0,  0,  1,  1,  1, -1])
    """

    def __init__(
        self,
        min_cluster_size: int = 5,
        min_samples: int | None = None,
        *,
        cluster_selection_epsilon: float = 0.0,
        max_cluster_size: int | None = None,
        cluster_selection_method: str = "eom",
        allow_single_cluster: bool = False,
    ) -> None:
        self.min_cluster_size = min_cluster_size
        self.min_samples = min_samples
        self.cluster_selection_epsilon = cluster_selection_epsilon
        self.max_cluster_size = max_cluster_size
        self.cluster_selection_method = cluster_selection_method
        self.allow_single_cluster = allow_single_cluster

    def fit(self, X: Any, y: Any = None) -> "HDBSCAN":
        r"""Finds the clusters.

        Args:
            X (array-like or torch_geometric.data.Data): Points, of shape
                :obj:`[num_points, dim]`, or a graph with **edge_index**
                :math:`(2, |\mathcal{E}|)` and its distances **edge_weight**
                :math:`(|\mathcal{E}|)`, such as
                :class:`~groot_graph.transforms.PointsToGraph` makes.
            y (None, optional): Not used, there for scikit-learn's sake.

        Raises:
            ImportError: If fast_hdbscan is not installed.
            TypeError: If an argument has the wrong type.
            ValueError: If there are fewer than two points or than :obj:`min_samples`, a value is
                not finite, a distance is negative, or an option does not fit.
        """
        self._check_options()
        min_samples = self.min_cluster_size if self.min_samples is None else self.min_samples
        labels, self.probabilities_ = self._condensed(self._fit_edges(X, min_samples))
        self.labels_ = _numbered_by_first(labels)
        return self

    def _condensed(self, edges: Edges) -> tuple[np.ndarray, np.ndarray]:
        labels, probabilities, *_ = _import_fast_hdbscan()(
            spanning_tree_of(edges),
            min_cluster_size=self.min_cluster_size,
            cluster_selection_method=self.cluster_selection_method,
            max_cluster_size=self.max_cluster_size or math.inf,
            allow_single_cluster=self.allow_single_cluster,
            cluster_selection_epsilon=float(self.cluster_selection_epsilon),
        )
        return labels, probabilities

    def _check_options(self) -> None:
        check_positive_int("min_cluster_size", self.min_cluster_size, least=2)
        for name in ("min_samples", "max_cluster_size"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name))
        check_number("cluster_selection_epsilon", self.cluster_selection_epsilon)
        if not 0 <= self.cluster_selection_epsilon < math.inf:
            raise ValueError(
                "'cluster_selection_epsilon' must be finite and not negative, got "
                f"{self.cluster_selection_epsilon}"
            )
        check_choice("cluster_selection_method", self.cluster_selection_method, ("eom", "leaf"))
        check_bool("allow_single_cluster", self.allow_single_cluster)


def _numbered_by_first(labels: np.ndarray) -> np.ndarray:
    r"""The same clusters, numbered by their lowest node."""
    names, first = np.unique(labels, return_index=True)
    is_cluster = names >= 0
    number = np.full(len(names), -1)
    number[np.flatnonzero(is_cluster)[first[is_cluster].argsort()]] = np.arange(is_cluster.sum())
    return number[np.searchsorted(names, labels)]


def _import_fast_hdbscan() -> Any:
    try:
        from fast_hdbscan.hdbscan import clusters_from_spanning_tree
    except ImportError as error:
        raise ImportError("HDBSCAN needs fast_hdbscan: pip install groot-graph[cluster]") from error
    return clusters_from_spanning_tree
