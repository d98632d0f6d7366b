r"""Launches the walks of :obj:`cuda/segments.cuh`: reduce level by level, then finish them."""

import torch

from groot_graph.checks import DIRECTIONS
from groot_graph.forest import Forest
from groot_graph.ops.cuda.launch import C_TYPES, MOST_THREADS, launch
from groot_graph.ops.cuda.plan import levels_of
from groot_graph.ops.plan import plan_of

# Along the input so few threads that the rows of their walks up are still in the cache for those
# down. The same on every GPU, so that sums come out the same.
MOST_WALKING_THREADS = 2**16


class Walks:
    r"""The launches of one scan along the segments of a forest.

    Args:
        operation (str): Whose walks, :obj:`"tree_scan"` or :obj:`"selective_tree_scan"`.
        forest (Forest): The forest, with its plan.
        width (int): The number of threads that walk along one segment of the input.
        num_columns (int): The number of recurrences, channels times states.
        dtype (torch.dtype): What is computed in.
        direction (str): The direction of the scan.
        is_backward (bool): Whether the gradients are wanted.
        most_walks (int, optional): A bound on the number of segments of the input that are walked
            at a time. (default: as many as :obj:`MOST_WALKING_THREADS` allow)
        **macros: What else the kernels are compiled with.
    """

    def __init__(
        self,
        operation: str,
        forest: Forest,
        width: int,
        num_columns: int,
        dtype: torch.dtype,
        direction: str,
        is_backward: bool,
        most_walks: int = MOST_WALKING_THREADS,
        **macros: "str | int",
    ):
        self.operation = operation
        self.levels = levels_of(plan_of(forest), forest.num_nodes)
        self.width = width
        num_walks = _num_walks(width, forest.num_nodes, MOST_WALKING_THREADS)
        self.num_walks = min(num_walks, most_walks)
        self.num_columns = num_columns
        self.macros = macros | {
            "VALUE": C_TYPES[dtype],
            "DIRECTION": DIRECTIONS.index(direction),
            "IS_BACKWARD": int(is_backward),
        }
        row_size = _num_arrays(direction, is_backward) * num_columns
        self.memory = [
            torch.empty(level.num_places * row_size, dtype=dtype, device=forest.device)
            for level in self.levels[1:]
        ]

    def run(self, inputs: tuple, outputs: tuple) -> None:
        r"""Launches all kernels; what the walks along the input take besides comes as arguments."""
        num_nodes = self.levels[0].num_places
        if num_nodes * self.num_columns == 0:
            return
        num_threads = self.num_walks * self.width
        entry = (self.levels[0].plan, num_nodes, self.num_walks, *inputs, *self._arrays(1))
        numbers = range(1, len(self.levels))
        if numbers:
            self._launch("reduce_input", num_threads, *entry)
        for number in numbers[:-1]:
            self._launch_level("reduce_level", number)
        for number in reversed(numbers):
            self._launch_level("finish_level", number)
        self._launch("finish_input", num_threads, *entry, *outputs)

    def _arrays(self, number: int) -> tuple:
        r"""The memory of a level and its number of rows; none above the highest."""
        if number == len(self.levels):
            return None, 0
        return self.memory[number - 1], self.levels[number].num_places

    def _launch_level(self, kernel: str, number: int) -> None:
        plan, num_places = self.levels[number]
        num_walks = _num_walks(self.num_columns, num_places, MOST_THREADS)
        arrays = (*self._arrays(number), *self._arrays(number + 1), self.num_columns)
        num_threads = num_walks * self.num_columns
        self._launch(kernel, num_threads, plan, num_places, num_walks, *arrays)

    def _launch(self, kernel: str, num_threads: int, *arguments) -> None:
        launch(self.operation, kernel, num_threads, *arguments, **self.macros)


def _num_arrays(direction: str, is_backward: bool) -> int:
    r"""Transitions, and what each recurrence hands up and down where it runs that way. A backward
    pass runs that of the forward pass and its transpose.
    """
    if direction == "both":
        return 5 if is_backward else 3
    return 3 if is_backward else 2


def _num_walks(width: int, num_segments: int, most_threads: int) -> int:
    r"""How many segments are walked at a time: at least one, at most all."""
    return max(1, min(num_segments, most_threads // max(width, 1)))
