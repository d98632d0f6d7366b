r"""Borůvka's algorithm as CUDA kernels: two launches for each of a fixed number of rounds, and one
for all that are left.

Nothing is read back from the device, so a CUDA graph can capture it.
"""

import torch
from torch import Tensor

from groot_graph.ops.cuda.launch import MOST_THREADS_PER_BLOCK, bind, on_current_stream
from groot_graph.ops.minimum_spanning_forest.weights import int32_keys

# So many rounds are launched at least: mostly there are no more.
FEWEST_LAUNCHED = 8
# In so many rounds one block joins what the launched ones have left.
MOST_IN_ONE_BLOCK = 11
MACROS: "dict[str, str | int]" = {"MOST_THREADS_PER_BLOCK": MOST_THREADS_PER_BLOCK}


@on_current_stream
def minimum_spanning_forest_cuda(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    num_edges = edge_index.size(1)
    weight, is_float = int32_keys(edge_weight, num_nodes)
    if num_nodes == 0 or num_edges == 0:
        return edge_index.new_zeros(num_edges, dtype=torch.bool)
    source, target = edge_index.contiguous()
    num_rounds = most_rounds(num_nodes, num_edges)
    num_launched = launched_rounds(num_rounds)

    edge_mask = edge_index.new_empty(num_edges, dtype=torch.bool)
    ends = edge_index.new_empty(num_edges, 2, dtype=torch.int32)
    link = edge_index.new_empty(num_nodes, dtype=torch.int32)
    lowest = edge_index.new_empty(num_nodes, dtype=torch.int64)
    # The last one counts the edges that are left.
    has_living = edge_index.new_empty(num_launched + 1, dtype=torch.int32)
    left = None
    if num_launched < num_rounds:
        left = edge_index.new_empty(num_edges, dtype=torch.int32)

    kernel = bind("minimum_spanning_forest", **MACROS)
    state = link, lowest, ends, has_living
    sizes = num_edges, num_nodes, num_launched + 1
    kernel.strided("start_forest", max(sizes), source, target, *sizes, *state, edge_mask)
    offered = weight, int(is_float), num_edges
    for number in range(num_launched):
        listed = left if number + 1 == num_launched else None
        kernel.strided("find_lowest", num_edges, *offered, number, *state, listed)
        kernel.strided("join_lowest", num_nodes, num_nodes, number, *state, edge_mask)
    if left is not None:
        rest = left, has_living, num_launched, link, lowest, ends, edge_mask
        kernel.in_one_block("finish_forest", num_edges, weight, int(is_float), *rest)
    return edge_mask


def launched_rounds(num_rounds: int) -> int:
    r"""How many of the rounds are launched. Each at least halves the trees that have edges left, so
    few are left after these.
    """
    return min(num_rounds, max(FEWEST_LAUNCHED, num_rounds - MOST_IN_ONE_BLOCK))


def most_rounds(num_nodes: int, num_edges: int) -> int:
    r"""After this many rounds no edge is left: each at least halves the trees of a component, and
    a component has at most one node more than the graph has edges.
    """
    return min(num_nodes - 1, num_edges).bit_length()
