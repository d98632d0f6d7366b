r"""The task of `regions`, by methods that do not learn.

Each has one number that says how colors count, chosen on the validation photographs; the test
photographs are asked once, with the same regions and clicks as the networks.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.photographs import Tasks, height, intersection_over_union, load_photographs, width
from experiments.regions import clicks, tasks_of, tests_per_photograph
from experiments.runner import Experiment
from experiments.tables import markdown
from groot_graph import minimum_spanning_forest
from groot_graph.graphs import grid_edge_index

Method = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def random_walker(colors: np.ndarray, labels: np.ndarray, number: float) -> np.ndarray:
    from skimage.segmentation import random_walker

    return random_walker(colors, labels, beta=number, channel_axis=2) == 1


def watershed(colors: np.ndarray, labels: np.ndarray, number: float) -> np.ndarray:
    """Over the gradient of the colors; the number makes regions compact."""
    from skimage.filters import sobel
    from skimage.segmentation import watershed

    gradient = np.sqrt((sobel(colors, axis=(0, 1)) ** 2).sum(axis=2))
    return watershed(gradient, labels, compactness=number) == 1


def geodesic_distance(colors: np.ndarray, labels: np.ndarray, number: float) -> np.ndarray:
    """To the nearest click, a step as long as one plus so many times the change of color."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    source, target = grid_edge_index(height, width).numpy()
    length = 1 + number * change_of_color(colors)
    graph = coo_matrix((length, (source, target)), shape=(labels.size, labels.size))
    inside, outside = (
        dijkstra(graph, False, np.flatnonzero(labels.flat == label), min_only=True)
        for label in (1, 2)
    )
    return (inside < outside).reshape(labels.shape)


def forest_cut(colors: np.ndarray, labels: np.ndarray, number: float) -> np.ndarray:
    """The minimum spanning forest whose trees hold the clicks: all clicks are joined by one node
    at no cost, and what then hangs below a click is its own. The number is how far colors are
    blurred first, in nodes.
    """
    nodes = np.flatnonzero(labels.flat > 0)
    edges = grid_edge_index(height, width)
    root = torch.full((len(nodes),), labels.size)
    edge_index = torch.cat([edges, torch.stack([root, torch.from_numpy(nodes)])], dim=1)
    weight = torch.from_numpy(change_of_color(blurred(colors, number)))
    weight = torch.cat([weight, weight.new_full((len(nodes),), -1.0)])
    mask = minimum_spanning_forest(edge_index, weight, labels.size + 1)[: edges.size(1)]
    return hangs_below(edges[:, mask], labels)


def hangs_below(edge_index: Tensor, labels: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    source, target = edge_index.numpy()
    graph = coo_matrix((np.ones(len(source)), (source, target)), shape=(labels.size, labels.size))
    _, tree = connected_components(graph, directed=False)
    return np.isin(tree, tree[labels.flat == 1]).reshape(labels.shape)


def blurred(colors: np.ndarray, deviation: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(colors, (deviation, deviation, 0))


def change_of_color(colors: np.ndarray) -> np.ndarray:
    """Along every edge of the grid."""
    source, target = grid_edge_index(height, width).numpy()
    nodes = colors.reshape(-1, 3)
    return np.linalg.norm(nodes[source] - nodes[target], axis=1)


# How each is done, and what its number is chosen from.
PEERS: dict[str, tuple[Method, tuple[float, ...]]] = {
    "random walker": (random_walker, (10, 30, 100, 300, 1000, 3000)),
    "watershed": (watershed, (0, 1e-4, 1e-3, 1e-2, 1e-1)),
    "geodesic distance": (geodesic_distance, (0, 10, 30, 100, 300, 1000, 3000)),
    "minimum spanning forest cut": (forest_cut, (0, 0.5, 1, 1.5, 2)),
}


def score(method: Method, number: float, tasks: Tasks, title: str) -> float:
    """The mean intersection over union."""
    found = [
        method(colors.permute(1, 2, 0).double().numpy(), labels_of(clicked), number)
        for colors, clicked in tqdm(
            zip(tasks.colors, tasks.clicks, strict=True), title, len(tasks.colors), leave=False
        )
    ]
    found = torch.from_numpy(np.stack(found))
    return intersection_over_union(found, tasks.is_inside).mean().item()


def labels_of(clicked: Tensor) -> np.ndarray:
    """1 where clicked inside, 2 where outside, 0 elsewhere."""
    return (clicked[0] + 2 * clicked[1]).long().numpy()


def run(peer: str, data: Path) -> dict:
    method, numbers = PEERS[peer]
    start = time.perf_counter()
    validation = tasks_of(load_photographs(data, "val"), 3, 1)
    scores = {number: score(method, number, validation, peer) for number in numbers}
    best = max(scores, key=lambda number: scores[number])
    test = load_photographs(data, "test")
    found = {
        f"iou_{count}": score(method, best, tasks_of(test, count, tests_per_photograph), peer)
        for count in clicks
    }
    seconds = time.perf_counter() - start
    return {"number": best, "num_parameters": 0, **found, "seconds": seconds}


def table(runs: list[dict]) -> str:
    rows = [
        [run["peer"], *(f"{100 * run[f'iou_{count}']:.1f}" for count in clicks), run["number"]]
        for run in runs
    ]
    header = "method", *(f"{count} + {count} clicks" for count in clicks), "its number"
    return f"\nintersection over union, %\n\n{markdown(header, rows)}"


EXPERIMENT = Experiment(
    name="regions_peers",
    about=__doc__,
    cells=[{"peer": peer} for peer in PEERS],
    settings={},
    run=run,
    table=table,
    seeds=0,
    data="the photographs of BSDS500, see experiments/photographs.py",
)
