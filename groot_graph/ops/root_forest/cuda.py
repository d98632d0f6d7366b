r"""Rooting by ranked Euler tours, as CUDA kernels; sorting and running sums are PyTorch's."""

import torch
from torch import Tensor

from groot_graph.ops.checks import check_acyclic, check_one_root_per_tree, values_are_checked
from groot_graph.ops.kernels import launch, on_current_stream
from groot_graph.ops.segments import cut, plan_size

# Arcs are numbered with 32 bits, two for every edge.
MOST = 2**30
UNUSED = 2**63 - 1
# How many splitters the kernel `jump` passes in one launch.
JUMP = 16


@on_current_stream
def root_forest_cuda(
    edge_index: Tensor,
    edge_mask: Tensor | None,
    num_nodes: int,
    root: "str | Tensor" = "first",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The triple (order, parent, plan): the plan is what the scans on the GPU walk along."""
    num_edges = edge_index.size(1)
    if num_nodes > MOST or num_edges > 2 * MOST:
        raise ValueError(
            f"'num_nodes' must be at most {MOST} and 'edge_index' must have at most {2 * MOST} "
            f"edges on CUDA devices, got {num_nodes} and {num_edges}"
        )
    if num_nodes == 0:
        empty = edge_index.new_empty(0)
        return empty, empty.clone(), edge_index.new_zeros(plan_size(0), dtype=torch.int32)
    source, target = edge_index.contiguous()
    edge_mask = None if edge_mask is None else edge_mask.contiguous()

    def nodes(dtype=torch.int32, rows=num_nodes):
        return edge_index.new_empty(rows, dtype=dtype)

    link, label, chosen, first_arc, end_arc = (nodes() for _ in range(5))
    heaviest = nodes(torch.int64)
    arguments = (link, chosen, first_arc, end_arc, heaviest, num_nodes)
    _launch("start_nodes", num_nodes, *arguments)
    is_kept = nodes(rows=num_edges)
    edges = (source, target, edge_mask, link, is_kept, num_edges, num_nodes)
    _launch("join_edges", num_edges, *edges)
    _launch("label_nodes", num_nodes, link, label, num_nodes)
    _choose_roots(root, label, chosen, num_nodes)

    tour = _tour(source, target, is_kept, first_arc, end_arc, label, chosen)
    arc_key, twin, splitter, place, num_from_splitter = tour
    num_arcs = arc_key.size(0)
    parent = nodes(torch.int64)
    size, enter, tree_size = nodes(), nodes(), nodes()
    arguments = (*tour, parent, size, enter, heaviest, num_arcs, num_nodes)
    _launch("measure_subtrees", num_arcs, *arguments)
    arguments = (label, chosen, first_arc, end_arc, num_from_splitter)
    _launch("measure_trees", num_nodes, *arguments, parent, size, enter, tree_size, num_nodes)
    end_of_trees = tree_size.cumsum(0, dtype=torch.int32)

    light_size = nodes(rows=num_arcs)
    arguments = (arc_key, parent, size, heaviest, light_size, num_arcs, num_nodes)
    _launch("weigh_light_arcs", num_arcs, *arguments)
    num_light = light_size.cumsum(0, dtype=torch.int32)
    offset = nodes(rows=2 * num_nodes)
    arguments = (arc_key, parent, size, enter, label, end_of_trees, heaviest, first_arc)
    arguments += (light_size, num_light, offset, num_arcs, num_nodes)
    _launch("offset_subtrees", max(num_nodes, num_arcs), *arguments)
    place_on_tour = offset.cumsum(0, dtype=torch.int32)

    order = nodes(torch.int64)
    node_at, above, end = nodes(), nodes(), nodes()
    arguments = (parent, size, enter, label, end_of_trees, place_on_tour)
    _launch("order_nodes", num_nodes, *arguments, order, node_at, above, end, num_nodes)
    if values_are_checked(edge_index.device):
        _check_kept(is_kept, edge_mask, chosen, root)
    return order, parent, cut(node_at, above, end)


def root_forest_plan_cuda(parent: Tensor) -> Tensor:
    r"""The plan of a forest that is known by its parents."""
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


def _check_kept(is_kept: Tensor, edge_mask: Tensor | None, chosen: Tensor, root) -> None:
    r"""Reads the counts, so it waits for the GPU."""
    num_kept = int(is_kept.sum())
    num_trees = chosen.size(0) - num_kept
    num_edges = is_kept.size(0) if edge_mask is None else int(edge_mask.sum())
    check_acyclic(chosen.size(0), num_trees, num_edges)
    if isinstance(root, Tensor):
        num_roots = int((root >= 0).sum())
        check_one_root_per_tree(num_trees, num_roots, int((chosen >= 0).sum()))


def _choose_roots(root: "str | Tensor", label: Tensor, chosen: Tensor, num_nodes: int) -> None:
    if isinstance(root, Tensor):
        num_offered = root.size(0)
        offered = (root.contiguous(), label, chosen, num_offered, num_nodes)
        _launch("choose_roots", num_offered, *offered)
    elif root == "last":
        _launch("choose_roots", num_nodes, None, label, chosen, num_nodes, num_nodes)


def _tour(source, target, is_kept, first_arc, end_arc, label, chosen) -> tuple[Tensor, ...]:
    r"""The Euler tours as ranked lists of arcs."""
    num_edges, num_nodes = source.size(0), label.size(0)
    num_arcs = 2 * min(num_edges, num_nodes - 1)
    arc_key = source.new_full((num_arcs,), UNUSED)
    num_kept = is_kept.cumsum(0, dtype=torch.int32)
    edges = (source, target, is_kept, num_kept, arc_key, num_edges, num_nodes)
    _launch("list_arcs", num_edges, *edges)
    arc_key, listed_as = arc_key.sort()

    def arcs():
        return arc_key.new_empty(num_arcs, dtype=torch.int32)

    arc_of_listed, twin, following, splitter, place = (arcs() for _ in range(5))
    is_splitter = torch.empty_like(arc_key, dtype=torch.bool)
    arguments = (arc_key, listed_as, arc_of_listed, first_arc, end_arc)
    _launch("find_arcs", num_arcs, *arguments, num_arcs, num_nodes)
    arguments += (label, chosen, twin, following, is_splitter, num_arcs, num_nodes)
    _launch("link_arcs", num_arcs, *arguments)

    pointer, count = (arcs(), arcs()), (arcs(), arcs())
    arguments = (following, is_splitter, splitter, place, pointer[0], count[0], num_arcs)
    _launch("walk_to_splitters", num_arcs, *arguments)
    reached = 1
    while reached < num_arcs:
        _launch("jump", num_arcs, is_splitter, pointer[0], count[0], pointer[1], count[1], num_arcs)
        pointer, count = pointer[::-1], count[::-1]
        reached *= JUMP
    return arc_key, twin, splitter, place, count[0]


def _launch(kernel: str, num_threads: int, *arguments) -> None:
    launch("root_forest", kernel, num_threads, *arguments)
