r"""Launches the kernels of :obj:`cuda/segments.cuh`: reduce tier by tier, then finish them."""

import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cuda.launch import C_TYPES, MOST_THREADS, Kernels, bind
from groot_graph.ops.cuda.plan import MOST_NESTED, tiers_of
from groot_graph.ops.dtypes import computing_dtype
from groot_graph.ops.plan import plan_of

# On the input so few threads that the rows of their passes up are still in the cache for those
# down. The same on every GPU, so that sums come out the same.
MOST_INPUT_THREADS = 2**16


class SegmentScan:
    r"""The launches of one scan over the segments of a forest.

    Args:
        operation (str): Whose scan, :obj:`"tree_scan"` or :obj:`"selective_tree_scan"`.
        x (Tensor): What every node puts in, of shape :obj:`[num_nodes, channels]`.
        forest (Forest): The forest, with its plan.
        direction (str): The direction of the scan.
        is_backward (bool): Whether the gradients are wanted.
        num_states (int, optional): The number of recurrences of a channel. (default: :obj:`1`)
        group_size (int, optional): The number of channels is filled up to a multiple of it.
            (default: :obj:`1`)
        most_at_once (int, optional): A bound on the number of segments of the input that are
            scanned at once. (default: as many as :obj:`MOST_INPUT_THREADS` allow)
        **macros (str or int): What else the kernels are compiled with.
    """

    def __init__(
        self,
        operation: str,
        x: Tensor,
        forest: Forest,
        direction: str,
        is_backward: bool,
        num_states: int = 1,
        group_size: int = 1,
        most_at_once: int = MOST_INPUT_THREADS,
        **macros: "str | int",
    ):
        num_nodes, num_channels = x.shape
        self.operation = operation
        self.tiers = tiers_of(plan_of(forest), num_nodes)
        self.num_columns = num_channels * num_states
        self.num_threads_across = -(-num_channels // group_size) * group_size
        at_once = _segments_at_once(num_nodes, self.num_threads_across, MOST_INPUT_THREADS)
        self.at_once = min(at_once, most_at_once)
        dtype = computing_dtype(x)
        self.macros = macros | {
            "VALUE": C_TYPES[dtype],
            "INPUT": C_TYPES[x.dtype],
            "DIRECTION": direction.upper(),
            "IS_BACKWARD": int(is_backward),
            "MOST_NESTED": MOST_NESTED,
        }
        row_size = _num_arrays(direction, is_backward) * self.num_columns
        self.memory = [
            torch.empty(tier.num_places * row_size, dtype=dtype, device=x.device)
            for tier in self.tiers[1:]
        ]

    def run(self, inputs: tuple, outputs: tuple) -> None:
        r"""Launches all kernels; what those of the input take besides comes as arguments."""
        plan, num_nodes = self.tiers[0]
        if num_nodes * self.num_columns == 0:
            return
        kernel = bind(self.operation, **self.macros)
        num_threads = self.at_once * self.num_threads_across
        operands = plan, num_nodes, self.at_once, *inputs, *self._rows_of(1)
        above_input = range(1, len(self.tiers))
        if above_input:
            kernel("reduce_input", num_threads, *operands)
        # The highest tier is whole trees: nothing is above it.
        for number in above_input[:-1]:
            self._run_tier(kernel, "reduce_tier", number)
        for number in reversed(above_input):
            self._run_tier(kernel, "finish_tier", number)
        kernel("finish_input", num_threads, *operands, *outputs)

    def _run_tier(self, kernel: Kernels, name: str, number: int) -> None:
        plan, num_places = self.tiers[number]
        at_once = _segments_at_once(num_places, self.num_columns, MOST_THREADS)
        rows = *self._rows_of(number), *self._rows_of(number + 1), self.num_columns
        kernel(name, at_once * self.num_columns, plan, num_places, at_once, *rows)

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


def _segments_at_once(num_segments: int, num_threads_across: int, most_threads: int) -> int:
    r"""How many segments are scanned at once: at least one, at most all."""
    return max(1, min(num_segments, most_threads // max(num_threads_across, 1)))
