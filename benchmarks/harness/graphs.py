"""The graphs that the rows share, every edge listed once; weights uniform in (0, 1] where no others
are named.
"""

import numpy as np
import torch
from torch_geometric.data import Data

import groot_graph
from groot_graph.graphs import grid_edge_index


def grids(graphs: int, height: int, width: int, seed: int = 0) -> Data:
    """Disjoint 4-connected grids as one graph, the vertical edges of each before the horizontal."""
    edge_index = grid_edge_index(height, width, num_graphs=graphs)
    return _weighted(edge_index, graphs * height * width, seed)


def random_graph(num_nodes: int, num_edges: int, seed: int = 0) -> Data:
    """Distinct node pairs drawn uniformly, in random order, without self-loops."""
    generator = torch.Generator().manual_seed(seed)
    # SciPy's sparse matrices add parallel edges up, so the graph must not have any.
    drawn = torch.randint(num_nodes, (2, num_edges + num_edges // 4), generator=generator)
    low, high = drawn.min(dim=0).values, drawn.max(dim=0).values
    pair = torch.unique((low * num_nodes + high)[low != high])
    pair = pair[torch.randperm(pair.numel(), generator=generator)[:num_edges]]
    return _weighted(torch.stack([pair // num_nodes, pair % num_nodes]), num_nodes, seed)


def neighbors(num_points: int, dimensions: int, k: int, seed: int = 0) -> Data:
    """Points of 50 normal clusters, every one joined to its nearest others, by Euclidean distance
    in float64: the form in which SciPy and scikit-learn hand it over.
    """
    from scipy.spatial import cKDTree

    generator = np.random.default_rng(seed)
    centers = 5 * generator.normal(size=(50, dimensions))
    points = centers[generator.integers(50, size=num_points)]
    points = points + generator.normal(size=(num_points, dimensions))
    distance, nearest = cKDTree(points).query(points, k + 1, workers=-1)
    source, target = np.repeat(np.arange(num_points), k), nearest[:, 1:].ravel()
    pair = np.minimum(source, target) * num_points + np.maximum(source, target)
    pair, edge = np.unique(pair, return_index=True)
    edge_index = torch.from_numpy(np.stack([pair // num_points, pair % num_points]))
    edge_weight = torch.from_numpy(distance[:, 1:].ravel()[edge])
    return Data(edge_index=edge_index, edge_weight=edge_weight, num_nodes=num_points)


def _weighted(edge_index: torch.Tensor, num_nodes: int, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    # Not rand itself: SciPy takes a stored weight of 0 for a missing edge.
    edge_weight = 1 - torch.rand(edge_index.size(1), generator=generator)
    return Data(edge_index=edge_index, edge_weight=edge_weight, num_nodes=num_nodes)


def spanning_forest(graph: Data) -> groot_graph.Forest:
    """The graph's minimum spanning forest, rooted at the first node of every tree."""
    mask = groot_graph.minimum_spanning_forest(graph.edge_index, graph.edge_weight, graph.num_nodes)
    return groot_graph.root_forest(graph.edge_index, mask, graph.num_nodes)
