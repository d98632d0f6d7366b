r"""Rooting by breadth-first levels in plain PyTorch, on any device."""

import torch
from torch import Tensor

from groot_graph.checks import check_acyclic, check_one_root_per_tree


def root_forest_reference(
    edge_index: Tensor,
    edge_mask: Tensor | None,
    num_nodes: int,
    root: "str | Tensor" = "first",
) -> tuple[Tensor, Tensor]:
    r"""The pair (order, parent) of the forest that the kept edges form."""
    if edge_mask is not None:
        edge_index = edge_index[:, edge_mask]
    component = _lowest_node_of_tree(edge_index, num_nodes)
    nodes = torch.arange(num_nodes, device=edge_index.device)
    check_acyclic(num_nodes, int((component == nodes).sum()), edge_index.size(1))
    roots = _roots(component, root)
    parent, levels = _parents(edge_index, num_nodes, roots)
    return _heavy_last_preorder(parent, levels), parent


def root_forest_plan_reference(order: Tensor, parent: Tensor) -> Tensor:
    r"""Nothing: the reference scans by levels."""
    return parent.new_empty(0, dtype=torch.int32)


def root_forest_plan_size_reference(num_nodes: int) -> int:
    return 0


def _lowest_node_of_tree(edge_index: Tensor, num_nodes: int) -> Tensor:
    source, target = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    lowest = torch.arange(num_nodes, device=edge_index.device)
    while True:
        lower = lowest.scatter_reduce(0, target, lowest[source], "amin")
        lower = torch.minimum(lower, lower[lower])
        if torch.equal(lower, lowest):
            return lowest
        lowest = lower


def _roots(component: Tensor, root: "str | Tensor") -> Tensor:
    r"""One root per tree, the trees by their lowest node."""
    nodes = torch.arange(component.size(0), device=component.device)
    first = nodes[component == nodes]
    if isinstance(root, str):
        last = nodes.scatter_reduce(0, component, nodes, "amax")
        return first if root == "first" else last[first]
    check_one_root_per_tree(first.size(0), root.size(0), component[root].unique().size(0))
    return root[component[root].argsort()]


def _parents(edge_index: Tensor, num_nodes: int, roots: Tensor) -> tuple[Tensor, list[Tensor]]:
    r"""Finds the parents from the roots down, all trees at once, a level at a time."""
    source, target = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    source, by_source = source.sort()
    target = target[by_source]
    degree = source.bincount(minlength=num_nodes)
    start = degree.cumsum(0) - degree

    parent = torch.arange(num_nodes, device=edge_index.device)
    levels = []
    frontier = roots
    while frontier.numel() > 0:
        levels.append(frontier)
        count = degree[frontier]
        above = frontier.repeat_interleave(count)
        first_slot = (start[frontier] - count.cumsum(0) + count).repeat_interleave(count)
        below = target[first_slot + torch.arange(above.size(0), device=above.device)]
        is_child = below != parent[above]
        frontier = below[is_child]
        parent[frontier] = above[is_child]
    return parent, levels


def _heavy_last_preorder(parent: Tensor, levels: list[Tensor]) -> Tensor:
    r"""Depth first; siblings by node number, but the one with the largest subtree last."""
    num_nodes = parent.size(0)
    nodes = torch.arange(num_nodes, device=parent.device)
    size = torch.ones_like(nodes)
    for level in reversed(levels[1:]):
        size.index_add_(0, parent[level], size[level])

    children = nodes[parent != nodes]
    weight = size * num_nodes + nodes
    heaviest = torch.full_like(nodes, -1).scatter_reduce(
        0, parent[children], weight[children], "amax"
    )
    is_heavy = weight == heaviest[parent]
    children = children[is_heavy[children].sort(stable=True).indices]
    children = children[parent[children].sort(stable=True).indices]

    before = size[children].cumsum(0) - size[children]
    first = torch.full_like(nodes, torch.iinfo(torch.int64).max)
    first = first.scatter_reduce(0, parent[children], before, "amin")
    offset = torch.zeros_like(nodes)
    offset[children] = before - first[parent[children]] + 1

    position = torch.zeros_like(nodes)
    if levels:
        roots = levels[0]
        position[roots] = size[roots].cumsum(0) - size[roots]
    for level in levels[1:]:
        position[level] = position[parent[level]] + offset[level]
    return torch.empty_like(nodes).scatter_(0, position, nodes)
