import copy

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from torch.testing import assert_close
from torch_geometric.data import Batch, Data

import groot_graph.nn.tree_topology
from groot_graph import Forest, NotANumberError, minimum_spanning_forest
from groot_graph.nn import TreeTopology
from tests.equipment.adjacencies import FORMS, adjacency_forms
from tests.equipment.graphs import random_graph
from tests.equipment.modules import pickled

EDGE_INDEX = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 3]])


def chebyshev(x_i, x_j):
    return (x_i - x_j).abs().amax(dim=-1)


def exp_negative_cosine(a, b):
    return np.exp(-(a @ b) / np.sqrt((a @ a) * (b @ b)))


METRICS = {
    "cosine": exp_negative_cosine,
    "euclidean": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
    "manhattan": lambda a, b: np.abs(a - b).sum(),
    chebyshev: lambda a, b: np.abs(a - b).max(),
}


def name_of(metric) -> str:
    return getattr(metric, "__name__", metric)


def edges_of(forest: Forest) -> set:
    pairs = enumerate(forest.parent.tolist())
    return {frozenset(pair) for pair in pairs if pair[0] != pair[1]}


def scipy_forest(x, edge_index, dissimilarity, sign=1) -> set:
    """SciPy reads a weight of zero as no edge, so weights are shifted above it."""
    simple = edge_index.sort(dim=0).values.unique(dim=1)
    row, col = simple[:, simple[0] != simple[1]].numpy()
    weight = [
        sign * dissimilarity(x[i].numpy(), x[j].numpy()) for i, j in zip(row, col, strict=True)
    ]
    weight = np.array(weight) - min(weight) + 1.0
    kept = minimum_spanning_tree(coo_matrix((weight, (row, col)), shape=(len(x), len(x))))
    return {frozenset(pair) for pair in np.stack(kept.nonzero(), axis=1).tolist()}


def test_repr():
    assert str(TreeTopology()) == "TreeTopology(metric=cosine, tree=min, root=first)"
    topology = TreeTopology(metric=chebyshev, tree="max", root="last")
    assert str(topology) == "TreeTopology(metric=chebyshev, tree=max, root=last)"


@pytest.mark.parametrize("metric", METRICS, ids=name_of)
@pytest.mark.parametrize("tree,sign", [("min", 1), ("max", -1)], ids=["min", "max"])
@pytest.mark.parametrize("num_nodes,num_edges,channels", [(9, 31, 3), (63, 60, 5), (63, 400, 17)])
def test_same_forest_as_scipy(metric, tree, sign, num_nodes, num_edges, channels):
    x = torch.randn(num_nodes, channels, dtype=torch.float64)
    edge_index = random_graph(num_nodes, num_edges, seed=1)
    forest = TreeTopology(metric, tree)(x, edge_index)
    assert edges_of(forest) == scipy_forest(x, edge_index, METRICS[metric], sign)


@pytest.mark.parametrize("elements", [1, 35, 299])
@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_the_metric_in_parts_gives_the_same_forest(metric, elements, monkeypatch):
    x, edge_index = torch.randn(17, 5), random_graph(17, 60)
    forest = TreeTopology(metric)(x, edge_index)
    monkeypatch.setattr(groot_graph.nn.tree_topology, "ELEMENTS_IN_CACHE", elements)
    assert TreeTopology(metric)(x, edge_index).parent.equal(forest.parent)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_every_adjacency_form_gives_the_same_forest(form, metric):
    x = torch.randn(17, 5)
    edge_index = random_graph(17, 60).unique(dim=1)
    forest = TreeTopology(metric)(x, edge_index)
    out = TreeTopology(metric)(x, adjacency_forms(edge_index, 17)[form])
    assert out.parent.equal(forest.parent)
    assert out.order.equal(forest.order)


@pytest.mark.parametrize("tree", ["min", "max", "random"])
@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_a_length_is_the_dissimilarity_of_a_node_and_its_parent(metric, tree):
    topology = TreeTopology(metric, tree)
    x, edge_index = torch.randn(20, 5, dtype=torch.float64), random_graph(20, 50)
    torch.manual_seed(1)
    forest, edge_length = topology.forest_and_length(x, edge_index)
    torch.manual_seed(1)
    assert forest.parent.equal(topology(x, edge_index).parent)
    children = (forest.parent != torch.arange(20)).nonzero().flatten().tolist()
    expected = [METRICS[metric](x[i].numpy(), x[forest.parent[i]].numpy()) for i in children]
    assert_close(edge_length[children], torch.tensor(expected, dtype=torch.float64))
    if metric != "cosine":
        assert_close(edge_length[forest.roots], torch.zeros(forest.num_trees).double())


def test_the_learned_metric_is_the_distance_of_embeddings():
    topology = TreeTopology("learned", channels=5, embedding_dim=3)
    x, edge_index = torch.randn(20, 5), random_graph(20, 50)
    embedded = x @ topology.embedding.weight.t()
    forest, edge_length = topology.forest_and_length(x, edge_index)
    assert forest.parent.equal(TreeTopology("euclidean")(embedded, edge_index).parent)
    assert_close(edge_length, (embedded - embedded[forest.parent]).norm(dim=1))
    assert topology(x, edge_index).parent.equal(forest.parent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same, edge_length_under_autocast = topology.forest_and_length(x, edge_index)
    assert same.parent.equal(forest.parent) and edge_length_under_autocast.equal(edge_length)


@pytest.mark.parametrize("metric", ["learned", "euclidean", "manhattan", "cosine", chebyshev])
def test_gradients_of_lengths(metric):
    topology = TreeTopology(metric, channels=4, embedding_dim=2).double()
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    edge_index = random_graph(9, 20)

    # The parameters are the module's own, which gradcheck changes in place.
    def edge_length_of(x, *parameters):
        return topology.forest_and_length(x, edge_index)[1]

    inputs = x, *topology.parameters()
    assert torch.autograd.gradcheck(edge_length_of, inputs)
    assert torch.autograd.gradgradcheck(edge_length_of, inputs)


def test_gradients_of_given_weights():
    topology, x, edge_index = TreeTopology(), torch.randn(9, 4), random_graph(9, 20)
    edge_weight = torch.rand(20, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda weight: topology.forest_and_length(x, edge_index, weight)[1], (edge_weight,)
    )


def test_given_weights_are_lengths():
    edge_index = torch.tensor([[0, 2, 1, 0, 1], [1, 1, 0, 2, 2]])
    edge_weight = torch.tensor([5, 2, 3, 4, 9])
    forest, edge_length = TreeTopology().forest_and_length(
        torch.ones(3, 1), edge_index, edge_weight
    )
    assert forest.parent.tolist() == [0, 0, 1]
    assert edge_length.tolist() == [0.0, 3.0, 2.0] and edge_length.is_floating_point()


def test_edge_weight_replaces_the_metric():
    x, edge_weight = torch.randn(4, 3), torch.tensor([4.0, 1.0, 2.0, 3.0])
    forest = TreeTopology()(x, EDGE_INDEX, edge_weight)
    assert forest.parent.tolist() == [0, 2, 3, 0]
    forest = TreeTopology(tree="max")(x, EDGE_INDEX, edge_weight)
    assert edges_of(forest) == {frozenset(pair) for pair in [(0, 1), (2, 3), (0, 3)]}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64], ids=str)
def test_max_of_integer_weights_does_not_overflow(dtype):
    lowest = torch.iinfo(dtype).min
    edge_weight = torch.tensor([lowest, lowest + 1, 5, 6], dtype=dtype)
    forest = TreeTopology(tree="max")(torch.randn(4, 3), EDGE_INDEX, edge_weight)
    assert edges_of(forest) == {frozenset(pair) for pair in [(1, 2), (2, 3), (0, 3)]}


def test_ties_go_to_the_lower_edge_number():
    forest = TreeTopology()(torch.ones(4, 3), EDGE_INDEX)
    assert edges_of(forest) == {frozenset(pair) for pair in [(0, 1), (1, 2), (2, 3)]}


@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_zero_features_give_a_forest(metric):
    forest = TreeTopology(metric)(torch.zeros(4, 3), EDGE_INDEX)
    assert forest.num_trees == 1


def test_random_tree_follows_the_seed_alone():
    edge_index = random_graph(63, 400)
    topology = TreeTopology(tree="random")

    def grow(seed, edge_weight=None):
        torch.manual_seed(seed)
        return topology(torch.randn(63, 1), edge_index, edge_weight).parent

    assert grow(1).equal(grow(1))
    assert grow(1).equal(grow(1, torch.randn(400)))
    assert not grow(1).equal(grow(2))
    keeps_all_connected = minimum_spanning_forest(edge_index, torch.zeros(400), 63).sum()
    assert (grow(1) != torch.arange(63)).sum() == keeps_all_connected


@pytest.mark.parametrize(
    "root,roots",
    [("first", [0, 2]), ("last", [1, 4]), (torch.tensor([3, 0]), [0, 3]), (None, [1, 4])],
    ids=["first", "last", "given", "default"],
)
def test_root(root, roots):
    edge_index = torch.tensor([[0, 2, 3], [1, 3, 4]])
    forest = TreeTopology(root="last")(torch.randn(5, 3), edge_index, root=root)
    assert sorted(forest.roots.tolist()) == roots


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_half_precision_is_measured_in_float32(dtype, metric):
    x, edge_index = (300 * torch.randn(63, 17)).to(dtype), random_graph(63, 400)
    forest = TreeTopology(metric)(x, edge_index)
    assert forest.parent.equal(TreeTopology(metric)(x.float(), edge_index).parent)


def test_no_gradient_flows_through_the_choice():
    x, edge_weight = torch.randn(4, 3, requires_grad=True), torch.rand(4, requires_grad=True)
    seen = []

    def metric(x_i, x_j):
        seen.append(x_i.requires_grad or torch.is_grad_enabled())
        return chebyshev(x_i, x_j)

    TreeTopology(metric)(x, EDGE_INDEX)
    TreeTopology()(x, EDGE_INDEX, edge_weight)
    assert seen == [False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("num_nodes", [0, 1, 3])
@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_no_edges(num_nodes, metric):
    forest = TreeTopology(metric)(torch.randn(num_nodes, 5), torch.empty(2, 0).long())
    assert forest.parent.equal(torch.arange(num_nodes))


@pytest.mark.parametrize("tree", ["min", "max"])
def test_batch_of_graphs(tree):
    graphs = [
        Data(x=torch.randn(num_nodes, 5), edge_index=random_graph(num_nodes, 3 * num_nodes))
        for num_nodes in (7, 1, 12)
    ]
    batch = Batch.from_data_list(graphs)
    parent = TreeTopology(tree=tree)(batch.x, batch.edge_index).parent
    for data, start, part in zip(graphs, batch.ptr[:-1], parent.split([7, 1, 12]), strict=True):
        assert part.equal(TreeTopology(tree=tree)(data.x, data.edge_index).parent + start)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies(duplicate):
    x, edge_index = torch.randn(17, 5), random_graph(17, 60)
    topology = TreeTopology(chebyshev, "max", "last")
    copied = duplicate(topology)
    assert str(copied) == str(topology)
    assert copied(x, edge_index).parent.equal(topology(x, edge_index).parent)


def test_compile():
    topology = TreeTopology()
    compiled = torch.compile(topology, backend="aot_eager", fullgraph=True)
    for num_nodes in (17, 12):
        x, edge_index = torch.randn(num_nodes, 5), random_graph(num_nodes, 60)
        assert compiled(x, edge_index).parent.equal(topology(x, edge_index).parent)


@pytest.mark.parametrize(
    "argument,value,error,message",
    [
        ("metric", "hamming", ValueError, "'metric' must be one of .*'cosine'.*, got 'hamming'"),
        ("metric", None, TypeError, "'metric' must be one of .*, got NoneType"),
        ("tree", "maximum", ValueError, "'tree' must be one of .*'max'.*, got 'maximum'"),
        ("tree", 1, TypeError, "'tree' must be one of .*, got int"),
        ("root", "middle", ValueError, "'root' must be one of .*'first'.*, got 'middle'"),
        ("root", torch.tensor([0]), TypeError, "'root' must be one of .*, got Tensor"),
    ],
)
def test_bad_constructor_argument(argument, value, error, message):
    with pytest.raises(error, match=message):
        TreeTopology(**{argument: value})


x = torch.randn(4, 3)


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"x": x.numpy()}, TypeError, "'x' must be a torch.Tensor, got ndarray"),
        ({"x": x.long()}, TypeError, "'x' must have a floating point dtype, got torch.int64"),
        ({"x": x[0]}, ValueError, r"'x' must have shape \[num_nodes, channels\].*, got \[3\]"),
        ({"x": x[:3]}, ValueError, "'edge_index' must hold node numbers from 0 .*= 2, got 3"),
        ({"x": x / 0}, ValueError, "'x' must give a dissimilarity for every edge, got NaN at edge"),
        ({"edge_index": None}, TypeError, "'edge_index' must be a torch.Tensor, got NoneType"),
        ({"edge_index": EDGE_INDEX[0]}, ValueError, r"'edge_index' must have shape \[2, num_edges"),
        ({"edge_weight": [1.0] * 4}, TypeError, "'edge_weight' must be a torch.Tensor, got list"),
        (
            {"edge_weight": torch.rand(4, 1)},
            ValueError,
            r"'edge_weight' must have shape \[num_edges\] = \[4\], got \[4, 1\]",
        ),
        ({"edge_weight": torch.rand(3)}, ValueError, r"'edge_weight' must have .*, got \[3\]"),
        ({"edge_weight": torch.ones(4) * torch.nan}, ValueError, "'edge_weight' .* NaN"),
        ({"edge_weight": torch.ones(4).bool()}, TypeError, "'edge_weight' .*, got torch.bool"),
        ({"edge_weight": torch.rand(4, device="meta")}, ValueError, "'edge_weight' .* device"),
        ({"root": "middle"}, ValueError, "'root' must be 'first', 'last' or .*, got 'middle'"),
        ({"root": 0}, TypeError, "'root' must be .*, got int"),
        ({"root": torch.tensor([0.0])}, TypeError, "'root' must have dtype torch.int64"),
        ({"root": torch.tensor([4])}, ValueError, "'root' .*, got 4"),
        ({"root": torch.tensor([0, 1])}, ValueError, "'root' "),
        ({"root": torch.empty(0).long()}, ValueError, "'root' "),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        TreeTopology()(**{"x": x, "edge_index": EDGE_INDEX, **arguments})


@pytest.mark.parametrize(
    "metric,error,message",
    [
        (
            lambda x_i, x_j: 1.0,
            TypeError,
            r"'metric\(x_i, x_j\)' must be a torch.Tensor, got float",
        ),
        (lambda x_i, x_j: x_i, ValueError, r"\[num_edges\] = \[4\], got \[4, 3\]"),
        (lambda x_i, x_j: x_i.sum(), ValueError, r"\[num_edges\] = \[4\], got \[\]"),
        (lambda x_i, x_j: x_i[:, 0] / 0 * 0, ValueError, "'x' must give a dissimilarity"),
    ],
    ids=["float", "matrix", "scalar", "nan"],
)
def test_bad_metric(metric, error, message):
    with pytest.raises(error, match=message):
        TreeTopology(metric)(x, EDGE_INDEX)


@pytest.mark.parametrize("tree", ["min", "max"])
def test_a_nan_is_told_in_the_name_of_what_was_given(tree):
    topology = TreeTopology(tree=tree)
    with pytest.raises(NotANumberError, match="'x' must give a dissimilarity .* NaN at edge 0"):
        topology(x * torch.nan, EDGE_INDEX)
    weight = torch.tensor([1.0, 2.0, torch.nan, 3.0])
    with pytest.raises(NotANumberError, match="'edge_weight' must not hold NaN, got NaN at edge 2"):
        topology(x, EDGE_INDEX, weight)
    # Weights that a layer has computed are told in the name of its features.
    with pytest.raises(NotANumberError, match="'x' must .* NaN at edge 2"):
        topology.grow(x, EDGE_INDEX, weight)


def test_a_compiled_topology_tells_a_nan_and_a_node_out_of_range():
    compiled = torch.compile(TreeTopology(), backend="aot_eager", fullgraph=True)
    compiled(x, EDGE_INDEX)
    with pytest.raises(NotANumberError, match="'x' must give a dissimilarity"):
        compiled(x * torch.nan, EDGE_INDEX)


def test_a_random_forest_computes_no_weight():
    def refuse(x_i, x_j):
        raise AssertionError("a weight was computed")

    assert TreeTopology(refuse, tree="random")(x, EDGE_INDEX).num_nodes == 4


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-3, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan", "learned"])
def test_the_scale_of_features_decides_no_tree(metric, scale):
    topology = TreeTopology(metric, channels=5)
    x, edge_index = torch.randn(30, 5), random_graph(30, 90)
    forest, edge_length = topology.forest_and_length(x.double() * scale, edge_index)
    found, length = topology.forest_and_length(x * scale, edge_index)
    assert found.parent.equal(forest.parent) and found.parent.equal(topology(x, edge_index).parent)
    assert_close(length.double() / scale, edge_length / scale, atol=1e-5, rtol=1e-5)


def test_features_of_very_different_size_are_compared():
    x = torch.tensor([[1e20, 0.0], [1e-20, 0.0], [0.0, 1.0], [0.0, 0.0]])
    edge_index = torch.tensor([[0, 0, 1, 2], [1, 2, 2, 3]])
    assert TreeTopology()(x, edge_index).parent.tolist() == [0, 0, 0, 2]
    lengths = TreeTopology("euclidean").forest_and_length(x, edge_index)[1]
    assert lengths.tolist() == [0.0, pytest.approx(1e20), 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32], ids=str)
def test_unsigned_weights_are_ranked(dtype):
    edge_index, weight = torch.tensor([[0, 1, 0], [1, 2, 2]]), torch.tensor([0, 1, 200])
    features = torch.zeros(3, 1)
    assert TreeTopology()(features, edge_index, weight.to(dtype)).parent.tolist() == [0, 0, 1]
    greatest = TreeTopology(tree="max")(features, edge_index, weight.to(dtype))
    assert greatest.parent.tolist() == [0, 2, 0]
    _, length = TreeTopology().forest_and_length(features, edge_index, weight.to(dtype))
    assert length.tolist() == [0.0, 0.0, 1.0]


def test_features_that_are_not_read_may_have_any_dtype():
    x, edge_index = torch.arange(6).view(6, 1), random_graph(6, 12)
    TreeTopology(tree="random")(x, edge_index)
    weight = torch.rand(12)
    expected = TreeTopology()(x.float(), edge_index, weight)
    assert TreeTopology()(x, edge_index, weight).parent.equal(expected.parent)
    for read in (TreeTopology(), TreeTopology(tree="max")):
        with pytest.raises(
            TypeError, match="'x' must have a floating point dtype, got torch.int64"
        ):
            read(x, edge_index)
    with pytest.raises(TypeError, match="'x' must have a floating point dtype"):
        TreeTopology(tree="random").forest_and_length(x, edge_index)
