r"""A spanning tree as SciPy's linkage matrix, and points or a graph as its edges."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from groot_graph.checks import check_edge_index, check_edge_weight, check_node_range, check_not_nan
from groot_graph.cluster import cpu
from groot_graph.ops.minimum_spanning_forest.api import trusted_minimum_spanning_forest
from groot_graph.ops.root_forest.api import trusted_root_forest


class Edges(NamedTuple):
    r"""The edges of a spanning forest, the lightest first."""

    edge_index: Tensor  # [2, num_edges]
    edge_weight: Tensor  # [num_edges]
    num_nodes: int


def linkage_matrix(edges: Edges) -> np.ndarray:
    r"""The merges of single linkage, of shape :obj:`[num_nodes - 1, 4]`, as
    :func:`scipy.cluster.hierarchy.linkage` returns them. Separate trees merge at infinity.
    """
    source, target, weight = _joined_at_infinity(edges)
    matrix = np.empty((len(weight), 4))
    above, number = np.arange(edges.num_nodes), np.arange(edges.num_nodes)
    cpu.merge_in_sequence(source, target, weight, above, number, matrix)
    return matrix


def spanning_tree_of(edges: Edges) -> np.ndarray:
    r"""Source, target and weight of every edge, as rows. Separate trees are joined at infinity."""
    return np.stack(_joined_at_infinity(edges), axis=1)


def _joined_at_infinity(edges: Edges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    source, target = edges.edge_index.cpu().numpy()
    weight = edges.edge_weight.cpu().double().numpy()
    missing = edges.num_nodes - 1 - len(weight)
    if missing > 0:
        roots = trusted_root_forest(edges.edge_index.cpu(), None, edges.num_nodes).roots.numpy()
        source, target = np.append(source, roots[:-1]), np.append(target, roots[1:])
        weight = np.append(weight, np.full(missing, np.inf))
    return source, target, weight


def edges_of_graph(data: Data, min_samples: int = 1) -> Edges:
    r"""The spanning forest of a graph with edge weights, on its device.

    Weights become mutual reachability distances where `min_samples` is more than one: no edge of a
    node is shorter than the one to the last of its `min_samples` nearest nodes, itself the first.
    """
    _check_graph(data)
    edge_index, edge_weight, num_nodes = data.edge_index, data.edge_weight.detach(), data.num_nodes
    if min_samples > 1:
        edge_index, edge_weight = to_undirected(edge_index, edge_weight, num_nodes, reduce="min")
        edge_weight = _mutual_reachability(edge_index, edge_weight, num_nodes, min_samples)
    is_kept = trusted_minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    is_kept = is_kept & edge_weight.isfinite()
    edge_weight, order = edge_weight[is_kept].sort(stable=True)
    return Edges(edge_index[:, is_kept][:, order], edge_weight, num_nodes)


def _mutual_reachability(
    edge_index: Tensor, edge_weight: Tensor, num_nodes: int, min_samples: int
) -> Tensor:
    is_loop = edge_index[0] == edge_index[1]
    weight = edge_weight.double().masked_fill(is_loop, torch.inf)
    weight, order = weight.sort(stable=True)
    source = edge_index[0, order]
    source, by_source = source.sort(stable=True)
    weight = weight[by_source]
    degree = source.bincount(minlength=num_nodes)
    place = degree.cumsum(0) - degree + min_samples - 2
    has_enough = degree > min_samples - 2
    core = weight.new_full((num_nodes,), torch.inf)
    core = core.masked_scatter(has_enough, weight[place[has_enough]])
    return torch.maximum(edge_weight.double(), core[edge_index].amax(dim=0))


def _check_graph(data: Any) -> None:
    for key in ("edge_index", "edge_weight"):
        if key not in data:
            raise ValueError(
                f"'X' must carry '{key}', as PointsToGraph leaves it, got {data.keys()}"
            )
    check_edge_index(data.edge_index)
    check_edge_weight(data.edge_weight, data.edge_index)
    check_node_range(data.edge_index, data.num_nodes)
    check_not_nan("edge_weight", data.edge_weight)
    if bool((data.edge_weight < 0).any()):
        raise ValueError(
            "'edge_weight' must hold distances from zero on, got "
            f"{float(data.edge_weight.min()):g}: turn similarities around first"
        )
    if data.num_nodes < 2:
        raise ValueError(f"'X' must hold at least two nodes, got {data.num_nodes}")
