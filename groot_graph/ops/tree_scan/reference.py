r"""The two passes over a tree, level by level, in plain PyTorch, on any device."""

import torch
from torch import Tensor

from groot_graph.forest import Forest


def tree_scan_reference(x: Tensor, transition: Tensor, forest: Forest, direction: str) -> Tensor:
    r"""The scan, differentiable by autograd."""
    if direction == "up":
        return _up(x, transition, forest)
    if direction == "down":
        return _down(x, transition, forest)
    xi = _up(x, transition, forest)
    # h_i = ξ_i + a_i (h_p − a_i ξ_i) is the downward scan of ξ_i − a_i² ξ_i, and of ξ_i at a root.
    is_root = (forest.parent == torch.arange(forest.num_nodes, device=x.device))[:, None]
    transition = transition.masked_fill(is_root, 0)
    return _down(xi - transition * transition * xi, transition, forest)


def tree_scan_backward_reference(
    grad: Tensor, x: Tensor, transition: Tensor, h: Tensor, forest: Forest, direction: str
) -> tuple[Tensor, Tensor]:
    r"""The gradients of x and transition from that of h, by the equations."""
    parent = forest.parent
    if direction == "up":
        grad_x = _down(grad, transition, forest)
        grad_transition = grad_x[parent] * h
    elif direction == "down":
        grad_x = _up(grad, transition, forest)
        grad_transition = grad_x * h[parent]
    else:
        xi = _up(x, transition, forest)
        gamma = _up(grad, transition, forest)
        grad_x = tree_scan_reference(grad, transition, forest, "both")
        grad_transition = gamma * (h[parent] - transition * xi)
        grad_transition += xi * (grad_x[parent] - transition * gamma)
    grad_transition[forest.roots] = 0
    return grad_x, grad_transition


def _up(x: Tensor, transition: Tensor, forest: Forest) -> Tensor:
    r"""ξ_i = x_i + Σ a_c ξ_c over the children c of i."""
    levels = forest.levels
    slot = _slot_in_level(levels, forest)
    xi = [x[nodes] for nodes in levels]
    for depth in range(len(levels) - 1, 0, -1):
        children = levels[depth]
        passed_on = transition[children] * xi[depth]
        xi[depth - 1] = xi[depth - 1].index_add(0, slot[forest.parent[children]], passed_on)
    return _to_node_order(xi, levels, x)


def _down(x: Tensor, transition: Tensor, forest: Forest) -> Tensor:
    r"""h_i = x_i + a_i h_p(i)."""
    levels = forest.levels
    slot = _slot_in_level(levels, forest)
    h = [x[nodes] for nodes in levels]
    for depth in range(1, len(levels)):
        nodes = levels[depth]
        h[depth] = h[depth] + transition[nodes] * h[depth - 1][slot[forest.parent[nodes]]]
    return _to_node_order(h, levels, x)


def _slot_in_level(levels: list[Tensor], forest: Forest) -> Tensor:
    r"""Where in its level every node stands."""
    slot = torch.empty_like(forest.order)
    for nodes in levels:
        slot[nodes] = torch.arange(nodes.size(0), device=nodes.device)
    return slot


def _to_node_order(values: list[Tensor], levels: list[Tensor], like: Tensor) -> Tensor:
    if not levels:
        return like.clone()
    return torch.cat(values)[torch.cat(levels).argsort()]
