r"""Cuts a forest into segments of bounded length for the CUDA scans, with :obj:`cuda/segments.cu`.

The segments of large trees are the nodes of a smaller forest, which is cut in turn, until few nodes
are left. What a level holds is the device's business; its size is known from the number of nodes,
so nothing waits for the GPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from groot_graph.ops.cuda.launch import MOST_THREADS, launch

# A segment has fewer than twice as many nodes; a subtree of more nodes is large.
MOST = 64
# A tree of so few nodes altogether is not cut. The depth in cuda/segments.cuh allows for 1,024.
FEW = 128


class Level(NamedTuple):
    r"""One forest of the hierarchy.

    Attributes:
        plan: What the kernels read: row and flags by place, the segments' starts and their numbers
            in the next level, and the numbers of segments and of nodes of the next level.
        num_places: The bound on the number of nodes.
    """

    plan: Tensor
    num_places: int


def plan_size(num_nodes: int) -> int:
    r"""A bound on the size of the plan of a forest that needs no loop over its levels."""
    return 5 * num_nodes + 64


def levels_of(plan: Tensor, num_nodes: int) -> list[Level]:
    r"""The plan by levels, the forest of the input first."""
    levels, begin = [], 0
    for num_places in _level_sizes(num_nodes):
        size = 4 * num_places + 3
        levels.append(Level(plan[begin : begin + size], num_places))
        begin += size
    return levels


def _level_sizes(num_nodes: int) -> list[int]:
    sizes = [num_nodes]
    while sizes[-1] > FEW:
        # Of the segments of large trees at most one in MOST nodes starts with a chain, one behind
        # a chain, and one behind a multiple of MOST places.
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
    forest, count = (node_at, above, end), None
    for level, higher in zip(levels, [*levels[1:], None], strict=True):
        if count is not None:
            forest = _heaviest_last(*forest, count)
        # On the highest level no tree is large.
        most = level.num_places + 1 if higher is None else MOST
        linked = _linked_forest(plan, higher)
        _cut_level(level, forest, count, most, linked)
        forest, count = linked, level.plan[-1:]
    return plan


def _linked_forest(plan: Tensor, level: Level | None) -> tuple:
    r"""Room for the nodes of the level above."""
    if level is None:
        return None, None, None
    return tuple(plan.new_empty(3, level.num_places))


def _heaviest_last(node_at: Tensor, above: Tensor, end: Tensor, count: Tensor) -> tuple:
    num_places = node_at.size(0)
    heaviest = torch.zeros(num_places, dtype=torch.int64, device=count.device)
    move = torch.zeros(num_places + 1, dtype=torch.int32, device=count.device)
    _launch("find_heaviest", num_places, above, end, count, heaviest, num_places)
    _launch("move_heaviest_last", num_places, above, end, count, heaviest, move, num_places)
    moved = move.cumsum(0, dtype=torch.int32)
    reordered = tuple(node_at.new_empty(3, num_places))
    _launch("reorder", num_places, node_at, above, end, count, moved, *reordered, num_places)
    return reordered


def _cut_level(level: Level, forest: tuple, count, most: int, linked: tuple) -> None:
    size = level.num_places
    row, flags, start, linked_as, counts = level.plan.split([size, size, size + 1, size, 2])
    # A chain between the pieces of another ends before the last place, so `size` are enough.
    starts = torch.zeros(size, dtype=torch.int64, device=row.device)
    ended_at = torch.zeros(size, dtype=torch.int32, device=row.device)
    marks = starts, ended_at
    _launch("mark_segments", size, *forest, count, row, flags, *marks, most, MOST, size)
    segments = starts.cumsum(0)
    _, above, end = forest
    arguments = (above, end, count, starts, segments, ended_at, start, linked_as, counts)
    _launch("list_segments", size, *arguments, *linked, most, size)


def _launch(kernel: str, num_threads: int, *arguments) -> None:
    launch("segments", kernel, min(num_threads, MOST_THREADS), *arguments)
