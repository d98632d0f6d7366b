r"""The plan of a forest for the CUDA scans: it is cut into segments of bounded length by
:obj:`cuda/segments.cu`.

The segments of large trees are the nodes of a smaller forest, which is cut in turn, until few nodes
are left. What a tier holds is the device's business; its size is known from the number of nodes, so
nothing waits for the GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from groot_graph.ops.cuda.launch import Kernels, bind

# A subtree of more nodes is large; a segment has fewer than twice as many.
SEGMENT_LENGTH = 64
# A tree of so few nodes altogether is not cut.
LARGEST_UNCUT = 128
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


class Places(NamedTuple):
    r"""A forest by the places of an order in which a subtree is a range that begins with its root:
    the node at every place, the place of its parent, its own at a root, and the place behind its
    subtree.
    """

    node_at: Tensor
    above: Tensor
    end: Tensor


def plan_size(num_nodes: int) -> int:
    r"""A bound on the size of the plan of a forest that needs no loop over its tiers."""
    return 5 * num_nodes + 64


def tiers_of(plan: Tensor, num_nodes: int) -> list[Tier]:
    r"""The plan by tiers, the forest of the input first."""
    tiers, begin = [], 0
    for num_places in _tier_sizes(num_nodes):
        size = 4 * num_places + 3
        tiers.append(Tier(plan[begin : begin + size], num_places))
        begin += size
    return tiers


def _tier_sizes(num_nodes: int) -> list[int]:
    sizes = [num_nodes]
    while sizes[-1] > LARGEST_UNCUT:
        # Of the segments of large trees at most one in SEGMENT_LENGTH nodes starts with a chain,
        # one behind a chain, and one behind a multiple of SEGMENT_LENGTH places.
        sizes.append(3 * sizes[-1] // SEGMENT_LENGTH)
    return sizes


def cut(node_at: Tensor, above: Tensor, end: Tensor) -> Tensor:
    r"""The plan of a forest that is given by :class:`Places`, every largest child's subtree the
    last of its parent's.
    """
    kernel = bind("segments")
    num_nodes = node_at.size(0)
    plan = torch.zeros(plan_size(num_nodes), dtype=torch.int32, device=node_at.device)
    tiers = tiers_of(plan, num_nodes)
    places, count = Places(node_at, above, end), None
    for tier, higher in zip(tiers, tiers[1:], strict=False):
        linked = Places(*plan.new_empty(3, higher.num_places))
        _cut_tier(kernel, tier, places, count, SEGMENT_LENGTH, linked)
        # How many segments there are, only the device knows.
        count = tier.plan[-1:]
        places = _heaviest_last(kernel, linked, count)
    # On the highest tier no tree is large.
    highest = tiers[-1]
    _cut_tier(kernel, highest, places, count, highest.num_places + 1, (None, None, None))
    return plan


def _heaviest_last(kernel: Kernels, places: Places, count: Tensor) -> Places:
    r"""The forest in an order in which every largest child's subtree is its parent's last."""
    num_places = places.node_at.size(0)
    heaviest = torch.zeros(num_places, dtype=torch.int64, device=count.device)
    move = torch.zeros(num_places + 1, dtype=torch.int32, device=count.device)
    known = places.above, places.end, count, heaviest
    kernel.strided("find_heaviest", num_places, *known, num_places)
    kernel.strided("move_heaviest_last", num_places, *known, move, num_places)
    moved = move.cumsum(0, dtype=torch.int32)
    reordered = Places(*count.new_empty(3, num_places))
    kernel.strided("reorder", num_places, *places, count, moved, *reordered, num_places)
    return reordered


def _cut_tier(
    kernel: Kernels, tier: Tier, places: Places, count: Tensor | None, most: int, linked: tuple
) -> None:
    r"""Cuts the trees of more than `most` nodes; `linked` is room for their segments as nodes."""
    size = tier.num_places
    row, flags, start, linked_as, counts = tier.plan.split([size, size, size + 1, size, 2])
    # A chain between the pieces of another ends before the last place, so `size` are enough.
    starts = torch.zeros(size, dtype=torch.int64, device=row.device)
    ended_at = torch.zeros(size, dtype=torch.int32, device=row.device)
    marks = row, flags, starts, ended_at
    kernel.strided("mark_segments", size, *places, count, *marks, most, SEGMENT_LENGTH, size)
    segments = starts.cumsum(0)
    listed = starts, segments, ended_at, start, linked_as, counts
    above = places.above, places.end, count
    kernel.strided("list_segments", size, *above, *listed, *linked, most, size)
