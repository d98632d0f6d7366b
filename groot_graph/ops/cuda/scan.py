r"""Launches the kernels of :obj:`cuda/segments.cuh`: reduce tier by tier, then finish them."""

import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cuda import plan
from groot_graph.ops.cuda.launch import C_TYPES, MOST_THREADS, Kernels, bind
from groot_graph.ops.dtypes import computing_dtype
from groot_graph.ops.plan import plan_of


class SegmentScan:
    r"""The launches of one scan over the segments of a forest.

    Args:
        operation (str): Whose scan, :obj:`"tree_scan"` or :obj:`"selective_tree_scan"`.
        x (Tensor): What every node puts in, of shape :obj:`[num_nodes, channels]`.
        forest (Forest): The forest, with its plan.
        direction (str): The direction of the scan.
        is_backward (bool): Whether the gradients are wanted.
        num_threads_across (int): How many threads pass a segment of the input.
        at_once (int): How many segments of the input are passed at once; threads stride over more.
        num_states (int, optional): The number of recurrences of a channel. (default: :obj:`1`)
        **macros (str or int): What else the kernels are compiled with.
    """

    def __init__(
        self,
        operation: str,
        x: Tensor,
        forest: Forest,
        direction: str,
        is_backward: bool,
        num_threads_across: int,
        at_once: int,
        num_states: int = 1,
        **macros: "str | int",
    ):
        num_nodes, num_channels = x.shape
        self.operation = operation
        self.tiers = plan.tiers_of(plan_of(forest), num_nodes)
        self.num_columns = num_channels * num_states
        self.num_threads = num_threads_across * at_once
        self.at_once = at_once
        dtype = computing_dtype(x)
        self.macros = macros | {
            "VALUE": C_TYPES[dtype],
            "INPUT": C_TYPES[x.dtype],
            "DIRECTION": direction.upper(),
            "IS_BACKWARD": int(is_backward),
            "MOST_NESTED": plan.MOST_NESTED,
        }
        row_size = _num_arrays(direction, is_backward) * self.num_columns
        self.memory = [
            torch.empty(tier.num_places * row_size, dtype=dtype, device=x.device)
            for tier in self.tiers[1:]
        ]

    def run(self, inputs: tuple, outputs: tuple) -> None:
        r"""Launches all kernels; what those of the input take besides comes as arguments."""
        input_plan, num_nodes = self.tiers[0]
        if num_nodes * self.num_columns == 0:
            return
        kernel = bind(self.operation, **self.macros)
        operands = input_plan, num_nodes, self.at_once, *inputs, *self._rows_of(1)
        above_input = range(1, len(self.tiers))
        if above_input:
            kernel("reduce_input", self.num_threads, *operands)
        # The highest tier is whole trees: nothing is above it.
        for number in above_input[:-1]:
            self._run_tier(kernel, "reduce_tier", number)
        for number in reversed(above_input):
            self._run_tier(kernel, "finish_tier", number)
        kernel("finish_input", self.num_threads, *operands, *outputs)

    def _run_tier(self, kernel: Kernels, name: str, number: int) -> None:
        tier_plan, num_places = self.tiers[number]
        at_once = segments_at_once(num_places, self.num_columns, MOST_THREADS)
        rows = *self._rows_of(number), *self._rows_of(number + 1), self.num_columns
        kernel(name, at_once * self.num_columns, tier_plan, num_places, at_once, *rows)

    def _rows_of(self, number: int) -> tuple[Tensor | None, int]:
        r"""The memory of a tier above the input and its number of rows; none above the highest."""
        if number == len(self.tiers):
            return None, 0
        return self.memory[number - 1], self.tiers[number].num_places


def _num_arrays(direction: str, is_backward: bool) -> int:
    r"""Transitions, and what each recurrence hands up and down where it runs that way. A backward
    pass runs that of the forward pass and its transpose.
    """
    if direction == "both":
        return 5 if is_backward else 3
    return 3 if is_backward else 2


def most_segments(num_nodes: int) -> int:
    r"""A bound on the number of segments of the input."""
    # Those of large trees as for the next tier. Others begin with the first node, behind a large
    # tree, or behind a multiple of SEGMENT_LENGTH places.
    return min(num_nodes, 5 * num_nodes // plan.SEGMENT_LENGTH + 1)


def longest_segment(num_nodes: int) -> int:
    r"""A bound on the number of nodes of a segment of the input."""
    return num_nodes if num_nodes <= plan.LARGEST_UNCUT else 2 * plan.SEGMENT_LENGTH - 1


def segments_at_once(num_segments: int, num_threads_across: int, most_threads: int) -> int:
    r"""How many segments are scanned at once: at least one, at most all."""
    return max(1, min(num_segments, most_threads // max(num_threads_across, 1)))


def power_of_two(size: int) -> int:
    r"""The least power of two that is no smaller."""
    return 1 << max(size - 1, 0).bit_length()
