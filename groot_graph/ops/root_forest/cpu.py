r"""Rooting as Numba kernels: adjacency by counting, a search for the parents, one for the order."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from groot_graph.checks import check_acyclic, check_node_range, check_one_root_per_tree
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.cpu.order import make_plan, plan_size


def root_forest_cpu(
    edge_index: Tensor,
    edge_mask: Tensor | None,
    num_nodes: int,
    root: "str | Tensor" = "first",
) -> tuple[Tensor, Tensor]:
    source, target = edge_index.contiguous().numpy()
    if edge_mask is not None:
        is_kept = edge_mask.numpy()
        source, target = source[is_kept], target[is_kept]
    number = np.int32 if max(num_nodes, 2 * len(source)) < 2**31 else np.int64
    start, neighbor = np.zeros(num_nodes + 1, number), np.empty(2 * len(source), number)

    parent, size = np.full(num_nodes, -1, np.int64), np.ones(num_nodes, number)
    visited, tree_start = np.empty(num_nodes, number), np.empty(num_nodes + 1, number)
    num_trees = _find_trees(source, target, start, neighbor, parent, visited, tree_start)
    if num_trees < 0:
        check_node_range(edge_index, num_nodes)
    check_acyclic(num_nodes, num_trees, len(source))

    tree_start = tree_start[: num_trees + 1]
    roots = _roots(root, visited, tree_start)
    order = np.empty(num_nodes, np.int64)
    _order_nodes(start, neighbor, visited, tree_start, roots, parent, size, order)
    return torch.from_numpy(order), torch.from_numpy(parent)


root_forest_plan_cpu, root_forest_plan_size_cpu = make_plan, plan_size


def _roots(root: "str | Tensor", visited: np.ndarray, tree_start: np.ndarray) -> np.ndarray:
    r"""One root per tree, the trees by their lowest node."""
    first_of_tree = tree_start[:-1]
    if isinstance(root, str):
        lowest = visited[first_of_tree]
        if root == "first" or len(lowest) == 0:
            return lowest
        return np.maximum.reduceat(visited, first_of_tree)
    tree = np.empty_like(visited)
    tree[visited] = np.repeat(np.arange(len(first_of_tree)), np.diff(tree_start))
    tree_of_root = tree[root.numpy()]
    check_one_root_per_tree(len(first_of_tree), len(root), len(np.unique(tree_of_root)))
    return root.numpy()[np.argsort(tree_of_root)].astype(visited.dtype)


@compiled
def _find_trees(source, target, start, neighbor, parent, visited, tree_start):
    r"""Lists the neighbors, then visits the trees; returns how many there are, or -1 at a node that
    is out of range.
    """
    if not _fill_adjacency(source, target, start, neighbor):
        return -1
    return _visit_from_lowest(start, neighbor, parent, visited, tree_start)


@compiled
def _order_nodes(start, neighbor, visited, tree_start, roots, parent, size, order):
    _sum_sizes(parent, visited, size)
    _move_roots(parent, size, tree_start, roots)
    _heavy_last_preorder(start, neighbor, parent, size, roots, order)


@compiled
def _fill_adjacency(source, target, start, neighbor):
    r"""Lists the neighbours of every node by ascending number; returns False at a node that is out
    of range.
    """
    num_nodes, num_edges = len(start) - 1, len(source)
    for edge in range(num_edges):
        first, second = source[edge], target[edge]
        # No door reads the edges of a compiled graph.
        if min(first, second) < 0 or max(first, second) >= num_nodes:
            return False
        start[first + 1] += 1
        start[second + 1] += 1
    for node in range(num_nodes):
        start[node + 1] += start[node]

    unsorted, end = np.empty_like(neighbor), start[:-1].copy()
    for edge in range(num_edges):
        first, second = source[edge], target[edge]
        unsorted[end[first]] = second
        end[first] += 1
        unsorted[end[second]] = first
        end[second] += 1

    # The relation is symmetric, so handing every node to its neighbours in ascending turn sorts all
    # lists.
    end[:] = start[:-1]
    for node in range(num_nodes):
        for place in range(start[node], start[node + 1]):
            other = unsorted[place]
            neighbor[end[other]] = node
            end[other] += 1
    return True


@compiled
def _visit_from_lowest(start, neighbor, parent, visited, tree_start):
    r"""Visits tree after tree, breadth first from its lowest node; returns how many there are."""
    num_trees = num_visited = num_seen = 0
    for root in range(len(parent)):
        if parent[root] >= 0:
            continue
        tree_start[num_trees] = num_visited
        num_trees += 1
        parent[root] = root
        visited[num_seen] = root
        num_seen += 1
        while num_visited < num_seen:
            node = visited[num_visited]
            num_visited += 1
            for place in range(start[node], start[node + 1]):
                other = neighbor[place]
                if parent[other] < 0:
                    parent[other] = node
                    visited[num_seen] = other
                    num_seen += 1
    tree_start[num_trees] = num_visited
    return num_trees


@compiled
def _sum_sizes(parent, visited, size):
    for place in range(len(visited) - 1, -1, -1):
        node = visited[place]
        if parent[node] != node:
            size[parent[node]] += size[node]


@compiled
def _move_roots(parent, size, tree_start, roots):
    r"""Turns the parents on the way from each tree's lowest node to its root around."""
    for tree in range(len(roots)):
        num_nodes = tree_start[tree + 1] - tree_start[tree]
        node, below, outside = roots[tree], roots[tree], 0
        while True:
            above, inside = parent[node], size[node]
            parent[node] = below
            size[node] = num_nodes - outside
            if above == node:
                break
            node, below, outside = above, node, inside


@compiled
def _heavy_last_preorder(start, neighbor, parent, size, roots, order):
    r"""Depth first; siblings by node number, but the one with the largest subtree last."""
    stack = np.empty(len(order), start.dtype)
    num_done = 0
    for root in roots:
        stack[0] = root
        height = 1
        while height > 0:
            height -= 1
            node = stack[height]
            order[num_done] = node
            num_done += 1
            heavy = _heavy_child(start, neighbor, parent, size, node)
            if heavy < 0:
                continue
            stack[height] = heavy
            height += 1
            for place in range(start[node + 1] - 1, start[node] - 1, -1):
                child = neighbor[place]
                if child != parent[node] and child != heavy:
                    stack[height] = child
                    height += 1


@njit(forceinline=True)
def _heavy_child(start, neighbor, parent, size, node):
    r"""The child with the largest subtree, of equal ones the highest, or -1 at a leaf."""
    heavy = -1
    for place in range(start[node], start[node + 1]):
        child = neighbor[place]
        if child != parent[node] and (heavy < 0 or size[child] >= size[heavy]):
            heavy = child
    return heavy
