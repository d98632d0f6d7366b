r"""``python -m benchmarks.long_range_cost``: what a step of benchmarks.long_range costs.

Time and peak extra memory of a training step on 32 graphs, the networks in turns; and the time per
node of a step of ours on rings of a thousand nodes and more. Writes what it has to --json as it
goes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch_geometric.data import Batch
from tqdm import tqdm

from benchmarks.long_range import MODELS, TASKS, batch_size, make_network
from benchmarks.machine import describe
from benchmarks.measure import in_fresh_process, interleave, peak_extra_memory
from benchmarks.peers import OURS
from benchmarks.report import machine_lines
from benchmarks.runs import write
from benchmarks.training import train_step
from groot_graph.datasets import RingTransfer


def make_step(task: str, distance: int, model: str) -> Callable[[], Tensor]:
    """One training step on one batch."""
    dataset = TASKS[task].make(distance, batch_size)
    dataset.transform = MODELS[model].transform
    network = make_network(MODELS[model], task, distance, dataset)
    optimizer = torch.optim.Adam(network.parameters())
    batch = Batch.from_data_list(list(dataset))
    return partial(train_step, network, optimizer, batch)


def measure_cost(task: str, distance: int, models: list[str], repeats: int) -> list[dict]:
    """Time of the models' steps, taken in turns, and their peak memory."""
    steps = {model: make_step(task, distance, model) for model in models}
    seconds = interleave(steps, repeats)
    return [
        {
            "task": task,
            "distance": distance,
            "model": model,
            "seconds": median(seconds[model]),
            "bytes": in_fresh_process(_peak_memory, task, distance, model),
        }
        for model in models
    ]


def _peak_memory(task: str, distance: int, model: str) -> int:
    torch.set_num_threads(1)
    step = make_step(task, distance, model)
    step()
    return peak_extra_memory(step)


def measure_growth(num_nodes: int, repeats: int) -> dict:
    """Time of a step of our network on one ring of so many nodes."""
    dataset = RingTransfer(num_nodes // 2, num_graphs=1)
    network = make_network(MODELS[OURS], "ring", num_nodes // 2, dataset)
    optimizer = torch.optim.Adam(network.parameters())
    step = partial(train_step, network, optimizer, Batch.from_data_list([dataset[0]]))
    return {"num_nodes": num_nodes, "seconds": median(interleave({OURS: step}, repeats)[OURS])}


def cost_table(costs: list[dict], task: str) -> str:
    """Milliseconds and megabytes of a step, as Markdown."""
    found = [cost for cost in costs if cost["task"] == task]
    distances = sorted({cost["distance"] for cost in found})
    lines = [
        f"| step on {task}, distance | {' | '.join(map(str, distances))} |",
        f"|{(len(distances) + 1) * ' --- |'}",
    ]
    for model in MODELS:
        cells = [
            f"{1e3 * cost['seconds']:.0f} ms, {cost['bytes'] / 1e6:.0f} MB"
            for distance in distances
            for cost in found
            if (cost["distance"], cost["model"]) == (distance, model)
        ]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def growth_table(growth: list[dict]) -> str:
    """Microseconds of a step per node, as Markdown."""
    numbers = [f"{entry['num_nodes']:,}" for entry in growth]
    per_node = [f"{1e6 * entry['seconds'] / entry['num_nodes']:.1f} µs" for entry in growth]
    return "\n".join(
        [
            f"| {OURS}, nodes of a ring | {' | '.join(numbers)} |",
            f"|{(len(growth) + 1) * ' --- |'}",
            f"| step, per node | {' | '.join(per_node)} |",
        ]
    )


def report(machine: dict, costs: list[dict], growth: list[dict]) -> str:
    tasks = [task for task in TASKS if any(cost["task"] == task for cost in costs)]
    parts = ["\n".join(machine_lines(machine))]
    parts += [cost_table(costs, task) for task in tasks]
    return "\n\n".join([*parts, growth_table(growth)])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_range_cost")
    parser.add_argument("--task", action="append", choices=TASKS, help="only this one")
    parser.add_argument("--distance", action="append", type=int, help="only this one")
    parser.add_argument("--nodes", type=int, default=10**5, help="of the largest ring (100,000)")
    parser.add_argument("--repeats", type=int, default=7, help="of every step (7)")
    parser.add_argument("--json", type=Path, help="write what is measured here")
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.nodes < 1000:
        parser.error("--repeats must be at least 1, --nodes at least 1000")
    return args


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    torch.set_num_threads(1)  # As the networks are trained.
    machine = describe("cpu")
    wanted = [
        (task, distance)
        for task in args.task or TASKS
        for distance in TASKS[task].distances
        if not args.distance or distance in args.distance
    ]
    results = {"machine": machine, "costs": [], "growth": []}
    for task, distance in tqdm(wanted, desc="steps"):
        results["costs"] += measure_cost(task, distance, list(MODELS), args.repeats)
        if args.json is not None:
            write(args.json, results)
    sizes = [10**digits for digits in range(3, len(str(args.nodes)))]
    for size in tqdm(sizes, desc="rings"):
        results["growth"].append(measure_growth(size, args.repeats))
        if args.json is not None:
            write(args.json, results)
    print(report(**results))
    return results


if __name__ == "__main__":
    main()
