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

from groot_graph.checks import check_node_range
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.minimum_spanning_forest.weights import int32_keys

# With more edges than this per component, the lightest ones are joined first.
EDGES_PER_COMPONENT = 3.0
# Which share of that bound a portion of light edges is meant to have.
LIGHT_SHARE = 0.5
SAMPLE_SIZE = 1024

# The kernels number nodes and edges with 32 bits, and pack an edge's key and place into 64.
LOWEST = np.int32(-(2**31))
NONE = np.int64(2**63 - 1)
PLACE_BITS = np.int64(32)
PLACE_MASK = np.int64(2**32 - 1)


def minimum_spanning_forest_cpu(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    num_edges = edge_index.size(1)
    source, target = edge_index.contiguous().numpy()
    key, is_float = int32_keys(edge_weight, num_nodes)
    weight = key.numpy()
    edge_mask = np.zeros(num_edges, np.bool_)
    edges, heavy_edges = np.empty((2, 4, num_edges), np.int32)
    best = np.empty(num_nodes, np.int64)
    label, component = np.empty(num_nodes, np.int32), np.empty(num_nodes, np.int32)
    lists = edges, heavy_edges, best, label, component
    if not _forest(source, target, weight, is_float, edge_mask, *lists):
        check_node_range(edge_index, num_nodes)
    return torch.from_numpy(edge_mask)


@njit(forceinline=True)
def _key(bits, is_float):
    r"""An int32 that compares as the weight does; the lower bits of negative floats count down."""
    if not is_float or bits >= 0:
        return bits
    # -0 is 0.
    return bits ^ np.int32(0x7FFFFFFF) if bits != LOWEST else np.int32(0)


@compiled
def _forest(
    source, target, weight, is_float, edge_mask, edges, heavy_edges, best, label, component
):
    r"""Marks the edges of the forest; returns False at a node that is out of range."""
    num_components = len(best)
    num_edges = 0
    for edge in range(len(source)):
        first, second = source[edge], target[edge]
        # No door reads the edges of a compiled graph.
        if min(first, second) < 0 or max(first, second) >= num_components:
            return False
        if first != second:
            _put(edges, num_edges, first, second, _key(weight[edge], is_float), edge)
            num_edges += 1

    while num_edges > 0:
        num_light, num_heavy = num_edges, 0
        if num_edges > EDGES_PER_COMPONENT * num_components:
            num_light, num_heavy = _split(edges, heavy_edges, num_edges, num_components)
        joined = _join(edges, num_light, num_components, edge_mask, best, label, component)
        num_edges = 0
        for place in range(num_heavy):
            first, second, key, edge = _get(heavy_edges, place)
            first, second = component[first], component[second]
            if first != second:
                _put(edges, num_edges, first, second, key, edge)
                num_edges += 1
        num_components = joined
    return True


@njit(forceinline=True)
def _get(edges, place):
    return edges[0, place], edges[1, place], edges[2, place], edges[3, place]


@njit(forceinline=True)
def _put(edges, place, first, second, key, edge):
    edges[0, place], edges[1, place], edges[2, place], edges[3, place] = first, second, key, edge


@compiled
def _split(edges, heavy_edges, num_edges, num_components):
    r"""Moves the edges above a weight to the second list; both lists keep the sequence."""
    sample = np.sort(edges[2, : num_edges : max(1, num_edges // SAMPLE_SIZE)])
    share = LIGHT_SHARE * EDGES_PER_COMPONENT * num_components / num_edges
    pivot = sample[int(share * len(sample))]
    num_light = num_heavy = 0
    for place in range(num_edges):
        first, second, key, edge = _get(edges, place)
        # Both lists are written and one counter moves: no branch to mispredict.
        _put(heavy_edges, num_heavy, first, second, key, edge)
        _put(edges, num_light, first, second, key, edge)
        is_light = key <= pivot
        num_light += is_light
        num_heavy += not is_light
    return num_light, num_heavy


@compiled
def _join(edges, num_edges, num_components, edge_mask, best, label, component):
    r"""Runs Borůvka's rounds.

    Fills `component` with what every component ends up in, and returns how many are left.
    """
    best[:num_components] = NONE
    for place in range(num_edges):
        first, second, key, _ = _get(edges, place)
        _offer(best, first, key, place)
        _offer(best, second, key, place)
    for start in range(num_components):
        component[start] = start

    num_left = num_components
    while num_edges > 0:
        num_left = _contract(edges, num_left, edge_mask, best, label)
        for start in range(num_components):
            component[start] = label[component[start]]
        num_crossing = 0
        for place in range(num_edges):
            first, second, key, edge = _get(edges, place)
            first, second = label[first], label[second]
            if first != second:
                _put(edges, num_crossing, first, second, key, edge)
                _offer(best, first, key, num_crossing)
                _offer(best, second, key, num_crossing)
                num_crossing += 1
        num_edges = num_crossing
    return num_left


@njit(forceinline=True)
def _offer(best, component, key, place):
    r"""Keeps the lowest (key, place); places stand in the sequence of edge numbers."""
    best[component] = min(best[component], (np.int64(key) << PLACE_BITS) | np.int64(place))


@compiled
def _contract(edges, num_components, edge_mask, best, label):
    r"""Joins every component along its best edge.

    Fills `label` with what every component is joined to, numbered by first member, and returns how
    many there are.
    """
    for component in range(num_components):
        if best[component] == NONE:
            label[component] = component
            continue
        place = best[component] & PLACE_MASK
        edge_mask[edges[3, place]] = True
        other = edges[0, place] + edges[1, place] - component
        # Of two components that choose the same edge, the lower one ends the chain of choices.
        ends_here = best[other] == best[component] and component < other
        label[component] = component if ends_here else other

    for component in range(num_components):
        end = component
        while label[end] != end:
            label[end] = label[label[end]]
            end = label[end]
        label[component] = end

    num_joined = 0
    new_number = best
    for component in range(num_components):
        if label[component] == component:
            new_number[component] = num_joined
            num_joined += 1
    for component in range(num_components):
        label[component] = new_number[label[component]]
    best[:num_joined] = NONE
    return num_joined
