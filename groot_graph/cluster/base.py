r"""What the estimators share: points, or a graph, become the edges of a spanning forest."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import validate_data
from torch_geometric.data import Data

from groot_graph.cluster.euclidean import trusted_euclidean_spanning_tree
from groot_graph.cluster.linkage import Edges, edges_of_graph, linkage_matrix


class SpanningForestClustering(ClusterMixin, BaseEstimator):
    r"""Base of the estimators that cut a spanning forest into clusters."""

    linkage_matrix_: np.ndarray

    def _fit_edges(self, X: Any, min_samples: int = 1) -> Edges:
        r"""Finds the spanning forest of points, or of a graph, and keeps it."""
        if isinstance(X, Data):
            edges = edges_of_graph(X, min_samples)
        else:
            pos = self._validated(X)
            if min_samples > len(pos):
                raise ValueError(
                    f"'min_samples' must be at most the number of samples, n_samples={len(pos)}, "
                    f"got {min_samples}"
                )
            edges = Edges(*trusted_euclidean_spanning_tree(pos, min_samples), len(pos))
        self.edge_index_, self.edge_weight_ = edges.edge_index, edges.edge_weight
        self.linkage_matrix_ = linkage_matrix(edges)
        return edges

    def _validated(self, X: Any) -> np.ndarray:
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu().numpy()
        options = {"ensure_min_samples": 2, "dtype": [np.float64, np.float32]}
        return np.asarray(validate_data(self, X, **options), dtype=np.float64)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "linkage_matrix_")
