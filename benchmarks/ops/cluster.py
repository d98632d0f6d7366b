"""``groot_graph.cluster`` against fast_hdbscan, SciPy and scikit-learn, and how near a graph of
nearest neighbors comes to the exact spanning tree.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.harness.registry import Measurement, at_least, row, speedup
from benchmarks.harness.timing import check_close, in_turns
from groot_graph import minimum_spanning_forest, root_forest
from groot_graph.cluster import HDBSCAN, SingleLinkage, euclidean_spanning_tree
from groot_graph.transforms import PointsToGraph


@row(
    "HDBSCAN of {num_points:,} points in {dim} dimensions, {min_samples} samples",
    speedup(goal=1.5),
    full={"num_points": 100_000, "dim": 3, "min_samples": 10},
    smoke={"num_points": 500, "dim": 2, "min_samples": 3},
    least={"num_points": 100, "min_samples": 3},
)
def hdbscan(repeats: int, num_points: int, dim: int, min_samples: int) -> list[Measurement]:
    points = groups_of_points(num_points, dim)
    size = max(num_points // 2000, 5)
    ours = HDBSCAN(size, min_samples)
    try:
        call, weight = _fast_hdbscan(points, size, min_samples)
    except ImportError:
        note = "not measured, not installed: fast_hdbscan"
        return in_turns({"ours": lambda: ours.fit(points)}, repeats, note=note, judged=False)
    found = ours.fit(points).linkage_matrix_[:, 2].sum()
    # Theirs is computed in float32.
    check_close("weight of the tree", torch.tensor(found), torch.tensor(weight()), 1e-5)
    return in_turns({"ours": lambda: ours.fit(points), "fast_hdbscan": call}, repeats)


@row(
    "SingleLinkage of {num_points:,} points in {dim} dimensions",
    speedup(goal=2),
    full={"num_points": 5_000, "dim": 3},
    smoke={"num_points": 100, "dim": 2},
    least={"num_points": 20},
)
def single_linkage(repeats: int, num_points: int, dim: int) -> list[Measurement]:
    from scipy.cluster.hierarchy import linkage
    from sklearn.cluster import AgglomerativeClustering

    points = groups_of_points(num_points, dim)
    ours, sklearn = SingleLinkage(10), AgglomerativeClustering(10, linkage="single")
    found = torch.from_numpy(ours.fit(points).linkage_matrix_)
    check_close("merges", found, torch.from_numpy(linkage(points, "single")), 1e-9)
    calls = {
        "ours": lambda: ours.fit(points),
        "SciPy": lambda: linkage(points, "single"),
        "scikit-learn": lambda: sklearn.fit(points),
    }
    return in_turns(calls, repeats)


def neighbors_row(k: int) -> Callable:
    return row(
        "edges of the exact tree in a graph of {k} neighbors, {num_points:,} points, {dim} axes",
        at_least(unit="share"),
        full={"num_points": 100_000, "dim": 3, "k": k},
        smoke={"num_points": 300, "dim": 3, "k": k},
    )


@neighbors_row(16)
@neighbors_row(8)
@neighbors_row(4)
def neighbors(repeats: int, num_points: int, dim: int, k: int) -> list[Measurement]:
    points = torch.from_numpy(groups_of_points(num_points, dim))
    exact, length = euclidean_spanning_tree(points)
    graph = PointsToGraph(k=k)(points)
    is_kept = minimum_spanning_forest(graph.edge_index, graph.edge_weight, num_points)
    forest = root_forest(graph.edge_index, is_kept, num_points)
    share = forest.edge_mask(exact).double().mean()
    joining = minimum_spanning_forest(forest.labels[exact], length, forest.num_trees)
    weight = (graph.edge_weight[is_kept].sum() + length[joining].sum()) / length.sum()
    note = f"{forest.num_trees:,} trees; joined, {float(weight):.7f} of the exact weight"
    return [Measurement([float(share)], {}, unit="share", note=note)]


def groups_of_points(num_points: int, dim: int) -> np.ndarray:
    """Normally distributed around 50 places, some groups denser than others."""
    rng = np.random.default_rng(0)
    group = rng.integers(50, size=num_points)
    center, scale = rng.uniform(-100, 100, (50, dim)), np.linspace(0.5, 5, 50)[:, None]
    return center[group] + scale[group] * rng.standard_normal((num_points, dim))


def _fast_hdbscan(points: np.ndarray, size: int, min_samples: int) -> tuple[Callable, Callable]:
    import numba
    from fast_hdbscan import fast_hdbscan

    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    # It does not count the point itself.
    options = {"min_cluster_size": size, "min_samples": min_samples - 1}

    def weight() -> float:
        _, _, matrix, *_ = fast_hdbscan(points, **options, return_trees=True)
        return float(matrix[:, 2].sum())

    return lambda: fast_hdbscan(points, **options), weight
