import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader, RandomNodeLoader
from torch_geometric.transforms import Compose

from groot_graph import Forest, tree_scan
from groot_graph.nn import TreeTopology
from groot_graph.transforms import ImageToGraph, PointsToGraph, TextToGraph, ToSpanningForest


def random_graph(num_nodes, num_edges, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Data(
        x=torch.rand(num_nodes, 4, generator=generator),
        edge_index=torch.randint(num_nodes, (2, num_edges), generator=generator),
        edge_attr=torch.arange(num_edges),
        y=torch.tensor([seed]),
    )


def test_repr():
    assert str(ToSpanningForest()).startswith("ToSpanningForest(TreeTopology(metric=cosine")


def test_by_hand():
    data = Data(
        x=torch.zeros(4, 1),
        edge_index=torch.tensor([[0, 1, 2, 2, 1, 3], [1, 2, 0, 2, 0, 3]]),
        edge_weight=torch.tensor([1.0, 3.0, 2.0, 0.0, 1.0, 0.0]),
        edge_attr=torch.arange(6),
    )
    out = ToSpanningForest()(data)
    assert out.edge_index.tolist() == [[0, 2, 1], [1, 0, 0]]
    assert out.edge_attr.tolist() == [0, 2, 4]
    assert out.edge_weight.tolist() == [1, 2, 1]
    assert Forest.from_data(out).parent.tolist() == [0, 0, 0, 3]
    assert data.num_edges == 6
    assert "tree_depth" not in data


@pytest.mark.parametrize(
    "options", [{}, {"tree": "max"}, {"root": "last"}, {"metric": "manhattan"}]
)
def test_it_is_the_forest_of_the_topology(options):
    data = random_graph(31, 60)
    out = ToSpanningForest(**options)(data)
    forest = TreeTopology(**options)(data.x, data.edge_index)
    assert out.parent_index.equal(forest.parent)
    assert Forest.from_data(out).parent.equal(forest.parent)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7)], ids=str)
def test_an_undirected_graph_stays_one(size):
    transform = Compose([ImageToGraph(8), ToSpanningForest(metric="euclidean")])
    data = transform(torch.rand(3, *size))
    assert data.num_edges == 2 * (data.num_nodes - 1)
    assert data.is_undirected()


def test_as_many_edges_as_nodes():
    # A ring: attributes of nodes and of edges have the same length.
    data = Data(
        x=torch.tensor([[0.0], [1.0], [3.0], [9.0]]),
        edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]),
        edge_attr=torch.arange(4),
    )
    out = ToSpanningForest(metric="euclidean")(data)
    assert out.x.shape == (4, 1)
    assert out.edge_attr.tolist() == [0, 1, 2]
    assert Forest.from_data(out).parent.tolist() == [0, 0, 1, 2]


def test_the_forest_of_a_batch():
    graphs = [random_graph(7, 9, 1), random_graph(1, 0, 2), random_graph(12, 30, 3)]
    graphs = [ToSpanningForest()(graph) for graph in graphs]
    (batch,) = DataLoader(graphs, batch_size=3)
    forest = Forest.from_data(batch)
    x, transition = batch.x, batch.x.flip(1)
    h = tree_scan(x, transition, forest)
    for graph, part in zip(graphs, batch.ptr.unfold(0, 2, 1).tolist(), strict=True):
        alone = Forest.from_data(graph)
        expected = tree_scan(graph.x, graph.x.flip(1), alone)
        torch.testing.assert_close(h[slice(*part)], expected, rtol=0, atol=0)


def test_forests_of_a_batch_that_are_attached_as_such_are_told():
    graphs = [ToSpanningForest()(random_graph(5, 9, seed)) for seed in range(2)]
    for graph in graphs:
        graph.forest = Forest.from_data(graph)
    batch = Batch.from_data_list(graphs)
    with pytest.raises(TypeError, match="got list; Forest.from_data reads that of a batch"):
        tree_scan(batch.x, batch.x, batch.forest)


class Graphs(torch.utils.data.Dataset):
    def __init__(self):
        self.transform = ToSpanningForest()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.transform(random_graph(9, 16, index))


def test_a_dataset_in_forked_workers():
    expected = [Graphs()[index].tree_depth for index in range(4)]
    options = {"num_workers": 2, "multiprocessing_context": "fork"}
    batches = list(DataLoader(Graphs(), batch_size=1, **options))
    assert [b.tree_depth.tolist() for b in batches] == [e.tolist() for e in expected]


def test_after_the_other_transforms():
    text = Compose([TextToGraph(), ToSpanningForest(root="last")])(torch.rand(6, 4))
    assert text.tree_depth[5] == 0
    points = Compose([PointsToGraph(k=3), ToSpanningForest("euclidean")])(torch.rand(9, 2))
    assert points.tree_depth.shape == (9,)


def test_no_edges():
    out = ToSpanningForest()(random_graph(3, 0))
    assert Forest.from_data(out).parent.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.rand(3, 2), TypeError, "'data' must be a Data, got Tensor"),
        (HeteroData(), TypeError, "'data' must be a Data, got HeteroData"),
        (Data(x=torch.rand(3, 1)), ValueError, r"carry 'edge_index', got \['x'\]"),
        (Data(edge_index=torch.zeros(2, 0).long()), ValueError, "carry 'x'"),
        (
            Data(x=torch.rand(2, 1), edge_index=torch.tensor([[0], [2]])),
            ValueError,
            "'edge_index'",
        ),
        (
            Data(
                x=torch.rand(2, 1),
                edge_index=torch.tensor([[0], [1]]),
                edge_weight=torch.tensor([torch.nan]),
            ),
            ValueError,
            "'edge_weight'.*NaN",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(data, error, message):
    with pytest.raises(error, match=message):
        ToSpanningForest()(data)


def test_bad_options():
    with pytest.raises(ValueError, match="'tree' must be one of"):
        ToSpanningForest(tree="widest")
    with pytest.raises(ValueError, match="'metric' must be one of .* got 'learned'"):
        ToSpanningForest(metric="learned")


def test_a_batch_is_one_of_the_transformed_graphs():
    graphs = [random_graph(size, 2 * size, seed=size) for size in (5, 1, 7)]
    batch = ToSpanningForest()(Batch.from_data_list(graphs))
    for part, graph in zip(batch.to_data_list(), graphs, strict=True):
        expected = ToSpanningForest()(graph)
        for key in ("x", "edge_index", "parent_index", "tree_depth"):
            assert part[key].equal(expected[key])
    assert Forest.from_data(batch).parent.equal(batch.parent_index)


def parents_left(forest, nodes):
    """The parents of some nodes, numbered anew; a node whose parent is not among them is a root."""
    number = {node: new for new, node in enumerate(nodes)}
    return [number.get(int(forest.parent[node]), new) for new, node in enumerate(nodes)]


@pytest.mark.parametrize("root", ["first", "last"])
def test_the_forest_of_a_subgraph(root):
    graph = random_graph(30, 60)
    data = ToSpanningForest(root=root)(graph)
    forest = Forest.from_data(data)
    for nodes in ([0, 1, 3], [29, 4, 17, 2, 9, 8], list(range(5, 30)), [7]):
        part = data.subgraph(torch.tensor(nodes))
        assert Forest.from_data(part).parent.tolist() == parents_left(forest, nodes)


def test_the_forest_of_what_is_left_of_the_edges():
    data = ToSpanningForest()(random_graph(30, 60))
    forest = Forest.from_data(data)
    source, target = data.edge_index
    is_kept = (source % 3 > 0) & (target % 3 > 0)
    left = Forest.from_data(data.edge_subgraph(is_kept))
    alone = (torch.arange(30) % 3 == 0) | (forest.parent % 3 == 0)
    assert left.parent.equal(torch.where(alone, torch.arange(30), forest.parent))


def test_the_forest_of_what_a_loader_samples():
    data = ToSpanningForest()(random_graph(30, 60))
    forest = Forest.from_data(data)
    data.node = torch.arange(30)
    for part in RandomNodeLoader(data, num_parts=3):
        sampled = Forest.from_data(part)
        assert sampled.parent.tolist() == parents_left(forest, part.node.tolist())


@pytest.mark.parametrize("added", [[[0], [3]], [[1], [3]], [[3], [1]]])
def test_edges_that_are_not_of_the_forest_are_refused(added):
    chain = Data(x=torch.arange(4.0)[:, None], edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]))
    data = ToSpanningForest("euclidean")(chain)
    data.edge_index = torch.cat([data.edge_index, torch.tensor(added)], dim=1)
    with pytest.raises(ValueError, match="'edge_index' must hold edges of the forest alone"):
        Forest.from_data(data)
    data.edge_index = torch.tensor([[0, 2], [1, 2]])
    assert Forest.from_data(data).parent.tolist() == [0, 0, 2, 3], "a self-loop is no edge"


def test_two_ends_of_equal_depth_are_refused():
    data = Data(edge_index=torch.tensor([[0], [1]]), tree_depth=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="of equal depth"):
        Forest.from_data(data)


@pytest.mark.parametrize("edge", [[1, 2], [-1, 0]])
def test_nodes_without_a_depth_are_refused(edge):
    data = Data(edge_index=torch.tensor(edge)[:, None], tree_depth=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=f"from 0 to 1, got {edge[0]} to {edge[1]}"):
        Forest.from_data(data)


@pytest.mark.parametrize(
    "depth, found", [(torch.tensor([[0], [1]]), r"\[2, 1\]"), ([0, 1], "list")]
)
def test_depths_of_another_form_are_refused(depth, found):
    data = Data(edge_index=torch.tensor([[0], [1]]), tree_depth=depth)
    with pytest.raises(ValueError, match=rf"'tree_depth' must be a tensor .*, got {found}"):
        Forest.from_data(data)


def test_what_carries_no_forest_is_refused():
    with pytest.raises(ValueError, match="must carry 'tree_depth', as ToSpanningForest"):
        Forest.from_data(random_graph(4, 4))
    with pytest.raises(TypeError, match="'data' must be a Data, got Tensor"):
        Forest.from_data(torch.zeros(2, 0))
