r"""The exact spanning tree of points, over all their pairs."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from sklearn.neighbors import KDTree
from torch import Tensor

from groot_graph.checks import check_floating, check_positive_int, check_shape
from groot_graph.cluster import cpu
from groot_graph.ops.cpu.threads import run_in_chunks
from groot_graph.ops.minimum_spanning_forest.api import trusted_minimum_spanning_forest
from groot_graph.ops.root_forest.api import trusted_root_forest

# More find fewer edges left to search for, and cost more themselves.
FEWEST_NEIGHBORS = 8
POINTS_PER_LEAF = 8


class Points(NamedTuple):
    r"""Points in the sequence of a k-d tree whose node `i` has the children `2i + 1`, `2i + 2`."""

    pos: np.ndarray  # [num_points, dim]
    core: np.ndarray  # [num_points], distance of the last of min_samples
    radius: np.ndarray  # [num_points], within which all neighbors are known
    first: np.ndarray  # [num_nodes], the node's points ...
    last: np.ndarray  # [num_nodes], ... up to this one, not included
    is_leaf: np.ndarray  # [num_nodes]
    low: np.ndarray  # [num_nodes, dim], corners of the box
    high: np.ndarray
    least_radius: np.ndarray  # [num_nodes], of the node's points


def euclidean_spanning_tree(pos: Tensor, min_samples: int = 1) -> tuple[Tensor, Tensor]:
    r"""Finds the minimum spanning tree of points, over all pairs of them.

    .. math::
        w_{ij} = \max ( \| \mathbf{p}_i - \mathbf{p}_j \|_2, \; \kappa_i, \; \kappa_j )

    where the core distance :math:`\kappa_i` is the distance of :math:`\mathbf{p}_i` to the last of
    its :obj:`min_samples` nearest points, itself the first of them: zero by default, so that the
    tree is the Euclidean one. Otherwise it is that of the mutual reachability distance.

    The spanning forest of a graph of nearest neighbors has most of its edges. An edge that joins a
    part of it to the rest is one of the tree where all points of that part know their neighbors up
    to its length. The others are searched for by Borůvka's algorithm over pairs of nodes of a k-d
    tree. That is exact in any dimension, and quick up to about ten.

    From `"Fast Euclidean Minimum Spanning Tree: Algorithm, Analysis, and Applications"
    <https://doi.org/10.1145/1835804.1835882>`_ (March, Ram and Gray, KDD 2010) and `"Accelerated
    Hierarchical Density Based Clustering" <https://arxiv.org/abs/1705.07321>`_ (McInnes and Healy,
    2017).

    Args:
        pos (Tensor): The points, floating point, of shape :obj:`[num_points, dim]`. Computed in
            :obj:`float64` on the CPU.
        min_samples (int, optional): The number of points that decide on a core distance, at most
            :obj:`num_points`. (default: :obj:`1`)

    Returns:
        tuple: :obj:`edge_index` of shape :obj:`[2, num_points - 1]` and :obj:`edge_weight`
        :math:`w`, in :obj:`float64`, of shape :obj:`[num_points - 1]`, the lightest edge first.
        Which of equally long edges are kept is not said.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the shape does not fit, a coordinate is not finite, or there are fewer points
            than :obj:`min_samples`.

    Example:
        >>> import torch
        >>> from groot_graph.cluster import euclidean_spanning_tree
        >>> pos = torch.tensor([[0.0], [4.0], [1.0], [6.0]])
        >>> euclidean_spanning_tree(pos)
        (tensor([[0, 1, 1],
                [2, 3, 2]]), tensor([1., 2., 3.], dtype=torch.float64))
    """
    check_floating("pos", pos)
    check_shape("pos", pos, (None, None), "[num_points, dim]")
    check_positive_int("min_samples", min_samples)
    if not bool(pos.isfinite().all()):
        raise ValueError("'pos' must be finite, got NaN or infinity")
    if min_samples > max(len(pos), 1):
        raise ValueError(
            f"'min_samples' must be at most the number of points, {len(pos)}, got {min_samples}"
        )
    points = pos.detach().double().cpu()
    edge_index, edge_weight = trusted_euclidean_spanning_tree(points.numpy(), min_samples)
    return edge_index.to(pos.device), edge_weight.to(pos.device)


def trusted_euclidean_spanning_tree(pos: np.ndarray, min_samples: int) -> tuple[Tensor, Tensor]:
    r"""The spanning tree of points that are known to fit, in :obj:`float64`."""
    if len(pos) < 2:
        return torch.empty(2, 0, dtype=torch.long), torch.empty(0, dtype=torch.float64)
    # A power of two, so that no square overflows and no digit is lost.
    scale = 2.0 ** (math.frexp(np.abs(pos).max(initial=0))[1] - 1)
    pos = pos / scale
    tree = KDTree(pos, leaf_size=POINTS_PER_LEAF)
    _, place, nodes, (low, high) = map(np.asarray, tree.get_arrays())
    # Neighbors in space become neighbors in memory.
    pos = np.ascontiguousarray(pos[place])
    neighbor, distance = _nearest(pos, max(min_samples, FEWEST_NEIGHBORS))
    core, radius = distance[:, min_samples - 1].copy(), distance[:, -1].copy()
    if neighbor.shape[1] == len(pos):
        radius[:] = np.inf
    first, last = nodes["idx_start"].copy(), nodes["idx_end"].copy()
    is_leaf, least_radius = nodes["is_leaf"].astype(bool), np.empty(len(nodes))
    cpu.least_of_nodes(radius, first, last, is_leaf, least_radius)
    points = Points(pos, core, radius, first, last, is_leaf, low, high, least_radius)

    edge_index, edge_weight = _joined(points, *_forest_of_neighbors(neighbor, distance, core))
    edge_weight, order = edge_weight.sort(stable=True)
    return torch.from_numpy(place)[edge_index[:, order]], scale * edge_weight


def _nearest(pos: np.ndarray, num_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    r"""The nearest points of every point, itself the first, and their distances."""
    num_neighbors = min(num_neighbors, len(pos))
    tree = cKDTree(pos, balanced_tree=False, compact_nodes=False)
    distance, neighbor = tree.query(
        pos, k=np.arange(1, num_neighbors + 1), workers=torch.get_num_threads()
    )
    return neighbor, distance


def _forest_of_neighbors(
    neighbor: np.ndarray, distance: np.ndarray, core: np.ndarray
) -> tuple[Tensor, Tensor]:
    r"""The spanning forest of the graph of nearest neighbors, its lightest edge first."""
    weight = np.maximum(np.maximum(distance, core[neighbor]), core[:, None])
    source = torch.arange(len(neighbor))[:, None].expand(neighbor.shape)
    edge_index = torch.stack([source.flatten(), torch.from_numpy(neighbor).flatten()])
    edge_weight = torch.from_numpy(weight).flatten()
    is_kept = trusted_minimum_spanning_forest(edge_index, edge_weight, len(neighbor))
    edge_weight, order = edge_weight[is_kept].sort(stable=True)
    return edge_index[:, is_kept][:, order], edge_weight


def _joined(points: Points, edge_index: Tensor, edge_weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""The spanning tree of all pairs, of which a forest of the known ones is given."""
    num_points = len(points.pos)
    is_certain = torch.empty(len(edge_weight), dtype=torch.bool)
    cpu.find_certain(
        *edge_index.numpy(), edge_weight.numpy(), np.arange(num_points), points.radius.copy(),
        is_certain.numpy(),
    )  # fmt: skip
    kept = [edge_index[:, is_certain]], [edge_weight[is_certain]]
    component = trusted_root_forest(kept[0][0], None, num_points).labels
    edge_index, edge_weight = edge_index[:, ~is_certain], edge_weight[~is_certain]
    while sum(map(len, kept[1])) < num_points - 1:
        found, weight = _lightest_edges(points, component, edge_index, edge_weight)
        num_components = int(component.max()) + 1
        # Two components may have found the same edge.
        is_kept = trusted_minimum_spanning_forest(component[found], weight, num_components)
        kept[0].append(found[:, is_kept])
        kept[1].append(weight[is_kept])
        merged = trusted_root_forest(component[found], is_kept, num_components).labels
        component = merged[component]
        leaves = component[edge_index[0]] != component[edge_index[1]]
        edge_index, edge_weight = edge_index[:, leaves], edge_weight[leaves]
    return torch.cat(kept[0], dim=1), torch.cat(kept[1])


def _lightest_edges(
    points: Points, component: Tensor, edge_index: Tensor, edge_weight: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The lightest edge that leaves each component, and some that are the lightest of none.

    The known edges, the lightest first, bound the search for unknown ones.
    """
    labels, num_components = component.numpy(), int(component.max()) + 1
    number = np.full(num_components, len(edge_weight))
    for ends in labels[edge_index.numpy()]:
        np.minimum.at(number, ends, np.arange(len(ends)))
    weight = np.append(edge_weight.numpy(), np.inf)[number]

    of_node = np.empty(len(points.first), dtype=np.int64)
    cpu.components_of_nodes(labels, points.first, points.last, points.is_leaf, of_node)
    nearest = np.full(len(labels), np.inf)
    partner = np.full(len(labels), -1)
    run_in_chunks(
        cpu.search_pairs, len(units := _units(of_node, points.is_leaf)), units, *points, labels,
        of_node, weight.copy(), nearest, partner,
    )  # fmt: skip
    found = np.full((2, num_components), -1)
    cpu.lightest_of_components(labels, nearest, partner, weight, *found)
    is_found = found[0] >= 0
    known = torch.from_numpy(np.unique(number[~is_found]))
    new_index = torch.from_numpy(found[:, is_found])
    new_weight = torch.from_numpy(weight[is_found])
    return (
        torch.cat([edge_index[:, known], new_index], dim=1),
        torch.cat([edge_weight[known], new_weight]),
    )


def _units(of_node: np.ndarray, is_leaf: np.ndarray) -> np.ndarray:
    r"""The largest nodes whose points are of one component each, and the leaves that have none."""
    above = (np.arange(len(of_node)) - 1) // 2
    is_whole = of_node >= 0
    is_largest = is_whole & ~np.where(above >= 0, is_whole[above], False)
    return np.flatnonzero(is_largest | (is_leaf & ~is_whole))
