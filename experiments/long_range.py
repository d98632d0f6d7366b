r"""Accuracy against distance, for TreeSSMConv and its peers.

Trains networks of one size on the tasks of :mod:`groot_graph.datasets`, farther and farther apart.
Layers that hear their neighbors get as many of them as the distance has edges, and one more on
trees; layers that hear every node get a fixed number. The learning rate is chosen on the validation
set, for every model from the same ones; what stands in the table is measured on a third set. On
trees the three are drawn apart; of depth 2 there are only 96 different ones, and at depth 3 one in
sixteen of those asked was trained on. On rings and cliques one graph per class is all there is,
every step sees them all, and what is asked is whether a signal gets across. A run ends early where
the validation set is right as a whole, and after a third of its steps where it never was ten points
above chance.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch_geometric.data import Dataset

from experiments import networks
from experiments.networks import OURS, Model, Network, at_root
from experiments.runner import Experiment, chosen
from experiments.tables import accuracy_cell, figure, markdown, percents, summary
from experiments.training import (
    accuracy,
    fit_to_graphs,
    learning_rates,
    make_loader,
    num_parameters,
)
from groot_graph.datasets import CliquePath, CrossedRing, RingTransfer, TreeNeighborsMatch

batch_size = 32
num_held_out = 500  # graphs to validate on, and as many to test on

# A node asks with as many numbers as there are states.
MODELS = {**networks.MODELS, OURS: networks.ours(state_size=64, expand=1)}


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
    return networks.make_network(model, dataset[0], dataset.num_classes, num_layers, at_root)


# Runs. --------------------------------------------------------------------------------------------


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
    fitted = fit_to_graphs(
        network, loader, validation, steps, learning_rate, train.num_classes, title
    )
    return network, test, fitted


def run(task: str, distance: int, model: str, seed: int, steps: int, learning_rate: float) -> dict:
    """One training; what is measured, as plain values."""
    start = time.perf_counter()
    title = f"{model}, {task} {distance}, seed {seed}, learning rate {learning_rate:g}"
    network, test, fitted = train_network(
        MODELS[model], task, distance, seed, steps, learning_rate, title
    )
    return {
        **fitted,
        "accuracy": accuracy(network, test),
        "num_classes": test.num_classes,
        "num_nodes": test[0].num_nodes,
        "num_layers": len(network.layers),
        "num_parameters": num_parameters(network),
        "seconds": time.perf_counter() - start,
    }


# Results. -----------------------------------------------------------------------------------------


def table(runs: list[dict]) -> str:
    tasks = [task for task in TASKS if any(run["task"] == task for run in runs)]
    return "\n\n".join([summary(runs), *(task_table(runs, task) for task in tasks)])


def task_table(runs: list[dict], task: str) -> str:
    """Right answers on the test set in percent."""
    chance = chances(runs, task)
    rows = [
        [
            model,
            *(
                accuracy_cell(chosen(runs, task=task, distance=distance, model=model))
                for distance in chance
            ),
        ]
        for model in MODELS
    ]
    rows.append(["chance", *(f"{percent:.1f}" for percent in chance.values())])
    return markdown([f"{task}, distance", *chance], rows)


def chances(runs: list[dict], task: str) -> dict[int, float]:
    """The percentage that is right by chance, at every distance that there are runs of."""
    found = {run["distance"]: 100 / run["num_classes"] for run in runs if run["task"] == task}
    return dict(sorted(found.items()))


def plot(runs: list[dict], path: Path) -> None:
    """One panel per task: right answers against distance."""
    tasks = [task for task in TASKS if any(run["task"] == task for run in runs)]
    with figure(path, 1, len(tasks), figsize=(3.2 * len(tasks), 3.4), sharey=True) as (axes,):
        for ax, task in zip(axes, tasks, strict=True):
            for model in MODELS:
                _draw_line(ax, runs, task, model)
            chance = chances(runs, task)
            ax.plot(list(chance), list(chance.values()), "k:", label="chance")
            ax.set(title=task, xlabel="depth" if task == "tree" else "distance", ylim=(0, 104))
            ax.set_xticks(list(chance))
            ax.grid(alpha=0.3)
        axes[0].set_ylabel("right answers, %")
        lines = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(*lines, loc="outside lower center", ncols=8)


def _draw_line(ax, runs: list[dict], task: str, model: str) -> None:
    found = {
        distance: percents(chosen(runs, task=task, distance=distance, model=model))
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


EXPERIMENT = Experiment(
    name="long_range",
    about=__doc__,
    cells=[
        {"task": task, "distance": distance, "model": model}
        for task in TASKS
        for distance in TASKS[task].distances
        for model in MODELS
    ],
    settings={"steps": lambda cell: TASKS[cell["task"]].steps(cell["distance"])},
    run=run,
    table=table,
    plot=plot,
    learning_rates=learning_rates,
    parameters_within=0.05,
)
