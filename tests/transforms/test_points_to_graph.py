import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Batch, Data

from groot_graph.transforms import PointsToGraph
from groot_graph.transforms.points_to_graph import _search_by_scipy, _search_by_torch_cluster


def random_points(num_points, dim=3):
    return torch.rand(num_points, dim, generator=torch.Generator().manual_seed(num_points))


def distances(pos, batch=None):
    distance = torch.cdist(pos.double(), pos.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(torch.inf)
    if batch is not None:
        distance[batch[:, None] != batch[None, :]] = torch.inf
    return distance


def nearest_by_sorting(pos, k, batch=None):
    order = distances(pos, batch).sort(dim=1)
    edges = [
        [int(neighbor), center]
        for center in range(len(pos))
        for neighbor, distance in sorted(
            zip(order.indices[center, :k], order.values[center, :k], strict=True)
        )
        if distance < torch.inf
    ]
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()


BATCHES = [[7], [1], [5, 3], [2, 1, 9], [4, 0, 4]]


def test_repr():
    assert str(PointsToGraph(k=3)) == "PointsToGraph(k=3)"
    assert str(PointsToGraph(radius=0.5)) == "PointsToGraph(radius=0.5)"


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_nearest_neighbors(sizes, k):
    pos = random_points(sum(sizes))
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    data = PointsToGraph(k=k)(Data(pos=pos, batch=batch))
    assert data.edge_index.equal(nearest_by_sorting(pos, k, batch))


@pytest.mark.parametrize("radius", [0.1, 0.5, 10])
@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_radius(sizes, radius):
    pos = random_points(sum(sizes))
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    edge_index = PointsToGraph(radius=radius)(Data(pos=pos, batch=batch)).edge_index
    wanted = (distances(pos, batch) <= radius).nonzero()
    assert edge_index.flip(0).t().tolist() == wanted.tolist()


def test_points_at_the_radius_are_joined():
    pos = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    assert PointsToGraph(radius=1)(pos).num_edges == 24


@pytest.mark.parametrize("options", [{"k": 4}, {"radius": 0.4}], ids=str)
@pytest.mark.parametrize("sizes", [[40], [5, 1, 33]], ids=str)
def test_torch_cluster_finds_the_same_edges(options, sizes):
    pytest.importorskip("torch_cluster")
    pos = random_points(sum(sizes))
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    edges = [
        set(map(tuple, search(pos, batch, **options).t().tolist()))
        for search in (_search_by_torch_cluster, _search_by_scipy)
    ]
    assert edges[0] == edges[1]


@pytest.mark.parametrize(
    ("options", "call"), [({"k": 2}, ("knn", 2)), ({"radius": 0.5}, ("radius", 4))], ids=str
)
def test_torch_cluster_is_called_where_installed(monkeypatch, options, call):
    calls = []

    def knn_graph(x, k, batch):
        calls.append(("knn", k))
        return torch.tensor([[1], [0]])

    def radius_graph(x, r, batch, max_num_neighbors):
        calls.append(("radius", max_num_neighbors))
        # One pair within the radius, one just beyond it.
        return torch.tensor([[1, 2], [0, 0]])

    module = SimpleNamespace(knn_graph=knn_graph, radius_graph=radius_graph)
    monkeypatch.setitem(sys.modules, "torch_cluster", module)
    pos = torch.tensor([[0.0], [0.5], [0.500001], [9.0]])
    assert PointsToGraph(**options)(pos).edge_index.tolist() == [[1], [0]]
    assert calls == [call]


def test_neither_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_cluster", None)
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(ImportError, match="needs torch-cluster or SciPy: pip install scipy"):
        PointsToGraph(k=1)(torch.rand(3, 2))


@pytest.mark.parametrize("k", [1, 2, 10])
def test_coincident_points_are_no_neighbors_of_themselves(k):
    edge_index = PointsToGraph(k=k)(torch.zeros(6, 2)).edge_index
    assert (edge_index[0] != edge_index[1]).all()
    assert edge_index[1].bincount().tolist() == [min(k, 5)] * 6


def test_a_batch_gives_what_each_graph_gives_alone():
    graphs = [Data(pos=random_points(n)) for n in (5, 1, 8)]
    transform = PointsToGraph(k=2)
    together = transform(Batch.from_data_list(graphs))
    alone = Batch.from_data_list([transform(graph) for graph in graphs])
    assert together.edge_index.equal(alone.edge_index)


def test_features():
    pos = torch.rand(4, 3)
    assert PointsToGraph(k=1)(pos).x.equal(pos)
    data = PointsToGraph(k=1, key="xyz")(Data(xyz=pos, x=torch.ones(4, 1), y=2))
    assert data.x.eq(1).all()
    assert data.xyz.equal(pos)
    assert data.y == 2


def test_no_points():
    data = PointsToGraph(k=3)(torch.rand(0, 3))
    assert data.num_nodes == data.num_edges == 0


def test_float64_and_gradients():
    pos = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    data = PointsToGraph(radius=0.5)(pos)
    assert data.edge_index.dtype == torch.long
    data.x.sum().backward()
    assert pos.grad.eq(1).all()


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        ({0.0}, TypeError, "'pos' must be a Tensor, .* a data frame or .*, got set"),
        ([[0.0, 1.0], [0.0]], TypeError, "'pos' must hold points of equally many numbers"),
        ([["a"]], TypeError, "'pos' must hold points of equally many numbers"),
        (np.array([["a"]]), TypeError, "'pos' must hold numbers, got <U1"),
        (pd.DataFrame({"x": [1.0], "name": ["a"]}), TypeError, r"got others in \['name'\]"),
        (torch.zeros(3, 2, dtype=torch.long), TypeError, "floating point, got torch.int64"),
        (torch.rand(3), ValueError, r"\[num_points, dim\], got \[3\]"),
        (torch.rand(3, 0), ValueError, r"\[num_points, dim\], got \[3, 0\]"),
        (torch.tensor([[0.0], [torch.nan]]), ValueError, "NaN or infinity in 1 points"),
        (torch.tensor([[torch.inf], [-torch.inf]]), ValueError, "NaN or infinity in 2 points"),
        (Data(x=torch.rand(2, 2)), ValueError, r"'pos', got \['x'\]"),
        (
            Data(pos=torch.rand(2, 2), batch=torch.tensor([0])),
            ValueError,
            r"'batch' must have shape \[2\], got \[1\]",
        ),
        (
            Data(pos=torch.rand(2, 2), batch=torch.tensor([1, 0])),
            ValueError,
            "'batch' must be sorted",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(points, error, message):
    with pytest.raises(error, match=message):
        PointsToGraph(k=1)(points)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "exactly one of 'k' and 'radius'"),
        ({"k": 1, "radius": 1.0}, ValueError, "exactly one of 'k' and 'radius'"),
        ({"k": 0}, ValueError, "'k' must be at least 1, got 0"),
        ({"k": 1.5}, TypeError, "'k' must be an int, got float"),
        ({"radius": 0.0}, ValueError, "'radius' must be positive and finite, got 0.0"),
        ({"radius": float("nan")}, ValueError, "'radius' must be positive and finite, got nan"),
        ({"radius": "1"}, TypeError, "'radius' must be a number, got str"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        PointsToGraph(**options)


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "int32", "uint8"])
def test_arrays(dtype):
    array = np.arange(12).reshape(6, 2)[::-1].astype(dtype)
    data = PointsToGraph(k=2)(array)
    expected = torch.float32 if dtype in ("float32", ">f4") else torch.float64
    assert data.pos.dtype == data.x.dtype == data.edge_weight.dtype == expected
    assert data.pos.tolist() == array.tolist()
    assert data.edge_index.equal(
        PointsToGraph(k=2)(torch.from_numpy(array.astype(float))).edge_index
    )


def test_lists_and_data_frames():
    points = [[0, 0.5], [1, 2], [3, 4]]
    of_list = PointsToGraph(k=1)(points)
    assert of_list.pos.dtype == torch.float32 and of_list.pos.tolist() == points
    table = pd.DataFrame(points, columns=["x", "y"], index=[7, 8, 9])
    of_table = PointsToGraph(k=1)(Data(pos=table, y=2))
    assert of_table.pos.tolist() == points and of_table.y == 2
    assert of_table.edge_index.equal(of_list.edge_index)


@pytest.mark.parametrize("header", [["x", "y"], False], ids=str)
@pytest.mark.parametrize("as_type", [str, lambda path: path], ids=["str", "Path"])
def test_files_of_points(tmp_path, header, as_type):
    path = tmp_path / "points.csv"
    points = [[0.0, 0.0], [1.0, 2.0], [3.0, 5.5]]
    pd.DataFrame(points).to_csv(path, header=header, index=False)
    assert PointsToGraph(k=1)(as_type(path)).pos.tolist() == points


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("no_such.csv", None, ValueError, r"a readable CSV file, got '.*no_such\.csv'"),
        ("empty.csv", "", ValueError, r"a readable CSV file, got '.*empty\.csv'"),
        ("names.csv", "x,name\n1,a\n", TypeError, r"got others in \['name'\]"),
        ("hole.csv", "x,y\n1,2\n3,\n", ValueError, "NaN or infinity in 1 points"),
        ("scan.PLY", None, ValueError, r"read_ply reads it, hand over the coordinates"),
        ("scan.laz", None, ValueError, r"laspy\.read\(path\)\.xyz reads it"),
    ],
)
def test_bad_files(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        PointsToGraph(k=1)(tmp_path / name)


def test_files_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas: pip install pandas"):
        PointsToGraph(k=1)("points.csv")
