r"""The order in which the CPU kernels visit a forest, and what is known of each place of it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.plan import plan_of

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
    r"""The forest as the kernels visit it."""
    order = forest.order.contiguous().numpy()
    num_bundles, bundles, above, flags = _parts(plan_of(forest), len(order))
    return PlacedForest(order, above, flags, bundles[: num_bundles[0] + 1])


def make_plan(order: Tensor, parent: Tensor) -> Tensor:
    r"""Checks that parents stand before their children, and prepares the forest for the kernels."""
    num_nodes = len(order)
    plan = torch.empty(plan_size(num_nodes), dtype=torch.int32)
    num_bundles, bundles, above, flags = _parts(plan, num_nodes)
    place_of_node, first_place = np.full_like(above, -1), np.empty(num_nodes + 1, np.int64)
    nodes, parents = order.contiguous().numpy(), parent.contiguous().numpy()
    known = place_of_node, first_place, num_bundles, bundles, above, flags
    wrong = _prepare(nodes, parents, *known)
    if wrong >= 0:
        raise ValueError(
            "'forest' must hold every node once in 'order', parents before their children, "
            f"got node {nodes[wrong]} at place {wrong} of {num_nodes}"
        )
    return plan


def plan_size(num_nodes: int) -> int:
    r"""How many numbers of 32 bits a plan takes: of 64 bits each the number of bundles and where
    they begin, then the places above, of 64 bits where 32 do not number them, then the flags.
    """
    most_starts = num_nodes // NODES_PER_BUNDLE + 2
    return 2 + 2 * most_starts + num_nodes * (1 + num_nodes // 2**31) + num_nodes // 4 + 1


def _parts(plan: Tensor, num_nodes: int) -> tuple[np.ndarray, ...]:
    r"""The number of bundles, where they begin, the places above, the flags: views of the plan."""
    words = plan.numpy()
    number = np.dtype(np.int32 if num_nodes < 2**31 else np.int64)
    begin_flags = len(words) - num_nodes // 4 - 1
    begin_above = begin_flags - num_nodes * number.itemsize // 4
    starts = words[: begin_above - begin_above % 2].view(np.int64)
    above, flags = words[begin_above:begin_flags].view(number), words[begin_flags:].view(np.uint8)
    return starts[:1], starts[1:], above, flags[:num_nodes]


@compiled
def _prepare(order, parent, place_of_node, first_place, num_bundles, bundles, above, flags):
    r"""Fills the last four arrays; returns the first wrong place, or -1."""
    num_nodes = len(order)
    num_trees = 0
    for place in range(num_nodes):
        flags[place] = LEAF
        node = order[place]
        if node < 0 or node >= num_nodes or place_of_node[node] >= 0:
            return place
        place_of_node[node] = place
        if parent[node] < 0 or parent[node] >= num_nodes or place_of_node[parent[node]] < 0:
            return place
        above[place] = place_of_node[parent[node]]
        if above[place] == place:
            flags[place] |= ROOT
            first_place[num_trees] = place
            num_trees += 1
        # A child of an earlier tree ties all trees since then to that one.
        while first_place[num_trees - 1] > above[place]:
            num_trees -= 1

    for place in range(num_nodes - 1, -1, -1):
        if above[place] != place:
            flags[place] |= LAST_CHILD * (flags[above[place]] & LEAF)
            flags[above[place]] &= ~np.uint8(LEAF)

    num_bundles[0] = 0
    for tree in range(num_trees):
        start = first_place[tree]
        if num_bundles[0] == 0 or start - bundles[num_bundles[0] - 1] >= NODES_PER_BUNDLE:
            bundles[num_bundles[0]] = start
            num_bundles[0] += 1
    bundles[num_bundles[0]] = num_nodes
    return -1
