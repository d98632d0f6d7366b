r"""``python -m benchmarks.long_range``: accuracy against distance, for TreeSSMConv and its peers.

Trains networks of one size on the tasks of :mod:`groot_graph.datasets`, farther and farther apart.
Layers that hear their neighbors get as many of them as the distance has edges, and one more on
trees; layers that hear every node get a fixed number. The learning rate is chosen on the validation
set, for every model from the same ones; what stands in the table is measured on a third set. On
trees the three are drawn apart; of depth 2 there are only 96 different ones, and at depth 3 one in
sixteen of those asked was trained on. On rings and cliques one graph per class is all there is,
every step sees them all, and what is asked is whether a signal gets across. A run ends early where
the validation set is right as a whole, and after a third of its steps where it never was ten points
above chance.

Writes every run to --json as it ends, and goes on there when it is started again; draws --plot and
prints tables in Markdown at the end.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch_geometric.data import Dataset

from benchmarks import peers
from benchmarks.machine import describe
from benchmarks.peers import OURS, Model, Network, at_root, num_parameters
from benchmarks.training import (
    accuracy,
    accuracy_cell,
    chosen,
    complete_cells,
    fit,
    heading,
    make_loader,
)
from groot_graph.datasets import CliquePath, CrossedRing, RingTransfer, TreeNeighborsMatch

batch_size = 32
num_held_out = 500  # graphs to validate on, and as many to test on

# A node asks with as many numbers as there are states.
MODELS = {**peers.MODELS, OURS: peers.ours(state_size=64, expand=1)}


# Tasks. -------------------------------------------------------------------------------------------


class Task(NamedTuple):
    make: Callable[..., Dataset]
    distances: tuple[int, ...]
    num_graphs: int | None  # to train on; None: one per class, as no others are different
    steps: Callable[[int], int]  # for a distance
    num_layers: Callable[[int], int]  # that reach as far as a distance


TASKS = {
    "ring": Task(RingTransfer, (5, 10, 20, 50), None, lambda _: 2000, lambda distance: distance),
    "crossed ring": Task(
        CrossedRing, (5, 10, 20, 50), None, lambda _: 2000, lambda distance: distance
    ),
    "clique path": Task(CliquePath, (5, 10, 20), None, lambda _: 2000, lambda distance: distance),
    "tree": Task(
        TreeNeighborsMatch,
        (2, 3, 4, 5, 6, 7),
        20_000,
        # At depth 6, TreeSSMConv has only just left chance after a third of 3,000 steps.
        lambda depth: 3000 if depth < 6 else 6000,
        # One layer more, as in the paper of the task.
        lambda depth: depth + 1,
    ),
}


def make_sets(task: str, distance: int, seed: int) -> list[Dataset]:
    """The graphs to train on, which are the seed's, and the same held-out ones for every seed; or
    three times the only ones there are.
    """
    make, num_graphs = TASKS[task].make, TASKS[task].num_graphs
    if num_graphs is None:
        return [one_per_class(make(distance)) for _ in range(3)]
    held_out = make(distance, 2 * num_held_out, seed=10**6)
    train = make(distance, num_graphs, seed=seed)
    return [train, held_out[:num_held_out], held_out[num_held_out:]]


def one_per_class(dataset: Dataset) -> Dataset:
    y = dataset.y.tolist()
    return dataset[[y.index(label) for label in range(dataset.num_classes)]]


def make_network(model: Model, task: str, distance: int, dataset: Dataset) -> Network:
    num_layers = TASKS[task].num_layers(distance)
    return peers.make_network(model, dataset[0], dataset.num_classes, num_layers, at_root)


# One run. -----------------------------------------------------------------------------------------


def train_network(
    model: Model, task: str, distance: int, seed: int, steps: int, learning_rate: float, title: str
) -> tuple[Network, Dataset, dict]:
    """The network, the graphs to test it on, and what there is to say of its training."""
    train, validation, test = make_sets(task, distance, seed)
    for dataset in (train, validation, test):
        dataset.transform = model.transform
    torch.manual_seed(seed)
    network = make_network(model, task, distance, train)
    loader = make_loader(train, batch_size)
    fitted = fit(network, loader, validation, steps, learning_rate, train.num_classes, title)
    return network, test, fitted


def run(task: str, distance: int, model: str, seed: int, steps: int, learning_rate: float) -> dict:
    """One training; what is measured, as plain values."""
    start = time.perf_counter()
    title = f"{model}, {task} {distance}, seed {seed}, learning rate {learning_rate:g}"
    network, test, fitted = train_network(
        MODELS[model], task, distance, seed, steps, learning_rate, title
    )
    return {
        "task": task,
        "distance": distance,
        "model": model,
        "seed": seed,
        "steps": steps,
        "learning_rate": learning_rate,
        **fitted,
        "accuracy": accuracy(network, test),
        "num_classes": test.num_classes,
        "num_nodes": test[0].num_nodes,
        "num_layers": len(network.layers),
        "num_parameters": num_parameters(network),
        "seconds": time.perf_counter() - start,
    }


# Results. -----------------------------------------------------------------------------------------


def table(runs: list[dict], task: str) -> str:
    """Right answers on the test set in percent, as Markdown."""
    distances = [
        distance
        for distance in TASKS[task].distances
        if any((run["task"], run["distance"]) == (task, distance) for run in runs)
    ]
    lines = [
        f"| {task}, distance | {' | '.join(map(str, distances))} |",
        f"|{(len(distances) + 1) * ' --- |'}",
    ]
    for model in MODELS:
        cells = [
            accuracy_cell(chosen(runs, task=task, distance=distance, model=model))
            for distance in distances
        ]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    chance = [_chance(runs, task, distance) for distance in distances]
    lines.append(f"| chance | {' | '.join(chance)} |")
    return "\n".join(lines)


def _chance(runs: list[dict], task: str, distance: int) -> str:
    run = next(run for run in runs if (run["task"], run["distance"]) == (task, distance))
    return f"{100 / run['num_classes']:.1f}"


def plot(runs: list[dict], path: Path) -> None:
    """One panel per task: right answers against distance."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    tasks = [task for task in TASKS if any(run["task"] == task for run in runs)]
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(3.2 * len(tasks), 3.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, task in zip(axes[0], tasks, strict=True):
        for model in MODELS:
            _draw_line(ax, runs, task, model)
        chance = {run["distance"]: 100 / run["num_classes"] for run in runs if run["task"] == task}
        distances = sorted(chance)
        ax.plot(distances, [chance[distance] for distance in distances], "k:", label="chance")
        ax.set(title=task, xlabel="depth" if task == "tree" else "distance", ylim=(0, 104))
        ax.set_xticks(distances)
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("right answers, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_line(ax, runs: list[dict], task: str, model: str) -> None:
    found = {
        distance: [
            100 * run["accuracy"] for run in chosen(runs, task=task, distance=distance, model=model)
        ]
        for distance in TASKS[task].distances
    }
    found = {distance: scores for distance, scores in found.items() if scores}
    number = list(MODELS).index(model)
    color = f"C{number}"
    # Wide and below the others, of which some lie on it.
    style = {"linewidth": 7, "alpha": 0.5, "zorder": 1} if model == OURS else {"linewidth": 1.2}
    means = [mean(scores) for scores in found.values()]
    ax.plot(list(found), means, "-" + "os^vDPX"[number], label=model, color=color, **style)
    for distance, scores in found.items():
        ax.plot([distance] * len(scores), scores, ".", color=color, alpha=0.4, markeredgewidth=0)


def report(machine: dict, runs: list[dict]) -> str:
    parts = ["\n".join(heading(machine, runs))]
    parts += [table(runs, task) for task in TASKS if any(run["task"] == task for run in runs)]
    return "\n\n".join(parts)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_range")
    parser.add_argument("--seeds", type=int, default=5, help="runs per task, distance, model (5)")
    parser.add_argument("--task", action="append", choices=TASKS, help="only this one")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one")
    parser.add_argument("--distance", action="append", type=int, help="only this one")
    parser.add_argument("--steps", type=int, help="per run (those of the task)")
    parser.add_argument("--json", type=Path, default=Path("outputs/long_range.json"))
    parser.add_argument("--plot", type=Path, default=Path("outputs/long_range.png"))
    args = parser.parse_args(argv)
    if args.seeds < 1 or (args.steps is not None and args.steps < 1):
        parser.error("--seeds and --steps must be at least 1")
    return args


def cells(args: argparse.Namespace) -> list[dict]:
    return [
        {
            "task": task,
            "distance": distance,
            "model": model,
            "steps": args.steps or TASKS[task].steps(distance),
        }
        for task in args.task or TASKS
        for distance in TASKS[task].distances
        if not args.distance or distance in args.distance
        for model in args.model or MODELS
    ]


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse(argv)
    torch.set_num_threads(1)  # Gains little from more at this size; the same bits everywhere.
    machine = describe("cpu")
    runs = complete_cells(args.json, machine, cells(args), args.seeds, run)
    plot(runs, args.plot)
    print(report(machine, runs))
    return runs


if __name__ == "__main__":
    main()
