r"""What a Numba kernel needs to know of a forest before it walks along it."""

from typing import NamedTuple

import numpy as np
from numba import njit

from groot_graph.forest import Forest

# What a flag says of the node at one place of the order.
LEAF = 1  # it has no child
LAST = 2  # it is its parent's last child, the first that a walk backwards meets
ROOT = 4  # it has no parent

# Trees share a segment until it has this many nodes: one unit of work that pays for its hand-over.
NODES_PER_SEGMENT = 1024


class Walk(NamedTuple):
    r"""A checked forest as NumPy arrays, by places in its order.

    Attributes:
        order: The node at every place, parents before their children.
        above: The place of its parent, its own at a root.
        flags: LEAF, LAST and ROOT.
        segments: The place where each range of whole trees begins, and at the end the number of
            nodes.
    """

    order: np.ndarray
    above: np.ndarray
    flags: np.ndarray
    segments: np.ndarray

    @property
    def num_segments(self) -> int:
        return len(self.segments) - 1


def walk(forest: Forest) -> Walk:
    r"""Checks that parents stand before their children, and prepares the forest for the kernels."""
    order, parent = forest.order.contiguous().numpy(), forest.parent.contiguous().numpy()
    number = np.int32 if len(order) < 2**31 else np.int64
    place_of_node, above = np.full(len(order), -1, number), np.empty(len(order), number)
    flags, segments = np.full(len(order), LEAF, np.uint8), np.empty(len(order) + 1, np.int64)
    wrong, num_segments = _prepare(order, parent, place_of_node, above, flags, segments)
    if wrong >= 0:
        raise ValueError(
            "'forest' must hold every node once in 'order', parents before their children, "
            f"got node {order[wrong]} at place {wrong} of {len(order)}"
        )
    return Walk(order, above, flags, segments[: num_segments + 1].copy())


@njit(cache=True, nogil=True)
def _prepare(order, parent, place_of_node, above, flags, segments):
    r"""Fills the arrays; returns the first wrong place, or -1, and the number of segments."""
    num_nodes = len(order)
    num_trees = 0
    for place in range(num_nodes):
        node = order[place]
        if node < 0 or node >= num_nodes or place_of_node[node] >= 0:
            return place, 0
        place_of_node[node] = place
        if parent[node] < 0 or parent[node] >= num_nodes or place_of_node[parent[node]] < 0:
            return place, 0
        above[place] = place_of_node[parent[node]]
        if above[place] == place:
            flags[place] |= ROOT
            segments[num_trees] = place
            num_trees += 1
        # A child of an earlier tree ties all trees since then to that one.
        while segments[num_trees - 1] > above[place]:
            num_trees -= 1

    for place in range(num_nodes - 1, -1, -1):
        if above[place] != place:
            flags[place] |= LAST * (flags[above[place]] & LEAF)
            flags[above[place]] &= ~np.uint8(LEAF)

    num_segments = 0
    for tree in range(num_trees):
        start = segments[tree]
        if num_segments == 0 or start - segments[num_segments - 1] >= NODES_PER_SEGMENT:
            segments[num_segments] = start
            num_segments += 1
    segments[num_segments] = num_nodes
    return -1, num_segments
