"""What a step of the networks of :mod:`experiments.long_range` costs, as they are trained: in one
thread.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch_geometric.data import Batch, Dataset

from benchmarks.harness.memory import taken_alone
from benchmarks.harness.registry import Measurement, cost, row
from benchmarks.harness.timing import in_turns, num_threads, per_node
from experiments.long_range import MODELS, TASKS, batch_size, make_network
from experiments.networks import OURS
from experiments.training import graph_loss, update
from groot_graph.datasets import RingTransfer


def every_row(function: Callable) -> Callable:
    for name, task in TASKS.items():
        function = row(
            "training step on {graphs} graphs, {task}",
            cost(),
            full={"task": name, "distances": task.distances, "graphs": batch_size},
            smoke={"task": name, "distances": task.distances[:1], "graphs": 2},
        )(function)
    return function


@every_row
def step(repeats: int, task: str, distances: tuple[int, ...], graphs: int) -> list[Measurement]:
    """Time of the networks' steps, taken in turns, and their peak memory, at every distance."""
    measured = []
    with num_threads(1):
        for distance in distances:
            sizes = {model: (task, distance, graphs, model) for model in MODELS}
            steps = {model: make_step(*sizes[model]) for model in MODELS}
            steps["ours"] = steps.pop(OURS)
            measured += in_turns(steps, repeats, work=f"distance {distance}")
            peaks = {
                model: [taken_alone(make_warm_step, of, (task, distance, 1, model)).extra_bytes]
                for model, of in sizes.items()
            }
            work = f"distance {distance}, peak extra memory"
            measured.append(Measurement(peaks.pop(OURS), peaks, "B", work))
    return measured


@row(
    "training step of TreeSSMConv on one ring, cost against size",
    cost(),
    full={"sizes": (10**3, 10**4, 10**5)},
    smoke={"sizes": (20, 40)},
)
def step_on_one_ring(repeats: int, sizes: tuple[int, ...]) -> list[Measurement]:
    rings = {size: RingTransfer(size // 2, num_graphs=1) for size in sizes}
    calls = {size: step_of(OURS, "ring", size // 2, ring) for size, ring in rings.items()}
    with num_threads(1):
        return per_node(calls, {size: size for size in sizes}, sizes[0], repeats)


def make_step(task: str, distance: int, graphs: int, model: str) -> Callable[[], Tensor]:
    """One training step on one batch."""
    dataset = TASKS[task].make(distance, graphs)
    dataset.transform = MODELS[model].transform
    return step_of(model, task, distance, dataset)


def step_of(model: str, task: str, distance: int, dataset: Dataset) -> Callable[[], Tensor]:
    network = make_network(MODELS[model], task, distance, dataset)
    optimizer = torch.optim.Adam(network.parameters())
    batch = Batch.from_data_list(list(dataset))
    return partial(update, network, optimizer, partial(graph_loss, network, batch))


def make_warm_step(*sizes) -> Callable[[], Tensor]:
    """One that has gradients and Adam's averages already, which do not count."""
    step = make_step(*sizes)
    step()
    return step
