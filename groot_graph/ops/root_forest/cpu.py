r"""Rooting as Numba kernels that list no neighbors: leaf after leaf is taken off the forest, and
the sizes of subtrees tell where in the order a node stands.
"""

import numpy as np
import torch
from torch import Tensor

from groot_graph.checks import check_acyclic, check_node_range, check_one_root_per_tree
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.cpu.order import make_plan, plan_size
from groot_graph.ops.minimum_spanning_forest.cpu import minimum_spanning_forest_cpu


def root_forest_cpu(
    edge_index: Tensor,
    edge_mask: Tensor | None,
    num_nodes: int,
    root: "str | Tensor" = "first",
) -> tuple[Tensor, Tensor]:
    source, target = edge_index.contiguous().numpy()
    is_kept = np.ones(len(source), np.bool_)
    if edge_mask is not None:
        is_kept = edge_mask.contiguous().numpy()
    number = np.int32 if max(num_nodes, 2 * len(source)) < 2**31 else np.int64
    ends = np.zeros((num_nodes, 2), number)
    num_kept = _count_ends(source, target, is_kept, ends)
    if num_kept < 0:
        check_node_range(edge_index, num_nodes)

    parent, size, taken = _take_highest_leaves(ends.copy())
    if len(taken) != num_kept:
        num_trees = _num_components(edge_index, is_kept, num_nodes)
        check_acyclic(num_nodes, num_trees, num_kept)
    roots = np.flatnonzero(parent == np.arange(num_nodes))
    if not isinstance(root, str) or root == "last":
        roots = _other_roots(root, parent, taken, roots)
        # A count below zero never comes to that of a leaf.
        ends[roots, 0] -= num_nodes + 1
        parent, size, taken = _take_highest_leaves(ends)
    order = np.empty(num_nodes, np.int64)
    _order_nodes(parent, size, taken, roots, order)
    return torch.from_numpy(order), torch.from_numpy(parent)


root_forest_plan_cpu, root_forest_plan_size_cpu = make_plan, plan_size


def _num_components(edge_index: Tensor, is_kept: np.ndarray, num_nodes: int) -> int:
    kept = edge_index[:, torch.from_numpy(is_kept)]
    forest = minimum_spanning_forest_cpu(kept, torch.zeros(kept.size(1)), num_nodes)
    return num_nodes - int(forest.sum())


def _other_roots(
    root: "str | Tensor", parent: np.ndarray, taken: np.ndarray, lowest: np.ndarray
) -> np.ndarray:
    r"""One root per tree, the trees by their lowest node."""
    tree, highest = np.empty_like(parent), lowest.copy()
    tree[lowest] = np.arange(len(lowest))
    _find_trees(parent, taken, tree, highest)
    if isinstance(root, str):
        return highest
    nodes = root.numpy()
    tree_of_root = tree[nodes]
    check_one_root_per_tree(len(lowest), len(nodes), len(np.unique(tree_of_root)))
    return nodes[np.argsort(tree_of_root)]


@compiled
def _count_ends(source, target, is_kept, ends):
    r"""For every node the number of its neighbors, and the XOR of them, which is the last one when
    the others are taken. Returns the number of kept edges, or -1 at a node that is out of range.
    """
    num_nodes, num_kept = len(ends), 0
    for edge in range(len(source)):
        if is_kept[edge]:
            first, second = source[edge], target[edge]
            # No door reads the edges of a compiled graph.
            if min(first, second) < 0 or max(first, second) >= num_nodes:
                return -1
            ends[first, 0] += 1
            ends[first, 1] ^= second
            ends[second, 0] += 1
            ends[second, 1] ^= first
            num_kept += 1
    return num_kept


@compiled
def _take_highest_leaves(ends):
    r"""Takes the highest leaf of the forest, again and again: the lowest node of a tree is left.

    Returns the parents, the sizes of subtrees, and the nodes that are taken, children before
    parents. Those on circles, and between two roots, are not.
    """
    parent, size = np.arange(len(ends)), np.ones_like(ends[:, 0])
    taken, num_taken = np.empty_like(size), 0
    for start in range(len(ends) - 1, -1, -1):
        node = start
        # What lies below the start is met later.
        while node >= start and ends[node, 0] == 1:
            above = ends[node, 1]
            parent[node] = above
            size[above] += size[node]
            ends[node, 0] = 0
            ends[above, 0] -= 1
            ends[above, 1] ^= node
            taken[num_taken] = node
            num_taken += 1
            node = above
    return parent, size, taken[:num_taken]


@compiled
def _find_trees(parent, taken, tree, highest):
    r"""Numbers every node's tree, that of the roots being known, and finds its highest node."""
    for step in range(len(taken) - 1, -1, -1):
        node = taken[step]
        tree[node] = tree[parent[node]]
    for node in range(len(tree)):
        highest[tree[node]] = node


@compiled
def _order_nodes(parent, size, taken, roots, order):
    r"""Depth first; siblings by node number, but the one with the largest subtree last, of equal
    ones the highest.
    """
    num_nodes = len(parent)
    heavy, place = np.full_like(size, -1), np.empty_like(size)
    for node in range(num_nodes):
        above = parent[node]
        if above != node and (heavy[above] < 0 or size[node] >= size[heavy[above]]):
            heavy[above] = node

    # Places count from the parent's on, where the first child comes next.
    next_place = np.ones_like(size)
    for node in range(num_nodes):
        above = parent[node]
        if heavy[above] == node:
            place[node] = size[above] - size[node]
        elif above != node:
            place[node] = next_place[above]
            next_place[above] += size[node]

    start = 0
    for root in roots:
        place[root] = start
        order[start] = root
        start += size[root]
    for step in range(len(taken) - 1, -1, -1):
        node = taken[step]
        place[node] += place[parent[node]]
        order[place[node]] = node
