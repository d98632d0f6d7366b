import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, is_valid_linkage, linkage
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering
from sklearn.datasets import make_blobs, make_moons
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch_geometric.data import Data

from groot_graph import Forest, root_forest
from groot_graph.cluster import SingleLinkage
from groot_graph.transforms import PointsToGraph
from tests.equipment.clusters import assert_same_clusters

BLOBS = make_blobs(300, 3, centers=6, random_state=0)[0]
MOONS = make_moons(200, noise=0.05, random_state=0)[0]


@parametrize_with_checks([SingleLinkage()])
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("points", [BLOBS, MOONS, BLOBS[:2]], ids=len)
def test_merges_are_those_of_scipy(points):
    found, expected = SingleLinkage().fit(points).linkage_matrix_, linkage(points, "single")
    assert is_valid_linkage(found)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("n_clusters", [1, 2, 7, 200])
@pytest.mark.parametrize("points", [BLOBS, MOONS], ids=len)
def test_numbers_of_clusters(points, n_clusters):
    model = SingleLinkage(n_clusters).fit(points)
    assert model.n_clusters_ == n_clusters
    of_scipy = fcluster(linkage(points, "single"), n_clusters, "maxclust")
    assert_same_clusters(model.labels_, of_scipy)
    peer = AgglomerativeClustering(n_clusters, linkage="single")
    assert_same_clusters(model.labels_, peer.fit_predict(points))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 1.5, 1e9, np.inf])
@pytest.mark.parametrize("points", [BLOBS, MOONS], ids=len)
def test_thresholds(points, threshold):
    model = SingleLinkage(None, distance_threshold=threshold).fit(points)
    of_scipy = fcluster(linkage(points, "single"), threshold, "distance")
    assert_same_clusters(model.labels_, of_scipy)
    assert model.n_clusters_ == of_scipy.max()


def test_at_the_threshold_it_parts_as_scikit_learn_does():
    points = np.array([[0.0], [1.0], [3.0]])
    ours = SingleLinkage(None, distance_threshold=1.0).fit_predict(points)
    peer = AgglomerativeClustering(None, distance_threshold=1.0, linkage="single")
    assert ours.tolist() == [0, 1, 2] and peer.fit(points).n_clusters_ == 3


def test_ties_give_the_number_that_was_asked_for():
    points = np.stack(np.meshgrid(np.arange(4.0), np.arange(5.0)), axis=-1).reshape(-1, 2)
    for n_clusters in range(1, 21):
        assert SingleLinkage(n_clusters).fit(points).n_clusters_ == n_clusters


def test_clusters_are_numbered_by_their_lowest_node():
    labels = SingleLinkage(9).fit_predict(BLOBS)
    first = [int(np.flatnonzero(labels == number)[0]) for number in range(9)]
    assert first == sorted(first)


@pytest.mark.parametrize("kind", ["list", "float32", "tensor", "frame"])
def test_kinds_of_points(kind):
    points = BLOBS.astype(np.float32)
    given = {
        "list": points.tolist(),
        "float32": points,
        "tensor": torch.from_numpy(points).requires_grad_(),
        "frame": pd.DataFrame(points, columns=["x", "y", "z"]),
    }[kind]
    model = SingleLinkage(4).fit(given)
    assert model.labels_.tolist() == SingleLinkage(4).fit_predict(points.astype(float)).tolist()
    if kind == "frame":
        assert model.feature_names_in_.tolist() == ["x", "y", "z"]


def test_a_graph_of_enough_neighbors_gives_the_clusters_of_its_points():
    graph = PointsToGraph(k=299)(torch.from_numpy(BLOBS))
    of_graph, of_points = SingleLinkage(5).fit(graph), SingleLinkage(5).fit(BLOBS)
    np.testing.assert_allclose(of_graph.linkage_matrix_, of_points.linkage_matrix_, rtol=1e-9)
    assert of_graph.labels_.tolist() == of_points.labels_.tolist()
    assert not hasattr(of_graph, "n_features_in_")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_components_of_a_graph_stay_apart(dtype):
    # 0 - 2 - 1 and 3 - 4; 5 alone. An infinite edge joins nothing.
    edge_index = torch.tensor([[0, 2, 3, 1], [2, 1, 4, 1]])
    graph = Data(edge_index=edge_index, edge_weight=torch.tensor([3, 1, 2, 0]).to(dtype))
    graph.num_nodes = 6
    if dtype.is_floating_point:
        graph.edge_index = torch.cat([edge_index, torch.tensor([[0], [5]])], dim=1)
        graph.edge_weight = torch.cat([graph.edge_weight, torch.tensor([torch.inf]).to(dtype)])
    model = SingleLinkage(1).fit(graph)
    assert model.labels_.tolist() == [0, 0, 0, 1, 1, 2] and model.n_clusters_ == 3
    assert SingleLinkage(4).fit_predict(graph).tolist() == [0, 1, 1, 2, 2, 3]
    heights = model.linkage_matrix_[:, 2].tolist()
    assert heights == [1, 2, 3, np.inf, np.inf] and is_valid_linkage(model.linkage_matrix_)
    assert model.edge_weight_.tolist() == [1, 2, 3]


def test_its_edges_make_a_forest():
    model = SingleLinkage(3).fit(BLOBS)
    forest = root_forest(model.edge_index_, num_nodes=300)
    assert isinstance(forest, Forest) and forest.num_trees == 1
    cut = root_forest(model.edge_index_, torch.arange(299) < 297, 300)
    assert cut.labels.tolist() == model.labels_.tolist()


def test_it_is_copied_pickled_and_put_into_a_pipeline():
    model = pickle.loads(pickle.dumps(SingleLinkage(3).fit(BLOBS)))
    assert model.labels_.tolist() == SingleLinkage(3).fit_predict(BLOBS).tolist()
    assert clone(model).get_params() == {"n_clusters": 3, "distance_threshold": None}
    pipeline = make_pipeline(StandardScaler(), SingleLinkage(3))
    assert set(pipeline.fit_predict(BLOBS)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_clusters": None}, ValueError, "exactly one of 'n_clusters' and"),
        ({"distance_threshold": 1.0}, ValueError, "exactly one of 'n_clusters' and"),
        ({"n_clusters": 0}, ValueError, "'n_clusters' must be at least 1, got 0"),
        ({"n_clusters": 2.0}, TypeError, "'n_clusters' must be an int, got float"),
        ({"n_clusters": 301}, ValueError, "'n_clusters' must be at most .*300, got 301"),
        ({"n_clusters": None, "distance_threshold": -1}, ValueError, "not be negative, got -1"),
        ({"n_clusters": None, "distance_threshold": np.nan}, ValueError, "negative, got nan"),
        ({"n_clusters": None, "distance_threshold": "1"}, TypeError, "a number, got str"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        SingleLinkage(**options).fit(BLOBS)


EDGES = torch.tensor([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (Data(edge_index=EDGES), ValueError, "'X' must carry 'edge_weight', as PointsToGraph"),
        (Data(pos=torch.rand(3, 2)), ValueError, "'X' must carry 'edge_index'"),
        (Data(edge_index=EDGES, edge_weight=torch.ones(3)), ValueError, "'edge_weight' must have"),
        (Data(edge_index=EDGES, edge_weight=-torch.ones(2)), ValueError, "from zero on, got -1"),
        (
            Data(edge_index=EDGES, edge_weight=torch.tensor([1.0, torch.nan])),
            ValueError,
            "'edge_weight' must not hold NaN",
        ),
        (
            Data(edge_index=EDGES[:, :0], edge_weight=torch.ones(0), num_nodes=1),
            ValueError,
            "at least two nodes, got 1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_graphs(graph, error, message):
    with pytest.raises(error, match=message):
        SingleLinkage().fit(graph)
