r"""Borůvka's algorithm as CUDA kernels: two launches for each of a fixed number of rounds.

Nothing is read back from the device, so a CUDA graph can capture it.
"""

import torch
from torch import Tensor

from groot_graph.ops.cuda.launch import bind, on_current_stream
from groot_graph.ops.minimum_spanning_forest.weights import int32_keys


@on_current_stream
def minimum_spanning_forest_cuda(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    num_edges = edge_index.size(1)
    weight, is_float = int32_keys(edge_weight, num_nodes)
    if num_nodes == 0 or num_edges == 0:
        return edge_index.new_zeros(num_edges, dtype=torch.bool)
    source, target = edge_index.contiguous()
    num_rounds = most_rounds(num_nodes, num_edges)

    edge_mask = edge_index.new_empty(num_edges, dtype=torch.bool)
    ends = edge_index.new_empty(num_edges, 2, dtype=torch.int32)
    link = edge_index.new_empty(num_nodes, dtype=torch.int32)
    lowest = edge_index.new_empty(num_nodes, dtype=torch.int64)
    has_living = edge_index.new_empty(num_rounds, dtype=torch.int32)

    kernel = bind("minimum_spanning_forest")
    state = link, lowest, ends, has_living
    sizes = num_edges, num_nodes, num_rounds
    kernel.strided("start_forest", max(sizes), source, target, *sizes, *state, edge_mask)
    offered = weight, int(is_float), num_edges
    for number in range(num_rounds):
        kernel.strided("find_lowest", num_edges, *offered, number, *state)
        kernel.strided("join_lowest", num_nodes, num_nodes, number, *state, edge_mask)
    return edge_mask


def most_rounds(num_nodes: int, num_edges: int) -> int:
    r"""After this many rounds no edge is left: each at least halves the trees of a component, and
    a component has at most one node more than the graph has edges.
    """
    return min(num_nodes - 1, num_edges).bit_length()
