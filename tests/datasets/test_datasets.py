import networkx as nx
import pytest
import torch
from torch_geometric.data import InMemoryDataset
from torch_geometric.loader import DataLoader
from torch_geometric.utils import to_networkx

from groot_graph.datasets import CliquePath, CrossedRing, RingTransfer, TreeNeighborsMatch

TRANSFERS = [RingTransfer, CrossedRing, CliquePath]
DATASETS = [*TRANSFERS, TreeNeighborsMatch]
DISTANCES = [3, 4, 10, 50]


def same(dataset: InMemoryDataset, other: InMemoryDataset) -> bool:
    return all(
        a.x.equal(b.x) and a.y.equal(b.y) and a.edge_index.equal(b.edge_index)
        for a, b in zip(dataset, other, strict=True)
    )


def source_of(graph) -> int:
    (source,) = (graph.x.sum(dim=1) == 1).nonzero().flatten().tolist()
    return source


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", TRANSFERS)
def test_the_class_stands_at_the_distance(kind, distance):
    for graph in kind(distance, num_graphs=3, num_classes=4):
        graph.validate()
        assert graph.is_undirected() and not graph.has_self_loops()
        assert graph.edge_index.unique(dim=1).size(1) == graph.num_edges
        source, root = source_of(graph), int(graph.root_index)
        assert graph.x[source].argmax() == graph.y
        assert graph.x[root].tolist() == [0] * 4
        way = nx.shortest_path_length(to_networkx(graph, to_undirected=True), root, source)
        assert way == distance
        others = set(range(graph.num_nodes)) - {source, root}
        assert (graph.x[list(others)] == 1).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_shapes(distance):
    d = distance
    degrees = {
        RingTransfer: {2: 2 * d},
        CrossedRing: {2: 2, 3: 4, 4: 2 * d - 6},
    }
    for kind, expected in degrees.items():
        graph = to_networkx(kind(d, num_graphs=1)[0], to_undirected=True)
        found = [degree for _, degree in graph.degree]
        assert {value: found.count(value) for value in set(found)} == {
            value: count for value, count in expected.items() if count
        }
    graph = to_networkx(CliquePath(d, num_graphs=1)[0], to_undirected=True)
    clique = nx.complete_graph(d - 1)
    assert nx.utils.graphs_equal(nx.Graph(graph.subgraph(range(d - 1))), clique)
    assert nx.is_path(graph, range(d - 2, 2 * d - 2))
    assert graph.number_of_edges() == clique.number_of_edges() + d - 1


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_tree_neighbors_match(depth):
    dataset = TreeNeighborsMatch(depth, num_graphs=20)
    assert dataset.num_classes == 2**depth
    for graph in dataset:
        graph.validate()
        assert graph.is_undirected()
        tree = to_networkx(graph, to_undirected=True)
        assert nx.is_tree(tree)
        depths = nx.single_source_shortest_path_length(tree, 0)
        leaves = [node for node in tree if tree.degree[node] == 1]
        assert len(leaves) == 2**depth and {depths[leaf] for leaf in leaves} == {depth}
        keys, values = graph.x[leaves].t()
        assert sorted(keys.tolist()) == sorted(values.tolist()) == list(range(1, 2**depth + 1))
        assert values[keys == graph.x[0, 0]] == graph.y + 1
        inside = [node for node in tree if node not in leaves]
        assert (graph.x[inside, 1] == 0).all() and (graph.x[inside[1:], 0] == 0).all()


@pytest.mark.parametrize("kind", DATASETS)
def test_the_seed_decides(kind):
    dataset = kind(4, num_graphs=30, seed=1)
    assert len(dataset) == 30
    torch.manual_seed(5)
    assert same(dataset, kind(4, num_graphs=30, seed=1))
    assert not same(dataset, kind(4, num_graphs=30, seed=2))


@pytest.mark.parametrize("kind", DATASETS)
def test_all_classes_come_about_equally_often(kind):
    dataset = kind(3, num_graphs=1000)
    y = torch.cat([graph.y for graph in dataset])
    expected = 1000 / dataset.num_classes
    assert (y.bincount(minlength=dataset.num_classes) - expected).abs().max() < 0.3 * expected


@pytest.mark.parametrize("kind", DATASETS)
def test_batches_know_their_roots(kind):
    dataset = kind(4, num_graphs=5)
    batch = next(iter(DataLoader(dataset, batch_size=5)))
    assert batch.root_index.equal(batch.ptr[:-1])
    assert batch.y.shape == (5,)


@pytest.mark.parametrize("kind", TRANSFERS)
def test_classes_count_that_no_graph_has(kind):
    assert kind(3, num_graphs=2, num_classes=10).num_classes == 10


def test_transform_is_applied():
    dataset = RingTransfer(3, num_graphs=2, transform=lambda data: data.update({"mark": 1}))
    assert dataset[0].mark == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RingTransfer(1), ValueError, "'distance' must be at least 2, got 1"),
        (lambda: CliquePath(2), ValueError, "'distance' must be at least 3, got 2"),
        (lambda: CrossedRing(2.0), TypeError, "'distance' must be an int, got float"),
        (lambda: RingTransfer(3, num_graphs=0), ValueError, "'num_graphs' .* got 0"),
        (lambda: RingTransfer(3, num_classes=1), ValueError, "'num_classes' .* least 2, got 1"),
        (lambda: RingTransfer(3, seed="a"), TypeError, "'seed' must be an int, got str"),
        (lambda: TreeNeighborsMatch(3, seed=0.5), TypeError, "'seed' must be an int, got float"),
        (lambda: TreeNeighborsMatch(0), ValueError, "'depth' .* got 0"),
        (lambda: TreeNeighborsMatch(2, num_graphs="1"), TypeError, "'num_graphs' must be an int"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
