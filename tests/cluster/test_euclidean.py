import importlib
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from groot_graph import minimum_spanning_forest, root_forest
from groot_graph.cluster import euclidean_spanning_tree
from groot_graph.cluster.euclidean import FEWEST_NEIGHBORS, POINTS_PER_LEAF


def of_all_pairs(pos, min_samples):
    """All pairs, their mutual reachability distance, and which of them the tree keeps."""
    distance = squareform(pdist(pos))
    core = np.sort(distance, axis=1)[:, min_samples - 1]
    weight = np.maximum(distance, np.maximum(core[:, None], core[None, :]))
    pairs = np.stack(np.triu_indices(len(pos), 1))
    edge_index, edge_weight = torch.from_numpy(pairs), torch.from_numpy(weight[tuple(pairs)])
    return weight, edge_weight[minimum_spanning_forest(edge_index, edge_weight, len(pos))]


def drawn(kind, num_points, dim):
    rng = np.random.default_rng(num_points + dim)
    uniform = rng.random((num_points, dim))
    if kind == "grid":
        return np.floor(4 * uniform)
    if kind == "apart":
        # Groups that no graph of a few neighbors joins.
        return 0.01 * uniform + rng.integers(0, 4, num_points)[:, None]
    if kind == "chain":
        # Ever longer steps, so that the longest edges have one end alone.
        return np.cumsum(np.cumsum(uniform, axis=0), axis=0)
    return uniform


SIZES = [2, 3, FEWEST_NEIGHBORS, FEWEST_NEIGHBORS + 1, POINTS_PER_LEAF + 1, 101, 333]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("min_samples", [1, 2, 5, 20])
@pytest.mark.parametrize("dim", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["uniform", "grid", "apart", "chain"])
@pytest.mark.parametrize("num_points", SIZES)
def test_it_is_the_spanning_tree_of_all_pairs(num_points, kind, dim, min_samples):
    min_samples = min(min_samples, num_points)
    pos = drawn(kind, num_points, dim)
    edge_index, edge_weight = euclidean_spanning_tree(torch.from_numpy(pos), min_samples)
    weight, expected = of_all_pairs(pos, min_samples)
    assert edge_index.shape == (2, num_points - 1)
    assert root_forest(edge_index, num_nodes=num_points).num_trees == 1
    np.testing.assert_allclose(edge_weight, expected.sort().values, rtol=1e-12)
    np.testing.assert_allclose(weight[tuple(edge_index.numpy())], edge_weight, rtol=1e-12)


def test_threads_and_the_sequence_of_points_change_nothing():
    pos = torch.from_numpy(drawn("apart", 4000, 3))
    edge_index, edge_weight = euclidean_spanning_tree(pos, 4)
    torch.set_num_threads(3)
    again = euclidean_spanning_tree(pos, 4)
    assert again[0].equal(edge_index) and again[1].equal(edge_weight)
    shuffled = euclidean_spanning_tree(pos[torch.randperm(4000)], 4)[1]
    assert shuffled.equal(edge_weight)


def test_far_from_the_origin_it_is_as_exact():
    pos = drawn("uniform", 500, 2)
    near = euclidean_spanning_tree(torch.from_numpy(pos))[1]
    far = euclidean_spanning_tree(torch.from_numpy(pos + 1e6))[1]
    torch.testing.assert_close(far, near, rtol=0, atol=1e-9)


def test_coincident_points():
    edge_index, edge_weight = euclidean_spanning_tree(torch.zeros(100, 2))
    assert edge_weight.eq(0).all()
    assert root_forest(edge_index, num_nodes=100).num_trees == 1


@pytest.mark.parametrize("num_points", [0, 1])
def test_without_edges(num_points):
    edge_index, edge_weight = euclidean_spanning_tree(torch.zeros(num_points, 3))
    assert edge_index.shape == (2, 0) and edge_index.dtype == torch.long
    assert edge_weight.shape == (0,) and edge_weight.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision_and_gradients_are_left_alone(dtype):
    pos = torch.rand(50, 2).to(dtype).requires_grad_()
    edge_index, edge_weight = euclidean_spanning_tree(pos)
    assert not edge_weight.requires_grad
    assert edge_index.equal(euclidean_spanning_tree(pos.detach().double())[0])


@pytest.mark.parametrize(
    ("pos", "min_samples", "error", "message"),
    [
        ([[0.0]], 1, TypeError, "'pos' must be a torch.Tensor, got list"),
        (torch.zeros(3, 2, dtype=torch.long), 1, TypeError, "'pos' must have a floating point"),
        (torch.zeros(3), 1, ValueError, r"'pos' must have shape .*got \[3\]"),
        (torch.tensor([[0.0], [torch.nan]]), 1, ValueError, "'pos' must be finite, got NaN"),
        (torch.zeros(3, 2), 0, ValueError, "'min_samples' must be at least 1, got 0"),
        (torch.zeros(3, 2), 4, ValueError, "'min_samples' must be at most .* 3, got 4"),
        (torch.zeros(3, 2), 1.0, TypeError, "'min_samples' must be an int, got float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(pos, min_samples, error, message):
    with pytest.raises(error, match=message):
        euclidean_spanning_tree(pos, min_samples)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e200, 1e307])
def test_squares_may_leave_the_range_of_numbers(scale):
    pos = torch.from_numpy(drawn("apart", 300, 2))
    expected = euclidean_spanning_tree(pos)[1]
    edge_weight = euclidean_spanning_tree(pos * scale)[1]
    torch.testing.assert_close(edge_weight / scale, expected, rtol=1e-9, atol=1e-9)


def test_scikit_learn_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "groot_graph.cluster")
    with pytest.raises(ImportError, match=r"pip install groot-graph\[cluster\]"):
        importlib.import_module("groot_graph.cluster")
