r"""The plan of a forest for the CUDA scans: it is cut into segments of bounded length by
:obj:`cuda/segments.cu`.

The segments of large trees are the nodes of a smaller forest, which is cut in turn, until few nodes
are left. What a tier holds is the device's business; its size is known from the number of nodes, so
nothing waits for the GPU.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from groot_graph.ops.cuda.launch import MOST_THREADS_PER_BLOCK, Kernels, bind

# A subtree of more nodes is large; a segment has fewer than twice as many.
SEGMENT_LENGTH = 64
# A tree of so few nodes altogether is not cut.
LARGEST_UNCUT = 128
# Of the segments of large trees at most one in SEGMENT_LENGTH nodes starts with a chain, one behind
# a chain, and one behind a multiple of SEGMENT_LENGTH places.
LINKED_PER_LENGTH = 3
# Tiers of so few places are cut by one block, all in one launch.
MOST_IN_ONE_BLOCK = 2**15
MACROS: "dict[str, str | int]" = {
    "LINKED_PER_LENGTH": LINKED_PER_LENGTH,
    "MOST_THREADS_PER_BLOCK": MOST_THREADS_PER_BLOCK,
}
# How many subtrees can hang from one another inside a segment: each is at most half as large as the
# one that it hangs from.
MOST_NESTED = max(2 * SEGMENT_LENGTH, LARGEST_UNCUT).bit_length()


class Tier(NamedTuple):
    r"""One forest of the hierarchy.

    Attributes:
        plan: What the kernels read: row and flags by place, the segments' starts and their numbers
            in the next tier, and the numbers of segments and of nodes of the next tier.
        num_places: The bound on the number of nodes.
    """

    plan: Tensor
    num_places: int


def plan_size(num_nodes: int) -> int:
    r"""A bound on the size of the plan of a forest that needs no loop over its tiers."""
    return 5 * num_nodes + 64


def tiers_of(plan: Tensor, num_nodes: int) -> list[Tier]:
    r"""The plan by tiers, the forest of the input first."""
    tiers, begin = [], 0
    for num_places in _tier_sizes(num_nodes):
        end = begin + _size_in_plan(num_places)
        tiers.append(Tier(plan[begin:end], num_places))
        begin = end
    return tiers


def _tier_sizes(num_nodes: int) -> list[int]:
    sizes = [num_nodes]
    while sizes[-1] > LARGEST_UNCUT:
        sizes.append(LINKED_PER_LENGTH * sizes[-1] // SEGMENT_LENGTH)
    return sizes


def _size_in_plan(num_places: int) -> int:
    return 4 * num_places + 3


def cut(places: Tensor) -> Tensor:
    r"""The plan of a forest that is given by the places of an order in which a subtree is a range
    that begins with its root, and every largest child's subtree the last of its parent's: in rows,
    the node at every place, the place of its parent, its own at a root, and the place behind its
    subtree.
    """
    kernel = bind("segments", **MACROS)
    num_nodes = places.size(1)
    plan = places.new_zeros(plan_size(num_nodes))
    # How many nodes the tiers above the input have, only the device knows.
    part, is_input = plan, True
    for num_places, num_above in itertools.pairwise(_tier_sizes(num_nodes)):
        if num_places <= MOST_IN_ONE_BLOCK:
            break
        if not is_input:
            places = _heaviest_last(kernel, places, part)
        places = _cut_tier(kernel, places, part, is_input, num_above)
        part, is_input = part[_size_in_plan(num_places) :], False
    _cut_other_tiers(kernel, places, part, is_input)
    return plan


def _heaviest_last(kernel: Kernels, places: Tensor, part: Tensor) -> Tensor:
    r"""The forest in an order in which every largest child's subtree is its parent's last."""
    num_places = places.size(1)
    heaviest = places.new_zeros(num_places, dtype=torch.int64)
    move = places.new_zeros(num_places + 1)
    kernel.strided("find_heaviest", num_places, places, part, heaviest, num_places)
    kernel.strided("move_heaviest_last", num_places, places, part, heaviest, move, num_places)
    moved = move.cumsum(0, dtype=torch.int32)
    reordered = torch.empty_like(places)
    kernel.strided("reorder", num_places, places, part, moved, reordered, num_places)
    return reordered


def _cut_tier(
    kernel: Kernels, places: Tensor, part: Tensor, is_input: bool, num_above: int
) -> Tensor:
    r"""Cuts the forest of a tier; returns its segments as the forest of the next one."""
    num_places = places.size(1)
    # For every place 8 bytes for what starts there, to be summed up, and 4 for what ends there.
    marks = places.new_zeros(2 * num_places - num_places // 2, dtype=torch.int64)
    starts = marks[:num_places]
    tier = places, part, int(is_input)
    sizes = SEGMENT_LENGTH, num_places
    kernel.strided("mark_segments", num_places, *tier, starts, *sizes)
    linked = places.new_empty(3, num_above)
    listed = starts, starts.cumsum(0), linked, num_above
    kernel.strided("list_segments", num_places, *tier, *listed, *sizes)
    return linked


def _cut_other_tiers(kernel: Kernels, places: Tensor, part: Tensor, is_input: bool) -> None:
    num_places = places.size(1)
    # For every place 16 bytes for running sums, 12 for each of two forests, and 4 for moves.
    memory = places.new_empty(2 * num_places + (7 * num_places + 2) // 2, dtype=torch.int64)
    tier = places, part, int(is_input), memory
    sizes = SEGMENT_LENGTH, LARGEST_UNCUT, num_places
    kernel.in_one_block("cut_tiers", num_places, *tier, *sizes)
