r"""The spanning forest of a graph whose edges are never all in memory, or not in one process."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from groot_graph import checks
from groot_graph.checks import (
    check_edge_index,
    check_edge_weight,
    check_node_range,
    check_not_nan,
    check_num_nodes,
)
from groot_graph.ops.minimum_spanning_forest.api import trusted_minimum_spanning_forest


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
            of shape :obj:`[num_edges]` and one dtype and device in all chunks. They are read once,
            and copied.
        num_nodes (int): The number of nodes.
        group (torch.distributed.ProcessGroup, optional): The processes that hold a part of the
            edges each, in their own `chunks`, such as :obj:`torch.distributed.group.WORLD`. Their
            forests are merged in pairs. (default: this process alone)

    Returns:
        tuple: Of the kept edges their :obj:`edge_index` of shape :obj:`[2, num_kept]`,
        :obj:`edge_weight` and :obj:`edge_number`, both of shape :obj:`[num_kept]`, by ascending
        number. The same in all processes, each on the device of its own chunks.

    Raises:
        TypeError: If an argument or a chunk has the wrong type or dtype.
        ValueError: If shapes, devices or dtypes do not fit, a node number is out of range, this
            process is not in the `group`, its processes have different `num_nodes`, or another one
            failed.
        NotANumberError: If a weight is NaN. On CUDA tensors node numbers and weights are checked
            only under :func:`torch_geometric.set_debug`.

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
    if group is None:
        edges, _ = _reduce_chunks(chunks, num_nodes)
    else:
        _check_group(group)
        edges = _reduce_group(chunks, num_nodes, group)
    edge_index, edge_weight, edge_number = _no_edges() if edges is None else edges
    return edge_index, edge_weight, edge_number


def _check_group(group) -> None:
    wanted = "'group' must be a torch.distributed.ProcessGroup that this process is in"
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{wanted}, got {type(group).__name__}")
    if dist.get_rank(group) < 0:
        raise ValueError(f"{wanted}, got one of processes {dist.get_process_group_ranks(group)}")


def _no_edges() -> NumberedEdges:
    number = torch.empty(0, dtype=torch.long)
    return NumberedEdges(number.expand(2, 0).clone(), torch.empty(0), number)


# In this process. ---------------------------------------------------------------------------------


def _reduce_chunks(chunks: Iterable, num_nodes: int) -> tuple[NumberedEdges | None, int]:
    r"""The forest of the chunks of this process, and how many edges they had."""
    _check_arguments(chunks, num_nodes)
    waiting: list[NumberedEdges] = []
    num_edges = num_waiting = 0
    for position, chunk in enumerate(chunks):
        try:
            _check_chunk(chunk, num_nodes, waiting[0] if waiting else None)
        except (TypeError, ValueError) as error:
            raise type(error)(f"chunk {position} of 'chunks': {error}") from None
        waiting.append(_numbered(chunk, num_edges))
        num_edges += chunk[1].numel()
        num_waiting += chunk[1].numel()
        # So many together that the forest itself is not read again for every few edges.
        if num_waiting >= num_nodes:
            waiting, num_waiting = [_reduce(waiting, num_nodes)], 0
    return (_reduce(waiting, num_nodes) if waiting else None), num_edges


def _check_arguments(chunks, num_nodes) -> None:
    if not isinstance(chunks, Iterable):
        raise TypeError(
            "'chunks' must be an iterable of pairs (edge_index, edge_weight), "
            f"got {type(chunks).__name__}"
        )
    if num_nodes is None:
        raise TypeError("'num_nodes' must be an int, got None")
    check_num_nodes(num_nodes)


def _check_chunk(chunk, num_nodes: int, before: NumberedEdges | None) -> None:
    if not isinstance(chunk, tuple | list) or len(chunk) != 2:
        length = f" of {len(chunk)}" if isinstance(chunk, tuple | list) else ""
        raise TypeError(
            f"must be a pair (edge_index, edge_weight), got {type(chunk).__name__}{length}"
        )
    edge_index, edge_weight = chunk
    check_edge_index(edge_index)
    check_edge_weight(edge_weight, edge_index)
    if before is not None:
        _check_same("dtype", edge_weight.dtype, before.edge_weight.dtype)
        _check_same("device", edge_weight.device, before.edge_weight.device)
    if checks.values_are_checked(edge_index):
        check_node_range(edge_index, num_nodes)
        check_not_nan("edge_weight", edge_weight)


def _check_same(what: str, found, wanted) -> None:
    if found != wanted:
        raise ValueError(f"must have the {what} of the first, {wanted}, got {found}")


def _numbered(chunk: tuple[Tensor, Tensor], first_number: int) -> NumberedEdges:
    r"""Copies: chunks wait, and whoever reads them may do so into the same memory."""
    edge_index, edge_weight = chunk
    last_number = first_number + edge_weight.numel()
    number = torch.arange(first_number, last_number, device=edge_weight.device)
    return NumberedEdges(edge_index.clone(), edge_weight.detach().clone(), number)


def _reduce(parts: list[NumberedEdges], num_nodes: int) -> NumberedEdges:
    edge_index, edge_weight, edge_number = (
        torch.cat(values, dim=-1) for values in zip(*parts, strict=True)
    )
    kept = trusted_minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    return NumberedEdges(edge_index[:, kept], edge_weight[kept], edge_number[kept])


# Over processes. ----------------------------------------------------------------------------------


class Part(NamedTuple):
    r"""What a process tells the others of its chunks."""

    num_edges: int
    num_nodes: int
    dtype: torch.dtype | None
    error: str | None


def _reduce_group(
    chunks: Iterable, num_nodes: int, group: "dist.ProcessGroup"
) -> NumberedEdges | None:
    r"""Merges the forests of neighbors, then of neighboring pairs, and so on; the first process
    hands the last one to all.
    """
    edges, first_number = _reduce_own_part(chunks, num_nodes, group)
    if edges is not None:
        edges = edges._replace(edge_number=edges.edge_number + first_number)
    device = torch.device("cpu") if edges is None else edges.edge_weight.device
    rank, num_processes = dist.get_rank(group), dist.get_world_size(group)
    step = 1
    while step < num_processes and rank % step == 0:
        if rank % (2 * step) == step:
            _send(edges, rank - step, group)
        elif rank + step < num_processes:
            edges = _merge(edges, _receive(rank + step, group), num_nodes)
        step *= 2
    whole = [_on("cpu", edges)]
    dist.broadcast_object_list(whole, dist.get_global_rank(group, 0), group)
    return _on(device, whole[0])


def _reduce_own_part(
    chunks: Iterable, num_nodes: int, group: "dist.ProcessGroup"
) -> tuple[NumberedEdges | None, int]:
    r"""The forest of the chunks of this process, and the number of its first edge. All fail where
    one does, as they would wait for it.
    """
    edges, num_edges, error = None, 0, None
    try:
        edges, num_edges = _reduce_chunks(chunks, num_nodes)
    except Exception as found:
        error = found
    dtype = None if edges is None else edges.edge_weight.dtype
    message = None if error is None else f"{type(error).__name__}: {error}"
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, Part(num_edges, num_nodes, dtype, message), group)
    if error is not None:
        raise error
    _check_parts(parts)
    return edges, sum(part.num_edges for part in parts[: dist.get_rank(group)])


def _check_parts(parts: list[Part]) -> None:
    for rank, part in enumerate(parts):
        if part.error is not None:
            raise ValueError(f"'chunks' of process {rank} failed with {part.error}")
    numbers = [part.num_nodes for part in parts]
    if len(set(numbers)) > 1:
        raise ValueError(f"'num_nodes' must be the same in all processes, got {numbers}")
    dtypes = [part.dtype for part in parts if part.dtype is not None]
    if len(set(dtypes)) > 1:
        raise ValueError(f"'chunks' must have one dtype in all processes, got {dtypes}")


def _on(device: torch.device | str, edges: NumberedEdges | None) -> NumberedEdges | None:
    return None if edges is None else NumberedEdges(*(value.to(device) for value in edges))


def _send(edges: NumberedEdges | None, rank: int, group: "dist.ProcessGroup") -> None:
    # Tensors come out on the device that they went in on, and another process has its own.
    dist.send_object_list([_on("cpu", edges)], dist.get_global_rank(group, rank), group)


def _receive(rank: int, group: "dist.ProcessGroup") -> NumberedEdges | None:
    other: list[NumberedEdges | None] = [None]
    dist.recv_object_list(other, dist.get_global_rank(group, rank), group)
    return other[0]


def _merge(
    edges: NumberedEdges | None, other: NumberedEdges | None, num_nodes: int
) -> NumberedEdges | None:
    if edges is None or other is None:
        return other if edges is None else edges
    return _reduce(
        [edges, NumberedEdges(*(value.to(edges[0].device) for value in other))], num_nodes
    )
