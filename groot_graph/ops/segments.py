r"""Cuts a forest into segments of bounded length for the CUDA scans, with :obj:`cuda/segments.cu`.

The segments of large trees are the nodes of a smaller forest, which is cut in turn, until few nodes
are left. What a level holds is the device's business; its size is known from the number of nodes,
so nothing waits for the GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from groot_graph.ops.kernels import launch

# A segment has fewer than twice as many slots; a subtree of more nodes is large.
MOST = 128
# A forest of so few nodes is not cut: a whole tree is a segment.
FEW = 512


class Level(NamedTuple):
    r"""One forest of the hierarchy.

    Attributes:
        plan: What the kernels read: row and flags by slot, the segments' starts, and two counts.
        num_slots: The bound on the number of nodes.
    """

    plan: Tensor
    num_slots: int


def plan_size(num_nodes: int) -> int:
    r"""A bound on the size of the plan of a forest that needs no loop over its levels."""
    return 4 * num_nodes + 64


def levels_of(plan: Tensor, num_nodes: int) -> list[Level]:
    r"""The plan by levels, the forest of the input first."""
    levels, begin = [], 0
    for num_slots in _level_sizes(num_nodes):
        size = 3 * num_slots + 3
        levels.append(Level(plan[begin : begin + size], num_slots))
        begin += size
    return levels


def _level_sizes(num_nodes: int) -> list[int]:
    sizes = [num_nodes]
    while sizes[-1] > FEW:
        # Of the segments of large trees at most one in MOST nodes starts with a chain, one behind
        # a large subtree, and one at a multiple of MOST slots.
        sizes.append(3 * sizes[-1] // MOST)
    return sizes


def cut(node_at: Tensor, above: Tensor, end: Tensor) -> Tensor:
    r"""The plan of a forest.

    Args:
        node_at (IntTensor): The node at every place of an order in which a subtree is a range that
            begins with its root and ends with its largest child's subtree.
        above (IntTensor): The place of every place's parent, its own at a root.
        end (IntTensor): The place behind every place's subtree.
    """
    num_nodes = node_at.size(0)
    plan = torch.zeros(plan_size(num_nodes), dtype=torch.int32, device=node_at.device)
    levels = levels_of(plan, num_nodes)
    count = None
    for level, higher in zip(levels, [*levels[1:], None], strict=True):
        if count is not None:
            node_at, above, end = _heaviest_last(node_at, above, end, count)
        most = MOST if higher is not None else level.num_slots + 1
        node_at, above, end = _cut_level(level, node_at, above, end, count, most, higher)
        count = level.plan[-1:]
    return plan


def _heaviest_last(node_at: Tensor, above: Tensor, end: Tensor, count: Tensor):
    num_slots = node_at.size(0)
    heaviest = torch.zeros(num_slots, dtype=torch.int64, device=count.device)
    move = torch.zeros(num_slots + 1, dtype=torch.int32, device=count.device)
    _launch("find_heaviest", num_slots, above, end, count, heaviest, num_slots)
    _launch("move_heaviest_last", num_slots, above, end, count, heaviest, move, num_slots)
    moved = move.cumsum(0, dtype=torch.int32)
    reordered = tuple(torch.empty_like(values) for values in (node_at, above, end))
    _launch("reorder", num_slots, node_at, above, end, count, moved, *reordered, num_slots)
    return reordered


def _cut_level(level, node_at, above, end, count, most, higher):
    num_slots = level.num_slots
    row, flags, start, counts = level.plan.split([num_slots, num_slots, num_slots + 1, 2])
    marks = torch.zeros(3, num_slots + 1, dtype=torch.int32, device=row.device)
    difference, is_start, is_linked = marks
    _launch("mark_chains", max(num_slots, 1), above, end, count, difference, most, num_slots)
    key = difference[:num_slots].cumsum(0, dtype=torch.uint8)
    key, place_at = key.sort(stable=True)
    forest = (node_at, above, end, count)
    _launch("fill_slots", num_slots, *forest, place_at, row, flags, is_start, most, num_slots)
    num_started = is_start.cumsum(0, dtype=torch.int32)
    segments = (key, place_at, is_start, num_started, count, start, counts, is_linked, num_slots)
    _launch("list_segments", num_slots, *segments)
    if higher is None:
        return None, None, None

    num_linked = is_linked.cumsum(0, dtype=torch.int32)
    linked = tuple(row.new_empty(higher.num_slots) for _ in range(3))
    arguments = (key, place_at, above, end, is_start, num_started, start, num_linked, count)
    _launch("link_segments", num_slots, *arguments, *linked, most, num_slots)
    return linked


def _launch(kernel: str, num_threads: int, *arguments) -> None:
    launch("segments", kernel, num_threads, *arguments)
