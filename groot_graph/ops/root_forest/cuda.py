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
# Of so many arcs in a row one is a splitter.
ARCS_PER_SPLITTER = 16
# How many splitters the kernel `jump` passes in one launch.
JUMP = 16
MACROS: "dict[str, str | int]" = {
    "ARCS_PER_SPLITTER": ARCS_PER_SPLITTER,
    "JUMP": JUMP,
    "UNUSED": f"{UNUSED}LL",
}


class Nodes(NamedTuple):
    r"""What the kernels write down for every node."""

    link: Tensor
    label: Tensor
    chosen: Tensor
    first_arc: Tensor
    end_arc: Tensor
    size: Tensor
    enter: Tensor


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
    num_edges = edge_index.size(1)
    _check_sizes(num_nodes, num_edges)
    order, parent = edge_index.new_empty(num_nodes), edge_index.new_empty(num_nodes)
    if num_nodes == 0:
        return order, parent, edge_index.new_zeros(plan.plan_size(0), dtype=torch.int32)
    edge_index = edge_index.contiguous()
    edge_mask = None if edge_mask is None else edge_mask.contiguous()
    nodes = Nodes(*edge_index.new_empty(len(Nodes._fields), num_nodes, dtype=torch.int32))
    heaviest = edge_index.new_empty(num_nodes)
    arc_key = edge_index.new_empty(2 * min(num_edges, num_nodes - 1))
    kernel = bind("root_forest", **MACROS)
    _join(kernel, edge_index, edge_mask, root, nodes, parent, heaviest, arc_key)
    if checks.values_are_checked(edge_index):
        _check_kept(arc_key, num_edges, edge_mask, nodes.chosen, root)
    tour = _tour(kernel, arc_key, nodes)
    places = _order(kernel, tour, nodes, parent, heaviest, order)
    return order, parent, cut(places)


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


def _check_kept(arc_key: Tensor, num_edges: int, edge_mask: Tensor | None, chosen, root) -> None:
    r"""Reads the counts, so it waits for the GPU."""
    num_nodes = chosen.size(0)
    num_trees = num_nodes - int((arc_key != UNUSED).sum()) // 2
    check_acyclic(num_nodes, num_trees, num_edges if edge_mask is None else int(edge_mask.sum()))
    if isinstance(root, Tensor):
        num_roots = int((root >= 0).sum())
        check_one_root_per_tree(num_trees, num_roots, int((chosen >= 0).sum()))


def _join(
    kernel: Kernels,
    edge_index: Tensor,
    edge_mask: Tensor | None,
    root: "str | Tensor",
    nodes: Nodes,
    parent: Tensor,
    heaviest: Tensor,
    arc_key: Tensor,
) -> None:
    r"""Lists the arcs of the edges that make up the trees, labels every node by the lowest of its
    tree, and chooses the roots.
    """
    num_edges, num_nodes, num_arcs = edge_index.size(1), parent.size(0), arc_key.size(0)
    started = nodes.link, nodes.chosen, nodes.first_arc, nodes.end_arc, heaviest, parent, arc_key
    kernel.strided("start_nodes", max(num_nodes, num_arcs), *started, num_nodes, num_arcs)
    edges = edge_index, edge_mask, nodes.link, arc_key
    kernel.strided("join_edges", num_edges, *edges, num_edges, num_nodes)
    offered, num_offered = None, 0
    if isinstance(root, Tensor):
        offered, num_offered = root.contiguous(), root.size(0)
    elif root == "last":
        num_offered = num_nodes
    labels = nodes.link, nodes.label, nodes.chosen, offered, num_offered
    kernel.strided("label_nodes", max(num_nodes, num_offered), *labels, num_nodes)


def _tour(kernel: Kernels, arc_key: Tensor, nodes: Nodes) -> Tour:
    num_arcs = arc_key.size(0)
    arc_key, listed_as = arc_key.sort()
    arcs = nodes.link.new_empty(9, num_arcs)
    arc_of_listed, twin, following, splitter, place, *lists = arcs
    sorted_arcs = arc_key, listed_as, arc_of_listed, nodes.first_arc, nodes.end_arc
    kernel.strided("find_arcs", num_arcs, *sorted_arcs, num_arcs)
    linked = nodes.label, nodes.chosen, twin, following, splitter
    kernel.strided("link_arcs", num_arcs, *sorted_arcs, *linked, num_arcs)
    followed = following, splitter, place, *lists[:2]
    kernel.strided("follow_to_splitters", num_arcs, *followed, num_arcs)
    reached = 1
    while reached < most_splitters(num_arcs):
        kernel.strided("jump", num_arcs, splitter, *lists, num_arcs)
        lists = lists[2:] + lists[:2]
        reached *= JUMP
    return Tour(arc_key, twin, splitter, place, lists[1])


def most_splitters(num_arcs: int) -> int:
    r"""A bound on the number of splitters of one list, whose head is one as well."""
    return -(-num_arcs // ARCS_PER_SPLITTER) + 1


def _order(
    kernel: Kernels, tour: Tour, nodes: Nodes, parent: Tensor, heaviest: Tensor, order: Tensor
) -> Tensor:
    r"""Every node's place: the sum of the distances to the parent on the way from its root. Returns
    the forest by places.
    """
    num_arcs, num_nodes = tour.arc_key.size(0), parent.size(0)
    numbers = num_arcs, num_nodes
    subtrees = parent, nodes.size, nodes.enter
    kernel.strided("measure_subtrees", num_arcs, *tour, *subtrees, heaviest, num_arcs)
    sizes = nodes.link.new_empty(num_nodes + num_arcs)
    known = nodes.label, nodes.chosen, nodes.first_arc, nodes.end_arc, tour.num_from_splitter
    weighed = tour.arc_key, parent, heaviest, nodes.size, nodes.enter, sizes
    kernel.strided("measure_trees", max(numbers), *known, *weighed, *numbers)
    sums = sizes.cumsum(0, dtype=torch.int32)
    offset = nodes.link.new_empty(2 * num_nodes)
    light = nodes.label, heaviest, nodes.first_arc, sizes, sums, offset
    kernel.strided("offset_subtrees", max(numbers), tour.arc_key, *subtrees, *light, *numbers)
    place_on_tour = offset.cumsum(0, dtype=torch.int32)
    places = nodes.link.new_empty(3, num_nodes)
    placed = nodes.label, sums, place_on_tour, order, places
    kernel.strided("order_nodes", num_nodes, *subtrees, *placed, num_nodes)
    return places
