r"""The spanning forest of a graph whose edges are never all in memory, or not in one process."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from groot_graph.ops.checks import check_num_nodes
from groot_graph.ops.minimum_spanning_forest.api import check_edges, minimum_spanning_forest


class NumberedEdges(NamedTuple):
    r"""Some of the edges of a stream, by ascending number."""

    edge_index: Tensor
    edge_weight: Tensor
    edge_number: Tensor


def minimum_spanning_forest_stream(
    chunks: Iterable[tuple[Tensor, Tensor]],
    num_nodes: int,
    group: "dist.ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Finds the minimum spanning forest of a graph whose edges come in chunks, in memory for the
    nodes and the largest chunk alone.

    .. math::
        F(E_1 \cup E_2) = F(F(E_1) \cup F(E_2))

    where :math:`F` is :func:`groot_graph.minimum_spanning_forest`: an edge that is the dearest of a
    circle among some edges is so among more. Edges are numbered in the sequence in which they come,
    those of lower ranks before those of higher ones, and ties go to the lower number: the forest is
    the one that all edges together give.

    Args:
        chunks (iterable): Pairs of edges, a LongTensor of shape :obj:`[2, num_edges]`, and weights,
            of shape :obj:`[num_edges]` and one dtype in all chunks. They are read once.
        num_nodes (int): The number of nodes.
        group (torch.distributed.ProcessGroup, optional): The processes that hold a part of the
            edges each, in their own `chunks`, such as :obj:`torch.distributed.group.WORLD`. Their
            forests are merged in pairs. (default: this process alone)

    Returns:
        tuple: Of the kept edges their :obj:`edge_index` of shape :obj:`[2, num_kept]`,
        :obj:`edge_weight` and :obj:`edge_number`, both of shape :obj:`[num_kept]`, by ascending
        number. The same in all processes.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or dtypes do not fit, a node number is out of range or a
            weight is NaN.

    Example:
        >>> import torch
        >>> from groot_graph import minimum_spanning_forest_stream
        >>> chunks = [
        ...     (torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, 3.0])),
        ...     (torch.tensor([[2, 0], [0, 3]]), torch.tensor([2.0, 5.0])),
        ... ]
        >>> edge_index, edge_weight, edge_number = minimum_spanning_forest_stream(chunks, 4)
        >>> edge_number
        tensor([0, 2, 3])
    """
    check_num_nodes(num_nodes)
    if num_nodes is None:
        raise TypeError("'num_nodes' must be an int, got None")
    edges, num_edges = _reduce_chunks(chunks, num_nodes)
    if group is not None:
        edges = _reduce_group(edges, num_edges, num_nodes, group)
    edge_index, edge_weight, edge_number = _no_edges() if edges is None else edges
    return edge_index, edge_weight, edge_number


def _no_edges() -> NumberedEdges:
    number = torch.empty(0, dtype=torch.long)
    return NumberedEdges(number.expand(2, 0).clone(), torch.empty(0), number)


def _reduce_chunks(chunks: Iterable, num_nodes: int) -> tuple[NumberedEdges | None, int]:
    r"""The forest of the chunks of this process, and how many edges they had."""
    waiting: list[NumberedEdges] = []
    num_edges = num_waiting = 0
    for chunk in chunks:
        edges = _checked(chunk, num_edges, waiting[0] if waiting else None)
        waiting.append(edges)
        num_edges += edges.edge_weight.numel()
        num_waiting += edges.edge_weight.numel()
        # So many together that the forest itself is not read again for every few edges.
        if num_waiting >= num_nodes:
            waiting, num_waiting = [_reduce(waiting, num_nodes)], 0
    return (_reduce(waiting, num_nodes) if waiting else None), num_edges


def _checked(chunk, first_number: int, before: NumberedEdges | None) -> NumberedEdges:
    if not isinstance(chunk, tuple | list) or len(chunk) != 2:
        raise TypeError(
            f"'chunks' must hold pairs (edge_index, edge_weight), got {type(chunk).__name__}"
        )
    edge_index, edge_weight = chunk
    check_edges(edge_index, edge_weight)
    if before is not None:
        _check_same("dtype", edge_weight.dtype, before.edge_weight.dtype)
        _check_same("device", edge_weight.device, before.edge_weight.device)
    num_edges = edge_weight.numel()
    number = torch.arange(first_number, first_number + num_edges, device=edge_weight.device)
    return NumberedEdges(edge_index, edge_weight.detach(), number)


def _check_same(what: str, found, wanted) -> None:
    if found != wanted:
        raise ValueError(f"'chunks' must all have the {what} of the first, {wanted}, got {found}")


def _reduce(parts: list[NumberedEdges], num_nodes: int) -> NumberedEdges:
    edge_index, edge_weight, edge_number = (
        torch.cat(values, dim=-1) for values in zip(*parts, strict=True)
    )
    kept = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    return NumberedEdges(edge_index[:, kept], edge_weight[kept], edge_number[kept])


def _reduce_group(
    edges: NumberedEdges | None, num_edges: int, num_nodes: int, group: dist.ProcessGroup
) -> NumberedEdges | None:
    r"""Merges the forests of neighbors, then of neighboring pairs, and so on; the first process
    hands the last one to all.
    """
    rank, num_processes = dist.get_rank(group), dist.get_world_size(group)
    found: list[Any] = [None] * num_processes
    dtype = None if edges is None else edges.edge_weight.dtype
    dist.all_gather_object(found, (num_edges, dtype), group)
    dtypes = {dtype for _, dtype in found if dtype is not None}
    if len(dtypes) > 1:
        raise ValueError(f"'chunks' must have one dtype in all processes, got {dtypes}")
    if edges is not None:
        first = sum(count for count, _ in found[:rank])
        edges = edges._replace(edge_number=edges.edge_number + first)

    step = 1
    while step < num_processes and rank % step == 0:
        if rank % (2 * step) == step:
            dist.send_object_list([edges], dist.get_global_rank(group, rank - step), group)
        elif rank + step < num_processes:
            edges = _merge(edges, _receive(rank + step, group), num_nodes)
        step *= 2
    whole = [edges]
    dist.broadcast_object_list(whole, dist.get_global_rank(group, 0), group)
    return whole[0]


def _receive(rank: int, group: dist.ProcessGroup) -> NumberedEdges | None:
    other: list[NumberedEdges | None] = [None]
    dist.recv_object_list(other, dist.get_global_rank(group, rank), group)
    return other[0]


def _merge(
    edges: NumberedEdges | None, other: NumberedEdges | None, num_nodes: int
) -> NumberedEdges | None:
    if edges is None or other is None:
        return other if edges is None else edges
    device = edges.edge_weight.device
    return _reduce([edges, NumberedEdges(*(value.to(device) for value in other))], num_nodes)
