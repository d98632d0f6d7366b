r"""The order in which the CPU kernels visit a forest, and what is known of each place of it."""

from typing import NamedTuple

import numpy as np
from numba import njit

from groot_graph.forest import Forest

# What a flag says of the node at one place of the order.
LEAF = 1  # it has no child
LAST_CHILD = 2  # of its parent, the first child that a pass from the end of the order meets
ROOT = 4  # it has no parent

# Trees share a bundle until it has this many nodes: one unit of work that pays for its hand-over.
NODES_PER_BUNDLE = 1024


class PlacedForest(NamedTuple):
    r"""A checked forest as NumPy arrays, by places in its order.

    Attributes:
        order: The node at every place, parents before their children.
        above: The place of its parent, its own at a root.
        flags: LEAF, LAST_CHILD and ROOT.
        bundles: The place where each range of whole trees begins, and at the end the number of
            nodes.
    """

    order: np.ndarray
    above: np.ndarray
    flags: np.ndarray
    bundles: np.ndarray

    @property
    def num_bundles(self) -> int:
        return len(self.bundles) - 1


def placed(forest: Forest) -> PlacedForest:
    r"""Checks that parents stand before their children, and prepares the forest for the kernels."""
    order, parent = forest.order.contiguous().numpy(), forest.parent.contiguous().numpy()
    number = np.int32 if len(order) < 2**31 else np.int64
    place_of_node, above = np.full(len(order), -1, number), np.empty(len(order), number)
    flags, bundles = np.full(len(order), LEAF, np.uint8), np.empty(len(order) + 1, np.int64)
    wrong, num_bundles = _prepare(order, parent, place_of_node, above, flags, bundles)
    if wrong >= 0:
        raise ValueError(
            "'forest' must hold every node once in 'order', parents before their children, "
            f"got node {order[wrong]} at place {wrong} of {len(order)}"
        )
    return PlacedForest(order, above, flags, bundles[: num_bundles + 1].copy())


@njit(cache=True, nogil=True)
def _prepare(order, parent, place_of_node, above, flags, bundles):
    r"""Fills the arrays; returns the first wrong place, or -1, and the number of bundles."""
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
            bundles[num_trees] = place
            num_trees += 1
        # A child of an earlier tree ties all trees since then to that one.
        while bundles[num_trees - 1] > above[place]:
            num_trees -= 1

    for place in range(num_nodes - 1, -1, -1):
        if above[place] != place:
            flags[place] |= LAST_CHILD * (flags[above[place]] & LEAF)
            flags[above[place]] &= ~np.uint8(LEAF)

    num_bundles = 0
    for tree in range(num_trees):
        start = bundles[tree]
        if num_bundles == 0 or start - bundles[num_bundles - 1] >= NODES_PER_BUNDLE:
            bundles[num_bundles] = start
            num_bundles += 1
    bundles[num_bundles] = num_nodes
    return -1, num_bundles
