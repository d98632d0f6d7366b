r"""Borůvka's algorithm on shrinking lists of edges and components, as Numba kernels.

Every round joins each component along its lowest edge, renumbers the components and drops the edges
inside them. The lists keep the edges' sequence, so of equal weights the first one found is the
lowest edge number. Dense graphs are done in portions by weight: an edge whose ends lighter edges
already connect is dropped unread.
"""

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from numba.extending import overload
from torch import Tensor

from groot_graph.checks import check_node_range
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.minimum_spanning_forest.weights import comparable_bits

# With more edges than this per component, the lightest ones are joined first.
EDGES_PER_COMPONENT = 3.0
# Which share of that bound a portion of light edges is meant to have.
LIGHT_SHARE = 0.5
SAMPLE_SIZE = 1024

# A key of 32 bits and its place are packed into 64.
NO_EDGE = np.int64(2**63 - 1)
PLACE_BITS = np.int64(32)
PLACE_MASK = np.int64(2**32 - 1)


class Edges(NamedTuple):
    r"""A list of edges.

    Attributes:
        ends: The two components that each joins, and its number.
        key: An integer of 32 or 64 bits that compares as its weight does.
    """

    ends: np.ndarray
    key: np.ndarray


class Components(NamedTuple):
    r"""What is known of every component.

    Attributes:
        best: The key and the place of its lowest edge: in one word where a key has 32 bits, in two
            where it has 64.
        label: What it is joined to, and at last the new number of that.
        new_number: Of the components that others are joined to.
        ends_in: What every component that the rounds began with is part of by now.
    """

    best: np.ndarray
    label: np.ndarray
    new_number: np.ndarray
    ends_in: np.ndarray


def minimum_spanning_forest_cpu(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    num_edges = edge_index.size(1)
    source, target = edge_index.contiguous().numpy()
    bits, is_float = comparable_bits(edge_weight, num_nodes)
    weight = bits.numpy()
    edge_mask = np.zeros(num_edges, np.bool_)
    edges = Edges(np.empty((3, num_edges), np.int32), np.empty_like(weight))
    heavy_edges = Edges(np.empty((3, num_edges), np.int32), np.empty_like(weight))
    components = Components(
        np.empty(num_nodes if weight.dtype == np.int32 else (num_nodes, 2), np.int64),
        np.empty(num_nodes, np.int32),
        np.empty(num_nodes, np.int32),
        np.empty(num_nodes, np.int32),
    )
    lists = edges, heavy_edges, components
    if not _forest(source, target, weight, is_float, num_nodes, edge_mask, *lists):
        check_node_range(edge_index, num_nodes)
    return torch.from_numpy(edge_mask)


@njit(forceinline=True)
def _key(bits, is_float):
    r"""An integer that compares as the weight does. The lower bits of negative floats fall."""
    lowest = np.iinfo(bits).min
    if not is_float or bits >= 0:
        return bits
    # -0 is 0.
    return bits ^ ~lowest if bits != lowest else bits ^ bits


@njit(forceinline=True)
def _offer(best, component, key, place):
    r"""Keeps the lowest (key, place); places stand in the sequence of edge numbers."""
    _keep_lower(best, component, np.int64(key), np.int64(place))


def _keep_lower(best, component, key, place):
    raise NotImplementedError


@overload(_keep_lower, jit_options={"forceinline": True})
def _(best, component, key, place):
    def in_one_word(best, component, key, place):
        best[component] = min(best[component], (key << PLACE_BITS) | place)

    def in_two_words(best, component, key, place):
        key_before, place_before = best[component, 0], best[component, 1]
        # All ones where the key is lower or there is no place yet: a branch would be mispredicted.
        mask = -np.int64(key < key_before) | (place_before >> 63)
        best[component, 0] = key_before ^ ((key_before ^ key) & mask)
        best[component, 1] = place_before ^ ((place_before ^ place) & mask)

    return in_one_word if best.ndim == 1 else in_two_words


def _place(best, component):
    raise NotImplementedError


@overload(_place, jit_options={"forceinline": True})
def _(best, component):
    r"""The place of the lowest edge, or -1."""

    def in_one_word(best, component):
        word = best[component]
        return word & PLACE_MASK if word != NO_EDGE else np.int64(-1)

    def in_two_words(best, component):
        return best[component, 1]

    return in_one_word if best.ndim == 1 else in_two_words


def _choose_alike(best, component, other):
    raise NotImplementedError


@overload(_choose_alike, jit_options={"forceinline": True})
def _(best, component, other):
    r"""Whether both have the same lowest edge."""

    def in_one_word(best, component, other):
        return best[component] == best[other]

    def in_two_words(best, component, other):
        return best[component, 1] == best[other, 1]

    return in_one_word if best.ndim == 1 else in_two_words


def _forget(best, num_components):
    raise NotImplementedError


@overload(_forget)
def _(best, num_components):
    def in_one_word(best, num_components):
        best[:num_components] = NO_EDGE

    def in_two_words(best, num_components):
        best[:num_components, 1] = -1

    return in_one_word if best.ndim == 1 else in_two_words


@compiled
def _forest(source, target, weight, is_float, num_nodes, edge_mask, edges, heavy_edges, components):
    r"""Marks the edges of the forest; returns False at a node that is out of range."""
    num_components = num_nodes
    ends_in = components.ends_in
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
        joined = _join(edges, num_light, num_components, edge_mask, components)
        num_edges = 0
        for place in range(num_heavy):
            first, second, key, edge = _get(heavy_edges, place)
            first, second = ends_in[first], ends_in[second]
            if first != second:
                _put(edges, num_edges, first, second, key, edge)
                num_edges += 1
        num_components = joined
    return True


@njit(forceinline=True)
def _get(edges, place):
    ends, key = edges
    return np.uint64(ends[0, place]), np.uint64(ends[1, place]), key[place], ends[2, place]


@njit(forceinline=True)
def _put(edges, place, first, second, key, edge):
    edges.key[place] = key
    edges.ends[0, place], edges.ends[1, place], edges.ends[2, place] = first, second, edge


@compiled
def _split(edges, heavy_edges, num_edges, num_components):
    r"""Moves the edges above a weight to the second list; both lists keep the sequence."""
    sample = np.sort(edges.key[: num_edges : max(1, num_edges // SAMPLE_SIZE)])
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
def _join(edges, num_edges, num_components, edge_mask, components):
    r"""Runs Borůvka's rounds.

    Fills `ends_in` with what every component is part of at last, and returns how many are left.
    """
    best, label, _, ends_in = components
    _forget(best, num_components)
    for place in range(num_edges):
        first, second, key, _ = _get(edges, place)
        _offer(best, first, key, place)
        _offer(best, second, key, place)
    for start in range(num_components):
        ends_in[start] = start

    num_left = num_components
    while num_edges > 0:
        num_left = _contract(edges, num_left, edge_mask, components)
        for start in range(num_components):
            ends_in[start] = label[ends_in[start]]
        num_crossing = 0
        for place in range(num_edges):
            first, second, key, edge = _get(edges, place)
            first, second = np.uint64(label[first]), np.uint64(label[second])
            if first != second:
                _put(edges, num_crossing, first, second, key, edge)
                _offer(best, first, key, num_crossing)
                _offer(best, second, key, num_crossing)
                num_crossing += 1
        num_edges = num_crossing
    return num_left


@compiled
def _contract(edges, num_components, edge_mask, components):
    r"""Joins every component along its best edge.

    Fills `label` with what every component is joined to, numbered by first member, and returns how
    many there are.
    """
    best, label, new_number, _ = components
    for component in range(num_components):
        place = _place(best, component)
        if place < 0:
            label[component] = component
            continue
        edge_mask[edges.ends[2, place]] = True
        other = edges.ends[0, place] + edges.ends[1, place] - component
        # Of two components that choose the same edge, the lower one ends the chain of choices.
        ends_here = _choose_alike(best, component, other) and component < other
        label[component] = component if ends_here else other

    for component in range(num_components):
        end = component
        while label[end] != end:
            label[end] = label[label[end]]
            end = label[end]
        label[component] = end

    num_joined = 0
    for component in range(num_components):
        if label[component] == component:
            new_number[component] = num_joined
            num_joined += 1
    for component in range(num_components):
        label[component] = new_number[label[component]]
    _forget(best, num_joined)
    return num_joined
