r"""Borůvka's algorithm in plain PyTorch, on any device."""

import torch
from torch import Tensor


def minimum_spanning_forest_reference(
    edge_index: Tensor, edge_weight: Tensor, num_nodes: int
) -> Tensor:
    r"""Every component joins along its lowest edge by (weight, edge number), until none is left."""
    source, target = edge_index
    edges = torch.arange(source.size(0), device=source.device)
    rank = torch.empty_like(edges)
    rank[edge_weight.sort(stable=True).indices] = edges

    edge_mask = torch.zeros_like(edges, dtype=torch.bool)
    component = torch.arange(num_nodes, device=source.device)
    while True:
        crossing = component[source] != component[target]
        if not crossing.any():
            return edge_mask
        source, target, edges, rank = (values[crossing] for values in (source, target, edges, rank))
        lowest, chosen = _lowest_edges(component[source], component[target], rank, num_nodes)
        edge_mask[edges[chosen]] = True
        component = _join(component, component[source], component[target], rank, lowest)


def _lowest_edges(first: Tensor, second: Tensor, rank: Tensor, num_nodes: int):
    r"""The lowest rank at every component, and which edges hold one."""
    lowest = rank.new_full((num_nodes,), torch.iinfo(rank.dtype).max)
    lowest = lowest.scatter_reduce(0, first, rank, "amin")
    lowest = lowest.scatter_reduce(0, second, rank, "amin")
    return lowest, (lowest[first] == rank) | (lowest[second] == rank)


def _join(component: Tensor, first: Tensor, second: Tensor, rank: Tensor, lowest: Tensor) -> Tensor:
    r"""Every component points across its lowest edge; of two that choose one, the lower ends."""
    nodes = torch.arange(component.size(0), device=component.device)
    pointer = nodes.clone()
    takes_first, takes_second = lowest[first] == rank, lowest[second] == rank
    pointer[first[takes_first]] = second[takes_first]
    pointer[second[takes_second]] = first[takes_second]
    mutual = (pointer[pointer] == nodes) & (nodes < pointer)
    pointer = torch.where(mutual, nodes, pointer)
    while not torch.equal(pointer, pointer[pointer]):
        pointer = pointer[pointer]
    return pointer[component]
