r"""Rooting by ranked Euler tours, as CUDA kernels; sorting and running sums are PyTorch's."""

from typing import NamedTuple

import torch
from torch import Tensor

from groot_graph import checks
from groot_graph.checks import check_acyclic, check_one_root_per_tree
from groot_graph.ops.cuda import plan
from groot_graph.ops.cuda.launch import MOST_THREADS, Argument, launch, on_current_stream
from groot_graph.ops.cuda.plan import cut

# Arcs are numbered with 32 bits, two for every edge.
MOST = 2**30
UNUSED = 2**63 - 1
# How many splitters the kernel `jump` passes in one launch.
JUMP = 16


class Nodes(NamedTuple):
    r"""What the kernels write down for every node or, the last three, for every place."""

    link: Tensor
    label: Tensor
    chosen: Tensor
    first_arc: Tensor
    end_arc: Tensor
    size: Tensor
    enter: Tensor
    tree_size: Tensor
    node_at: Tensor
    above: Tensor
    end: Tensor


class Tour(NamedTuple):
    r"""The Euler tours as ranked lists of arcs, a row for every arc."""

    arc_key: Tensor
    twin: Tensor
    splitter: Tensor
    place: Tensor
    num_from_splitter: Tensor


@on_current_stream
def root_forest_cuda(
    edge_index: Tensor,
    edge_mask: Tensor | None,
    num_nodes: int,
    root: "str | Tensor" = "first",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The triple (order, parent, plan): the plan is what the scans on the GPU walk along."""
    _check_sizes(num_nodes, edge_index.size(1))
    order, parent, heaviest = (edge_index.new_empty(num_nodes) for _ in range(3))
    if num_nodes == 0:
        return order, parent, edge_index.new_zeros(plan.plan_size(0), dtype=torch.int32)
    edge_index = edge_index.contiguous()
    edge_mask = None if edge_mask is None else edge_mask.contiguous()
    nodes = Nodes(*edge_index.new_empty(len(Nodes._fields), num_nodes, dtype=torch.int32))
    is_kept = _join(edge_index, edge_mask, nodes, heaviest)
    _choose_roots(root, nodes)
    if checks.values_are_checked(edge_index):
        _check_kept(is_kept, edge_mask, nodes.chosen, root)
    tour = _tour(edge_index, is_kept, nodes)
    _measure(tour, nodes, parent, heaviest)
    _order(tour, nodes, parent, heaviest, order)
    return order, parent, cut(nodes.node_at, nodes.above, nodes.end)


def root_forest_plan_cuda(order: Tensor, parent: Tensor) -> Tensor:
    r"""The plan of a forest, found from its parents alone."""
    nodes = torch.arange(parent.size(0), device=parent.device)
    is_child = parent != nodes
    roots = nodes.masked_fill(is_child, -1)
    edge_index = torch.stack([parent, nodes])
    try:
        return root_forest_cuda(edge_index, is_child, parent.size(0), roots)[2]
    except ValueError as error:
        raise ValueError(
            "'forest' must lead every node to a root by 'parent', got a cycle or a node number "
            "that is out of range"
        ) from error


def root_forest_plan_size_cuda(num_nodes: int) -> int:
    return plan.plan_size(num_nodes)


def _check_sizes(num_nodes: int, num_edges: int) -> None:
    if num_nodes > MOST or num_edges > 2 * MOST:
        raise ValueError(
            f"'num_nodes' must be at most {MOST} and 'edge_index' must have at most {2 * MOST} "
            f"edges on CUDA devices, got {num_nodes} and {num_edges}"
        )


def _check_kept(is_kept: Tensor, edge_mask: Tensor | None, chosen: Tensor, root) -> None:
    r"""Reads the counts, so it waits for the GPU."""
    num_kept = int(is_kept.sum())
    num_trees = chosen.size(0) - num_kept
    num_edges = is_kept.size(0) if edge_mask is None else int(edge_mask.sum())
    check_acyclic(chosen.size(0), num_trees, num_edges)
    if isinstance(root, Tensor):
        num_roots = int((root >= 0).sum())
        check_one_root_per_tree(num_trees, num_roots, int((chosen >= 0).sum()))


def _join(edge_index: Tensor, edge_mask: Tensor | None, nodes: Nodes, heaviest: Tensor) -> Tensor:
    r"""Labels every node by the lowest of its tree; returns which edges make up the trees."""
    num_edges, num_nodes = edge_index.size(1), nodes.link.size(0)
    is_kept = nodes.link.new_empty(num_edges)
    arguments: tuple[Argument, ...]
    arguments = (nodes.link, nodes.chosen, nodes.first_arc, nodes.end_arc, heaviest)
    _launch("start_nodes", num_nodes, *arguments, num_nodes)
    arguments = (edge_index, edge_mask, nodes.link, is_kept)
    _launch("join_edges", num_edges, *arguments, num_edges, num_nodes)
    _launch("label_nodes", num_nodes, nodes.link, nodes.label, num_nodes)
    return is_kept


def _choose_roots(root: "str | Tensor", nodes: Nodes) -> None:
    num_nodes = nodes.label.size(0)
    arguments: tuple[Argument, ...]
    if isinstance(root, Tensor):
        arguments = (root.contiguous(), nodes.label, nodes.chosen, root.size(0))
        _launch("choose_roots", root.size(0), *arguments, num_nodes)
    elif root == "last":
        arguments = (None, nodes.label, nodes.chosen, num_nodes)
        _launch("choose_roots", num_nodes, *arguments, num_nodes)


def _tour(edge_index: Tensor, is_kept: Tensor, nodes: Nodes) -> Tour:
    num_edges = edge_index.size(1)
    num_arcs = 2 * min(num_edges, nodes.link.size(0) - 1)
    arc_key = edge_index.new_full((num_arcs,), UNUSED)
    num_kept = is_kept.cumsum(0, dtype=torch.int32)
    arguments: tuple[Argument, ...] = (edge_index, is_kept, num_kept, arc_key)
    _launch("list_arcs", num_edges, *arguments, num_edges)
    arc_key, listed_as = arc_key.sort()

    arcs = nodes.link.new_empty(9, num_arcs)
    arc_of_listed, twin, following, splitter, place, *lists = arcs
    is_splitter = torch.empty_like(arc_key, dtype=torch.bool)
    arguments = (arc_key, listed_as, arc_of_listed, nodes.first_arc, nodes.end_arc)
    _launch("find_arcs", num_arcs, *arguments, num_arcs)
    arguments += (nodes.label, nodes.chosen, twin, following, is_splitter)
    _launch("link_arcs", num_arcs, *arguments, num_arcs)
    arguments = (following, is_splitter, splitter, place, *lists[:2], num_arcs)
    _launch("walk_to_splitters", num_arcs, *arguments)
    reached = 1
    while reached < num_arcs:
        _launch("jump", num_arcs, is_splitter, *lists, num_arcs)
        lists = lists[2:] + lists[:2]
        reached *= JUMP
    return Tour(arc_key, twin, splitter, place, lists[1])


def _measure(tour: Tour, nodes: Nodes, parent: Tensor, heaviest: Tensor) -> None:
    r"""Parents, and the sizes of subtrees and trees."""
    num_arcs, num_nodes = tour.arc_key.size(0), parent.size(0)
    arguments: tuple[Argument, ...] = (*tour, parent, nodes.size, nodes.enter, heaviest)
    _launch("measure_subtrees", num_arcs, *arguments, num_arcs)
    arguments = (nodes.label, nodes.chosen, nodes.first_arc, nodes.end_arc)
    arguments += (tour.num_from_splitter, parent, nodes.size, nodes.enter, nodes.tree_size)
    _launch("measure_trees", num_nodes, *arguments, num_nodes)


def _order(tour: Tour, nodes: Nodes, parent: Tensor, heaviest: Tensor, order: Tensor) -> None:
    r"""Every node's place: the sum of the distances to the parent on the way from its root."""
    num_arcs, num_nodes = tour.arc_key.size(0), parent.size(0)
    light_size, offset = nodes.link.new_empty(num_arcs), nodes.link.new_empty(2 * num_nodes)
    arguments: tuple[Argument, ...] = (tour.arc_key, parent, nodes.size, heaviest, light_size)
    _launch("weigh_light_arcs", num_arcs, *arguments, num_arcs)
    num_light = light_size.cumsum(0, dtype=torch.int32)
    end_of_trees = nodes.tree_size.cumsum(0, dtype=torch.int32)
    known = (parent, nodes.size, nodes.enter, nodes.label, end_of_trees)
    arguments = (tour.arc_key, *known, heaviest, nodes.first_arc, light_size, num_light, offset)
    _launch("offset_subtrees", max(num_nodes, num_arcs), *arguments, num_arcs, num_nodes)
    place_on_tour = offset.cumsum(0, dtype=torch.int32)
    arguments = (*known, place_on_tour, order, nodes.node_at, nodes.above, nodes.end)
    _launch("order_nodes", num_nodes, *arguments, num_nodes)


def _launch(kernel: str, num_threads: int, *arguments) -> None:
    launch("root_forest", kernel, min(num_threads, MOST_THREADS), *arguments)
