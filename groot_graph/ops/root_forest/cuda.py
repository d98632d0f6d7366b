r"""Rooting by ranked Euler tours, as CUDA kernels; sorting and running sums are PyTorch's."""

from typing import NamedTuple

import torch
from torch import Tensor

from groot_graph import checks
from groot_graph.checks import check_acyclic, check_one_root_per_tree
from groot_graph.ops.cuda import plan
from groot_graph.ops.cuda.launch import Kernels, bind, on_current_stream
from groot_graph.ops.cuda.plan import cut

# Arcs are numbered with 32 bits, two for every edge.
MOST_NODES = 2**30
MOST_EDGES = 2 * MOST_NODES
# The key of an arc that no kept edge has made: it is sorted behind all others.
UNUSED = 2**63 - 1
# How many splitters the kernel `jump` passes in one launch.
JUMP = 16
MACROS: "dict[str, str | int]" = {"JUMP": JUMP, "UNUSED": f"{UNUSED}LL"}


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
    r"""The triple (order, parent, plan): the plan is what the scans on the GPU follow."""
    _check_sizes(num_nodes, edge_index.size(1))
    order, parent, heaviest = (edge_index.new_empty(num_nodes) for _ in range(3))
    if num_nodes == 0:
        return order, parent, edge_index.new_zeros(plan.plan_size(0), dtype=torch.int32)
    edge_index = edge_index.contiguous()
    edge_mask = None if edge_mask is None else edge_mask.contiguous()
    nodes = Nodes(*edge_index.new_empty(len(Nodes._fields), num_nodes, dtype=torch.int32))
    kernel = bind("root_forest", **MACROS)
    is_kept = _join(kernel, edge_index, edge_mask, nodes, heaviest)
    _choose_roots(kernel, root, nodes)
    if checks.values_are_checked(edge_index):
        _check_kept(is_kept, edge_mask, nodes.chosen, root)
    tour = _tour(kernel, edge_index, is_kept, nodes)
    _measure(kernel, tour, nodes, parent, heaviest)
    _order(kernel, tour, nodes, parent, heaviest, order)
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
    if num_nodes > MOST_NODES or num_edges > MOST_EDGES:
        raise ValueError(
            f"'num_nodes' must be at most {MOST_NODES} and 'edge_index' must have at most "
            f"{MOST_EDGES} edges on CUDA devices, got {num_nodes} and {num_edges}"
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


def _join(
    kernel: Kernels, edge_index: Tensor, edge_mask: Tensor | None, nodes: Nodes, heaviest: Tensor
) -> Tensor:
    r"""Labels every node by the lowest of its tree; returns which edges make up the trees."""
    num_edges, num_nodes = edge_index.size(1), nodes.link.size(0)
    is_kept = nodes.link.new_empty(num_edges)
    started = nodes.link, nodes.chosen, nodes.first_arc, nodes.end_arc, heaviest
    kernel.strided("start_nodes", num_nodes, *started, num_nodes)
    edges = edge_index, edge_mask, nodes.link, is_kept
    kernel.strided("join_edges", num_edges, *edges, num_edges, num_nodes)
    kernel.strided("label_nodes", num_nodes, nodes.link, nodes.label, num_nodes)
    return is_kept


def _choose_roots(kernel: Kernels, root: "str | Tensor", nodes: Nodes) -> None:
    num_nodes = nodes.label.size(0)
    offered, num_offered = None, num_nodes
    if isinstance(root, Tensor):
        offered, num_offered = root.contiguous(), root.size(0)
    elif root == "first":
        return
    labels = nodes.label, nodes.chosen
    kernel.strided("choose_roots", num_offered, offered, *labels, num_offered, num_nodes)


def _tour(kernel: Kernels, edge_index: Tensor, is_kept: Tensor, nodes: Nodes) -> Tour:
    num_edges = edge_index.size(1)
    num_arcs = 2 * min(num_edges, nodes.link.size(0) - 1)
    arc_key = edge_index.new_full((num_arcs,), UNUSED)
    num_kept = is_kept.cumsum(0, dtype=torch.int32)
    kernel.strided("list_arcs", num_edges, edge_index, is_kept, num_kept, arc_key, num_edges)
    arc_key, listed_as = arc_key.sort()

    arcs = nodes.link.new_empty(9, num_arcs)
    arc_of_listed, twin, following, splitter, place, *lists = arcs
    is_splitter = torch.empty_like(arc_key, dtype=torch.bool)
    sorted_arcs = arc_key, listed_as, arc_of_listed, nodes.first_arc, nodes.end_arc
    kernel.strided("find_arcs", num_arcs, *sorted_arcs, num_arcs)
    linked = nodes.label, nodes.chosen, twin, following, is_splitter
    kernel.strided("link_arcs", num_arcs, *sorted_arcs, *linked, num_arcs)
    followed = following, is_splitter, splitter, place, *lists[:2]
    kernel.strided("follow_to_splitters", num_arcs, *followed, num_arcs)
    reached = 1
    while reached < num_arcs:
        kernel.strided("jump", num_arcs, is_splitter, *lists, num_arcs)
        lists = lists[2:] + lists[:2]
        reached *= JUMP
    return Tour(arc_key, twin, splitter, place, lists[1])


def _measure(kernel: Kernels, tour: Tour, nodes: Nodes, parent: Tensor, heaviest: Tensor) -> None:
    r"""Parents, and the sizes of subtrees and trees."""
    num_arcs, num_nodes = tour.arc_key.size(0), parent.size(0)
    measured = parent, nodes.size, nodes.enter
    kernel.strided("measure_subtrees", num_arcs, *tour, *measured, heaviest, num_arcs)
    known = nodes.label, nodes.chosen, nodes.first_arc, nodes.end_arc, tour.num_from_splitter
    kernel.strided("measure_trees", num_nodes, *known, *measured, nodes.tree_size, num_nodes)


def _order(
    kernel: Kernels, tour: Tour, nodes: Nodes, parent: Tensor, heaviest: Tensor, order: Tensor
) -> None:
    r"""Every node's place: the sum of the distances to the parent on the way from its root."""
    num_arcs, num_nodes = tour.arc_key.size(0), parent.size(0)
    light_size, offset = nodes.link.new_empty(num_arcs), nodes.link.new_empty(2 * num_nodes)
    weighed = parent, nodes.size, heaviest, light_size
    kernel.strided("weigh_light_arcs", num_arcs, tour.arc_key, *weighed, num_arcs)
    num_light = light_size.cumsum(0, dtype=torch.int32)
    end_of_trees = nodes.tree_size.cumsum(0, dtype=torch.int32)
    known = parent, nodes.size, nodes.enter, nodes.label, end_of_trees
    light = heaviest, nodes.first_arc, light_size, num_light
    sizes = num_arcs, num_nodes
    kernel.strided("offset_subtrees", max(sizes), tour.arc_key, *known, *light, offset, *sizes)
    place_on_tour = offset.cumsum(0, dtype=torch.int32)
    placed = order, nodes.node_at, nodes.above, nodes.end
    kernel.strided("order_nodes", num_nodes, *known, place_on_tour, *placed, num_nodes)
