r"""What the CUDA operations ask of the CPU: how many kernels they launch, how many operations of
PyTorch they call, and what a launch costs: `python -m benchmarks.launches`.

No GPU is needed: functions that do nothing stand in place of the kernels. What is counted depends
on the sizes of the tensors alone.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness.graphs import grids
from groot_graph import checks
from groot_graph.ops.cuda import launch
from groot_graph.ops.minimum_spanning_forest.cuda import minimum_spanning_forest_cuda
from groot_graph.ops.root_forest.cuda import root_forest_cuda

NUM_GRIDS, SIDE = 128, 56
# About what a kernel of the project takes.
NUM_TENSORS, NUM_NUMBERS = 8, 4
LAUNCHES_PER_SAMPLE, SAMPLES = 1000, 31
MOST_SECONDS = 3e-6


class Counts(NamedTuple):
    r"""Launches of kernels, and calls of PyTorch's operations, views among them."""

    launches: int
    calls: int


# The most of both that a call is to take.
GOALS = {"minimum_spanning_forest": Counts(18, 10), "root_forest": Counts(20, 30)}


class _Calls(TorchDispatchMode):
    r"""Counts what PyTorch runs."""

    number = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.number += 1
        return function(*arguments, **(keywords or {}))


@contextmanager
def kernels_that_do_nothing() -> Iterator[list]:
    r"""Meanwhile kernels are launched on CPU tensors and do nothing; lists them."""
    launched = []
    module = SimpleNamespace(get_function=lambda name: lambda *words: launched.append(name))
    cupy = SimpleNamespace(RawModule=lambda code, options: module)
    launch.load.cache_clear()
    with (
        patch.object(launch, "_cupy", lambda: cupy),
        # PyTorch built for a CPU alone cannot be asked.
        patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
        # A GPU's values are not read.
        patch.object(checks, "values_are_checked", lambda tensor: False),
    ):
        yield launched
    launch.load.cache_clear()


def count(call: Callable[[], object]) -> Counts:
    r"""What one call launches and calls, on the CPU."""
    with kernels_that_do_nothing() as launched, _Calls() as calls:
        call()
    return Counts(len(launched), calls.number)


def calls_of(num_grids: int = NUM_GRIDS, side: int = SIDE) -> dict[str, Callable[[], object]]:
    r"""Every operation on images as one graph."""
    graph = grids(num_grids, side, side)
    edge_mask = torch.ones_like(graph.edge_weight, dtype=torch.bool)
    edge_index, num_nodes = graph.edge_index, graph.num_nodes
    return {
        "minimum_spanning_forest": lambda: minimum_spanning_forest_cuda(
            edge_index, graph.edge_weight, num_nodes
        ),
        "root_forest": lambda: root_forest_cuda(edge_index, edge_mask, num_nodes),
    }


def seconds_of_a_launch() -> float:
    r"""The median time that the library's own code takes for one launch."""
    tensors = [torch.zeros(1) for _ in range(NUM_TENSORS)]
    with kernels_that_do_nothing() as launched:
        kernel = launch.bind("segments")
        samples = []
        for _ in range(SAMPLES):
            launched.clear()
            start = time.thread_time()
            for number in range(LAUNCHES_PER_SAMPLE):
                kernel.strided("kernel", 1000, *tensors, *range(number, number + NUM_NUMBERS))
            samples.append((time.thread_time() - start) / LAUNCHES_PER_SAMPLE)
    return statistics.median(samples)


def main() -> None:
    r"""Prints the counts beside the goals, and the time of a launch."""
    print(f"{NUM_GRIDS} grids of {SIDE}x{SIDE}:\n")
    print("| operation | launches | goal | calls of PyTorch | goal |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, call in calls_of().items():
        found, goal = count(call), GOALS[name]
        print(f"| {name} | {found.launches} | {goal.launches} | {found.calls} | {goal.calls} |")
    print(
        f"\nA launch with {NUM_TENSORS} tensors and {NUM_NUMBERS} numbers takes "
        f"{seconds_of_a_launch() * 1e6:.1f} µs of the library's own code "
        f"(goal: {MOST_SECONDS * 1e6:.0f} µs)"
    )


if __name__ == "__main__":
    main()
