r"""python examples/clusters.py

Draws the spanning tree of points, the clusters that are cut out of it by single linkage and by
HDBSCAN, and the hierarchy of the first; and a photograph as superpixels, with the tree over them.

    POINTS             a CSV file of two columns (default: groups that are drawn at random)
    --image IMAGE      an image file, or a photograph that ships with scikit-image: astronaut,
                       chelsea, coffee, rocket, ... (default: coffee)

Writes outputs/clusters.png and outputs/superpixels.png.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from affinity_map import load_image
from matplotlib.figure import Figure
from sklearn.datasets import make_blobs, make_moons
from torch import Tensor
from torch_geometric.data import Data

from groot_graph.cluster import HDBSCAN, SingleLinkage
from groot_graph.nn import TreeTopology
from groot_graph.transforms import PointsToGraph, SuperpixelsToGraph
from groot_graph.visualization import plot_clusters, plot_dendrogram

from common import UserError, save_figure, told_errors

# The settings.
n_clusters = 5  # of single linkage
min_cluster_size = 25  # of HDBSCAN
num_segments = 250  # superpixels
longest_side = 480  # images are shrunk to this


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draws clusters of points, and superpixels.")
    parser.add_argument("points", nargs="?", type=Path, metavar="POINTS")
    parser.add_argument("--image", default="coffee", metavar="IMAGE")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    return parser.parse_args(argv)


def load_points(path: Path | None) -> Tensor:
    """Of a file, or two moons, three groups of different density, and noise."""
    if path is None:
        moons, _ = make_moons(300, noise=0.06, random_state=0)
        places = [[4, 0.2], [4.9, 0.9], [2.9, 2.6]]
        groups, _ = make_blobs(300, centers=places, cluster_std=[0.1, 0.2, 0.35], random_state=0)
        noise = np.random.default_rng(0).uniform([-1.5, -1.2], [6, 3.8], (60, 2))
        return torch.from_numpy(np.concatenate([moons, groups, noise]))
    try:
        points = PointsToGraph(k=1)(path).pos
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if points.size(1) != 2 or len(points) < min_cluster_size:
        raise UserError(
            f"{path}: {min_cluster_size} or more points of two columns are drawn, got "
            f"{list(points.shape)}"
        )
    return points


def draw_points(path: Path, points: Tensor, single: SingleLinkage, dense: HDBSCAN) -> None:
    figure = Figure((12, 8), layout="constrained")
    (tree, cut), (density, hierarchy) = figure.subplots(2, 2)
    plot_clusters(points, np.zeros(len(points), dtype=int), single.edge_index_, ax=tree)
    tree.set_title("Euclidean spanning tree")
    for ax, model, name in ((cut, single, "SingleLinkage"), (density, dense, "HDBSCAN")):
        plot_clusters(points, model.labels_, ax=ax)
        num_noise = int((model.labels_ < 0).sum())
        ax.set_title(f"{name}: {model.labels_.max() + 1} clusters, {num_noise} points of noise")
    threshold = single.linkage_matrix_[-n_clusters : -n_clusters + 2, 2].mean()
    plot_dendrogram(single.linkage_matrix_, threshold=threshold, ax=hierarchy)
    hierarchy.set_title("hierarchy of SingleLinkage, and its cut")
    save_figure(figure, path)


def draw_superpixels(path: Path, pixels: np.ndarray, graph: Data, tree: Tensor) -> None:
    height, width = pixels.shape[:2]
    figure = Figure((13, 4.35 * height / width + 0.4), layout="constrained")
    photo, painted, over = figure.subplots(1, 3)
    photo.imshow(pixels)
    photo.set_title("photograph")
    colors = graph.x[graph.segment_index].view(graph.height, graph.width, -1).numpy()
    painted.imshow(colors)
    painted.set_title(f"{graph.num_nodes} superpixels")
    over.imshow(colors, alpha=0.5)
    plot_clusters(graph.pos, np.ones(graph.num_nodes, dtype=int), tree, ax=over)
    over.set_title("their spanning tree, by color")
    for ax in (photo, painted):
        ax.set_axis_off()
    save_figure(figure, path)


@told_errors()
def main(argv: list[str] | None = None) -> tuple[np.ndarray, np.ndarray, Data]:
    args = parse_arguments(argv)
    points, image = load_points(args.points), load_image(args.image)
    single, dense = SingleLinkage(n_clusters).fit(points), HDBSCAN(min_cluster_size).fit(points)
    draw_points(args.output / "clusters.png", points, single, dense)
    for name, labels in (("SingleLinkage", single.labels_), ("HDBSCAN", dense.labels_)):
        sizes = sorted(np.bincount(labels[labels >= 0]).tolist(), reverse=True)
        print(f"{name}: clusters of {sizes} points, {int((labels < 0).sum())} of noise")

    image.thumbnail((longest_side, longest_side))
    graph = SuperpixelsToGraph(num_segments)(image)
    tree = TreeTopology("euclidean")(graph.x, graph.edge_index)
    draw_superpixels(args.output / "superpixels.png", np.asarray(image), graph, tree.edge_index)
    print(f"{args.image}: {graph.num_nodes} superpixels, {graph.num_edges // 2} borders")
    print(f"{args.output / 'clusters.png'} and superpixels.png beside it")
    return single.labels_, dense.labels_, graph


if __name__ == "__main__":
    main()
