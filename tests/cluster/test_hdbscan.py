import sys
from functools import partial

import numpy as np
import pytest
import sklearn.cluster
import torch
from sklearn.datasets import make_blobs, make_moons
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch_geometric.data import Data

from groot_graph.cluster import HDBSCAN, euclidean_spanning_tree
from groot_graph.transforms import PointsToGraph
from tests.equipment.clusters import assert_same_clusters

# Its peers compile for a minute; README and the guide run it with every other test.
pytestmark = pytest.mark.full

pytest.importorskip("fast_hdbscan")

POINTS = {
    "blobs": partial(make_blobs, 600, 3, centers=6),
    "moons": partial(make_moons, 500, noise=0.08),
    "uniform": lambda random_state: [np.random.default_rng(random_state).random((500, 2))],
}
OPTIONS = [
    {"min_cluster_size": 20},
    {"min_cluster_size": 10, "cluster_selection_method": "leaf"},
    {"min_cluster_size": 30, "allow_single_cluster": True},
    {"min_cluster_size": 10, "max_cluster_size": 100},
    {"min_cluster_size": 10, "cluster_selection_epsilon": 0.02},
]


@parametrize_with_checks([HDBSCAN()])
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


# With more samples many edges are equally long.
@pytest.mark.parametrize("min_samples", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", POINTS)
def test_without_ties_it_is_that_of_scikit_learn(kind, options, min_samples):
    for seed in range(3):
        points = POINTS[kind](random_state=seed)[0]
        ours = HDBSCAN(**options, min_samples=min_samples).fit(points)
        peer = sklearn.cluster.HDBSCAN(**options, min_samples=min_samples, copy=True).fit(points)
        assert_same_clusters(ours.labels_, peer.labels_)
        _assert_scaled(ours, peer)


def _assert_scaled(ours, peer):
    """Of a cluster that splits further, each measures by another density."""
    assert (peer.probabilities_ <= ours.probabilities_ + 1e-5).all()
    for cluster in range(ours.labels_.max() + 1):
        is_scaled = (ours.labels_ == cluster) & (ours.probabilities_ < 1)
        ratio = peer.probabilities_[is_scaled] / ours.probabilities_[is_scaled]
        np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio)), rtol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["blobs", "moons"])
def test_with_ties_it_comes_near(kind, options):
    points = POINTS[kind](random_state=0)[0]
    ours, peer = (
        HDBSCAN(**options).fit(points),
        sklearn.cluster.HDBSCAN(**options, copy=True).fit(points),
    )
    assert adjusted_rand_score(ours.labels_, peer.labels_) > 0.97
    assert abs(int((ours.labels_ < 0).sum()) - int((peer.labels_ < 0).sum())) <= 5


def test_clusters_are_numbered_by_their_lowest_point_and_noise_is_minus_one():
    points = POINTS["moons"](random_state=1)[0]
    model = HDBSCAN(15, 5).fit(np.concatenate([points, [[9, 9]]]))
    numbers = np.unique(model.labels_)
    assert numbers.tolist() == list(range(-1, len(numbers) - 1))
    first = [int(np.flatnonzero(model.labels_ == number)[0]) for number in numbers[1:]]
    assert first == sorted(first)
    assert ((model.probabilities_ == 0) >= (model.labels_ < 0)).all()
    assert 0 <= model.probabilities_.min() <= model.probabilities_.max() <= 1


def test_the_tree_is_that_of_the_mutual_reachability_distance():
    points = POINTS["moons"](random_state=0)[0]
    model = HDBSCAN(10, 4).fit(points)
    weight = euclidean_spanning_tree(torch.from_numpy(points), 4)[1]
    assert model.edge_weight_.equal(weight)
    assert model.linkage_matrix_[:, 2].tolist() == weight.tolist()


@pytest.mark.parametrize("min_samples", [1, 2, 5])
@pytest.mark.parametrize("kind", ["blobs", "uniform"])
def test_a_graph_of_all_pairs_gives_the_hierarchy_of_its_points(kind, min_samples):
    points = torch.from_numpy(POINTS[kind](random_state=0)[0][:300])
    of_graph = HDBSCAN(10, min_samples).fit(PointsToGraph(k=299)(points))
    of_points = HDBSCAN(10, min_samples).fit(points)
    height = of_graph.linkage_matrix_[:, 2]
    np.testing.assert_allclose(height, of_points.linkage_matrix_[:, 2], rtol=1e-6)
    if min_samples < 3:
        assert_same_clusters(of_graph.labels_, of_points.labels_)


def test_edges_in_one_direction_are_as_good_as_in_both():
    graph = PointsToGraph(k=12)(torch.from_numpy(POINTS["moons"](random_state=0)[0]))
    source, target = graph.edge_index
    once = (source < target) | ~torch.isin(
        source * 500 + target, target * 500 + source, assume_unique=True
    )
    halved = Data(
        edge_index=graph.edge_index[:, once], edge_weight=graph.edge_weight[once], num_nodes=500
    )
    found, expected = HDBSCAN(10, 5).fit(halved), HDBSCAN(10, 5).fit(graph)
    assert found.linkage_matrix_[:, 2].tolist() == expected.linkage_matrix_[:, 2].tolist()


def test_components_of_a_graph_are_clusters_and_what_has_few_edges_is_noise():
    # Two cliques of four, and a path of two beside them.
    pairs = [(a, b) for a in range(4) for b in range(a)]
    edges = pairs + [(a + 4, b + 4) for a, b in pairs] + [(8, 9)]
    weight = 1 + torch.arange(len(edges)) / 100
    graph = Data(edge_index=torch.tensor(edges).t(), edge_weight=weight, num_nodes=10)
    model = HDBSCAN(3, 3).fit(graph)
    assert model.labels_.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, -1, -1]
    assert np.isinf(model.linkage_matrix_[-3:, 2]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_cluster_size": 1}, ValueError, "'min_cluster_size' must be at least 2, got 1"),
        ({"min_samples": 0}, ValueError, "'min_samples' must be at least 1, got 0"),
        ({"min_samples": 501}, ValueError, "'min_samples' must be at most .*500, got 501"),
        ({"max_cluster_size": 2.5}, TypeError, "'max_cluster_size' must be an int, got float"),
        ({"cluster_selection_epsilon": -1.0}, ValueError, "'cluster_selection_epsilon' must"),
        ({"cluster_selection_method": "best"}, ValueError, "one of .*got 'best'"),
        ({"allow_single_cluster": 1}, TypeError, "'allow_single_cluster' must be a bool"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        HDBSCAN(**options).fit(POINTS["uniform"](0)[0])


def test_fast_hdbscan_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_hdbscan.hdbscan", None)
    with pytest.raises(ImportError, match=r"pip install groot-graph\[cluster\]"):
        HDBSCAN().fit(POINTS["uniform"](0)[0])
