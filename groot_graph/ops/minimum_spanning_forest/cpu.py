r"""Borůvka's algorithm on shrinking lists of edges and components, as Numba kernels.

Every round joins each component along its lowest edge, renumbers the components and drops the edges
inside them. The lists keep the edges' sequence, so of equal weights the first one found is the
lowest edge number. Dense graphs are done in portions by weight: an edge whose ends lighter edges
already connect is dropped unread.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

# With more edges than this per component, the lightest ones are joined first.
EDGES_PER_COMPONENT = 3.0
# Which share of that bound a portion of light edges is meant to have.
LIGHT_SHARE = 0.5
SAMPLE_SIZE = 1024


def minimum_spanning_forest_cpu(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    source, target = edge_index.contiguous().numpy()
    num_edges = len(source)
    number = np.int32 if max(num_nodes, num_edges) < 2**31 else np.int64
    weight = _comparable(edge_weight).contiguous().numpy()
    edge_mask = np.zeros(num_edges, np.bool_)
    edges, heavy_edges = (
        _edge_list(num_edges, number, weight),
        _edge_list(num_edges, number, weight),
    )
    best_edge, best_value = np.empty(num_nodes, number), np.empty(num_nodes, weight.dtype)
    label, component = np.empty(num_nodes, number), np.empty(num_nodes, number)
    _forest(
        source,
        target,
        weight,
        num_nodes,
        edge_mask,
        edges,
        heavy_edges,
        (best_edge, best_value),
        label,
        component,
    )
    return torch.from_numpy(edge_mask)


def _comparable(edge_weight: Tensor) -> Tensor:
    r"""NumPy lacks bfloat16, and no arithmetic is done: a wider dtype compares the same."""
    if edge_weight.is_floating_point():
        return edge_weight if edge_weight.dtype == torch.float64 else edge_weight.float()
    return edge_weight.long()


def _edge_list(num_edges: int, number: type, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    r"""Room for both ends of every edge, its weight and its number."""
    return (
        np.empty(num_edges, number),
        np.empty(num_edges, number),
        np.empty(num_edges, weight.dtype),
        np.empty(num_edges, number),
    )


@njit(cache=True, nogil=True)
def _forest(
    source, target, weight, num_nodes, edge_mask, edges, heavy_edges, best, label, component
):
    num_edges = 0
    for edge in range(len(source)):
        if source[edge] != target[edge]:
            _put(edges, num_edges, source[edge], target[edge], weight[edge], edge)
            num_edges += 1

    num_components = num_nodes
    while num_edges > 0:
        num_light, num_heavy = num_edges, 0
        if num_edges > EDGES_PER_COMPONENT * num_components:
            num_light, num_heavy = _split(edges, heavy_edges, num_edges, num_components)
        joined = _join(edges, num_light, num_components, edge_mask, best, label, component)
        num_edges = 0
        for place in range(num_heavy):
            first, second, value, edge = _get(heavy_edges, place)
            first, second = component[first], component[second]
            if first != second:
                _put(edges, num_edges, first, second, value, edge)
                num_edges += 1
        num_components = joined


@njit(forceinline=True)
def _get(edges, place):
    first, second, value, number = edges
    return first[place], second[place], value[place], number[place]


@njit(forceinline=True)
def _put(edges, place, first_end, second_end, weight, edge):
    first, second, value, number = edges
    first[place], second[place] = first_end, second_end
    value[place], number[place] = weight, edge


@njit(cache=True, nogil=True)
def _split(edges, heavy_edges, num_edges, num_components):
    r"""Moves the edges above a weight to the second list; both lists keep the sequence."""
    value = edges[2]
    sample = np.sort(value[: num_edges : max(1, num_edges // SAMPLE_SIZE)])
    share = LIGHT_SHARE * EDGES_PER_COMPONENT * num_components / num_edges
    pivot = sample[int(share * len(sample))]
    num_light = num_heavy = 0
    for place in range(num_edges):
        first, second, weight, edge = _get(edges, place)
        if weight <= pivot:
            _put(edges, num_light, first, second, weight, edge)
            num_light += 1
        else:
            _put(heavy_edges, num_heavy, first, second, weight, edge)
            num_heavy += 1
    return num_light, num_heavy


@njit(cache=True, nogil=True)
def _join(edges, num_edges, num_components, edge_mask, best, label, component):
    r"""Runs Borůvka's rounds.

    Fills `component` with what every component ends up in, and returns how many are left.
    """
    best_edge, best_value = best
    best_edge[:num_components] = -1
    for place in range(num_edges):
        first, second, weight, _ = _get(edges, place)
        _offer(best_edge, best_value, first, weight, place)
        _offer(best_edge, best_value, second, weight, place)
    for start in range(num_components):
        component[start] = start

    num_left = num_components
    while num_edges > 0:
        num_left = _contract(edges, num_left, edge_mask, best_edge, label)
        for start in range(num_components):
            component[start] = label[component[start]]
        num_crossing = 0
        for place in range(num_edges):
            first, second, weight, edge = _get(edges, place)
            first, second = label[first], label[second]
            if first != second:
                _put(edges, num_crossing, first, second, weight, edge)
                _offer(best_edge, best_value, first, weight, num_crossing)
                _offer(best_edge, best_value, second, weight, num_crossing)
                num_crossing += 1
        num_edges = num_crossing
    return num_left


@njit(forceinline=True)
def _offer(best_edge, best_value, component, weight, place):
    if best_edge[component] < 0 or weight < best_value[component]:
        best_edge[component] = place
        best_value[component] = weight


@njit(cache=True, nogil=True)
def _contract(edges, num_components, edge_mask, best_edge, label):
    r"""Joins every component along its best edge.

    Fills `label` with what every component is joined to, numbered by first member, and returns how
    many there are.
    """
    first, second, _, number = edges
    for component in range(num_components):
        place = best_edge[component]
        if place < 0:
            label[component] = component
            continue
        edge_mask[number[place]] = True
        other = first[place] + second[place] - component
        # Of two components that choose the same edge, the lower one is where the chain of choices
        # ends.
        ends_here = best_edge[other] == place and component < other
        label[component] = component if ends_here else other

    for component in range(num_components):
        end = component
        while label[end] != end:
            label[end] = label[label[end]]
            end = label[end]
        label[component] = end

    num_joined = 0
    new_number = best_edge
    for component in range(num_components):
        if label[component] == component:
            new_number[component] = num_joined
            num_joined += 1
    for component in range(num_components):
        label[component] = new_number[label[component]]
    best_edge[:num_joined] = -1
    return num_joined
