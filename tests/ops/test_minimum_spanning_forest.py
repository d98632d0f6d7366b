import math

import networkx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.utils import grid, to_undirected

from groot_graph import minimum_spanning_forest, root_forest
from groot_graph.ops.minimum_spanning_forest.reference import minimum_spanning_forest_reference
from tests.equipment.graphs import random_graph, to_edge_index
from tests.equipment.strategies import multigraphs

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)
SPECIAL_WEIGHTS = [-math.inf, -1.0, -0.0, 0.0, 2.0**-24, 1.0, math.inf]


@pytest.fixture
def span(backend):
    return backend.minimum_spanning_forest


def kruskal(edges: list, weights: list, num_nodes: int) -> list[bool]:
    """The spanning forest under (weight, edge number), as a mask."""
    leader = list(range(num_nodes))

    def find(node):
        while leader[node] != node:
            node = leader[node]
        return node

    kept = [False] * len(edges)
    for e in sorted(range(len(edges)), key=lambda e: (weights[e], e)):
        i, j = map(find, edges[e])
        kept[e] = i != j
        leader[i] = j
    return kept


def num_components(edge_index, num_nodes) -> int:
    ones = np.ones(edge_index.size(1))
    adjacency = scipy.sparse.coo_matrix((ones, edge_index.numpy()), (num_nodes, num_nodes))
    return scipy.sparse.csgraph.connected_components(adjacency, directed=False)[0]


def weights_of(dtype):
    if dtype.is_floating_point:
        return st.one_of(
            st.sampled_from(SPECIAL_WEIGHTS), st.floats(-4, 4, width=32, allow_nan=False)
        )
    limits = torch.iinfo(dtype)
    return st.one_of(
        st.integers(max(limits.min, -2), 2),
        st.integers(limits.min, limits.max),
        st.sampled_from([limits.min, limits.min + 1, limits.max - 1, limits.max]),
    )


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@given(graph=multigraphs(), data=st.data())
def test_equals_kruskal_edge_for_edge(dtype, span, graph, data):
    edges, num_nodes = graph
    same_length = st.lists(weights_of(dtype), min_size=len(edges), max_size=len(edges))
    edge_weight = torch.tensor(data.draw(same_length), dtype=dtype)
    expected = kruskal(edges, edge_weight.tolist(), num_nodes)
    edge_mask = span(to_edge_index(edges), edge_weight, num_nodes)
    assert edge_mask.dtype == torch.bool
    assert edge_mask.tolist() == expected


@given(graph=multigraphs(max_nodes=8, max_edges=40), data=st.data())
def test_ties_go_to_the_lower_edge_number(span, graph, data):
    edges, num_nodes = graph
    few_weights = st.sampled_from(data.draw(st.sampled_from([[1.0], [-0.0, 0.0], SPECIAL_WEIGHTS])))
    weights = data.draw(st.lists(few_weights, min_size=len(edges), max_size=len(edges)))
    expected = kruskal(edges, weights, num_nodes)
    assert span(to_edge_index(edges), torch.tensor(weights), num_nodes).tolist() == expected


@pytest.mark.parametrize(
    "edges, weights, num_nodes, expected",
    [
        pytest.param([], [], 0, [], id="no-node"),
        pytest.param([], [], 5, [], id="no-edge"),
        pytest.param([(0, 0)], [-1.0], 1, [0], id="self-loop"),
        pytest.param([(0, 0), (1, 0), (1, 1)], [-9.0, 3.0, -9.0], 2, [0, 1, 0], id="self-loops"),
        pytest.param([(0, 1), (1, 0)], [1.0, 1.0], 2, [1, 0], id="both-directions"),
        pytest.param([(0, 1), (0, 1), (1, 0)], [2.0, 1.0, 1.0], 2, [0, 1, 0], id="parallel"),
        pytest.param([(0, 1), (1, 2), (2, 0)], [1.0, 1.0, 1.0], 3, [1, 1, 0], id="all-equal"),
        pytest.param([(0, 1), (1, 2), (2, 0)], [0.0, -0.0, 0.0], 3, [1, 1, 0], id="signed-zero"),
        pytest.param([(0, 1), (1, 2), (2, 0)], [-1.0, -3.0, -2.0], 3, [0, 1, 1], id="negative"),
        pytest.param(
            [(0, 1), (1, 2), (2, 0)], [math.inf, math.inf, -math.inf], 3, [1, 0, 1], id="infinite"
        ),
        pytest.param([(0, 1), (3, 4)], [math.inf, 1.0], 6, [1, 1], id="isolated-nodes"),
        pytest.param(
            [(0, 1), (1, 2), (2, 0)], [2**53 + 1, 2**53, 2**53], 3, [0, 1, 1], id="beyond-float64"
        ),
    ],
)
def test_of_small_graphs(edges, weights, num_nodes, expected, span):
    edge_mask = span(to_edge_index(edges), torch.tensor(weights), num_nodes)
    assert edge_mask.tolist() == [bool(kept) for kept in expected]


@pytest.mark.parametrize("num_nodes, num_edges", [(60, 63), (60, 1001), (1001, 2003)])
def test_weights_that_differ_in_their_last_bits_alone(num_nodes, num_edges, span):
    edge_index = random_graph(num_nodes, num_edges)
    steps = torch.randint(-num_edges, num_edges, (num_edges,))
    expected = kruskal(edge_index.t().tolist(), steps.tolist(), num_nodes)
    assert span(edge_index, 3 + steps.double() * 2.0**-51, num_nodes).tolist() == expected
    assert span(edge_index, 2**62 + steps, num_nodes).tolist() == expected


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_of_no_edge_in_every_dtype(dtype, span):
    edge_mask = span(torch.empty(2, 0, dtype=torch.long), torch.empty(0, dtype=dtype), 3)
    assert edge_mask.shape == (0,) and edge_mask.dtype == torch.bool


def test_num_nodes_is_inferred():
    edge_index = torch.tensor([[0, 4, 4], [4, 2, 0]])
    assert minimum_spanning_forest(edge_index, torch.tensor([2.0, 1, 3])).tolist() == [1, 1, 0]
    no_edge = torch.empty(2, 0, dtype=torch.long)
    assert minimum_spanning_forest(no_edge, torch.empty(0)).tolist() == []


@pytest.mark.parametrize(
    "num_nodes, num_edges", [(63, 60), (60, 257), (1000, 1700), (1000, 20_000), (20_001, 60_000)]
)
def test_total_weight_against_scipy(num_nodes, num_edges):
    edge_index = random_graph(num_nodes, num_edges)
    edge_weight = torch.rand(num_edges, dtype=torch.float64) + 0.1
    edge_mask = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    assert int(edge_mask.sum()) == num_nodes - num_components(edge_index, num_nodes)

    # SciPy adds parallel edges up, so it is given the lightest of each pair, without self-loops.
    low, high = edge_index.sort(dim=0).values.numpy()
    order = np.lexsort((edge_weight.numpy(), high, low))
    low, high, weight = low[order], high[order], edge_weight.numpy()[order]
    lightest = np.r_[True, (np.diff(low) != 0) | (np.diff(high) != 0)] & (low != high)
    graph = scipy.sparse.coo_matrix(
        (weight[lightest], (low[lightest], high[lightest])), (num_nodes, num_nodes)
    )
    expected = scipy.sparse.csgraph.minimum_spanning_tree(graph).sum()
    assert float(edge_weight[edge_mask].sum()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
@pytest.mark.parametrize("num_graphs, height, width", [(1, 60, 63), (3, 17, 16), (1, 1, 257)])
def test_cpu_equals_reference_on_grids_full_of_ties(num_graphs, height, width, dtype):
    edge_index, _ = grid(height, width)
    num_nodes = height * width
    edge_index = torch.cat([edge_index + i * num_nodes for i in range(num_graphs)], dim=1)
    edge_weight = torch.randint(10, (edge_index.size(1),)).to(dtype)
    edge_mask = minimum_spanning_forest(edge_index, edge_weight, num_graphs * num_nodes)
    expected = minimum_spanning_forest_reference(edge_index, edge_weight, num_graphs * num_nodes)
    assert torch.equal(edge_mask, expected)
    assert int(edge_mask.sum()) == num_graphs * (num_nodes - 1)


def test_of_a_long_chain_with_falling_weights(span):
    # Every component's lightest edge leads the same way, which makes the longest possible hooks.
    num_nodes = 5001
    edge_index = torch.stack([torch.arange(num_nodes - 1), torch.arange(1, num_nodes)])
    edge_weight = torch.arange(num_nodes - 1, 0, -1).float()
    assert span(edge_index, edge_weight, num_nodes).all()


def test_a_batch_of_graphs_gives_what_each_gives_alone():
    edge_index = to_undirected(random_graph(60, 257))
    edge_weight = torch.rand(2 * edge_index.size(1))
    both = torch.cat([edge_index, edge_index + 60], dim=1)
    edge_mask = minimum_spanning_forest(both, edge_weight, 120)
    alone = [minimum_spanning_forest(edge_index, w, 60) for w in edge_weight.chunk(2)]
    assert torch.equal(edge_mask, torch.cat(alone))


def test_takes_an_edge_index_of_pyg():
    edge_index = EdgeIndex([[0, 1, 2], [1, 2, 0]], sparse_size=(3, 3))
    edge_mask = minimum_spanning_forest(edge_index, torch.tensor([3.0, 1.0, 2.0]))
    assert type(edge_mask) is torch.Tensor
    assert edge_mask.tolist() == [False, True, True]
    forest = root_forest(edge_index, edge_mask)
    assert type(forest.order) is type(forest.parent) is torch.Tensor
    assert forest.parent.tolist() == [0, 2, 0]


def test_weights_that_require_grad():
    edge_index = random_graph(17, 63)
    edge_weight = torch.rand(63, requires_grad=True)
    edge_mask = minimum_spanning_forest(edge_index, edge_weight, 17)
    assert not edge_mask.requires_grad
    assert torch.equal(edge_mask, minimum_spanning_forest(edge_index, edge_weight.detach(), 17))


def test_strided_inputs(span):
    edge_index = random_graph(17, 63)
    edge_weight = torch.rand(63)
    expected = span(edge_index, edge_weight, 17)
    rows = edge_index.t().contiguous().t()
    every_other = torch.stack([edge_weight, -edge_weight], dim=1).flatten()[::2]
    assert not rows.is_contiguous() and not every_other.is_contiguous()
    assert torch.equal(span(rows, every_other, 17), expected)
    one = torch.ones(1)
    assert torch.equal(span(edge_index, one.expand(63), 17), span(edge_index, torch.ones(63), 17))


def test_inputs_are_not_changed(span):
    edge_index, edge_weight = random_graph(17, 63), torch.randn(63)
    copies = edge_index.clone(), edge_weight.clone()
    span(edge_index, edge_weight, 17)
    assert torch.equal(edge_index, copies[0]) and torch.equal(edge_weight, copies[1])


def test_same_mask_with_any_number_of_threads():
    edge_index = random_graph(20_001, 60_000)
    edge_weight = torch.randint(5, (60_000,)).float()
    masks = []
    for num_threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(num_threads)
        masks.append(minimum_spanning_forest(edge_index, edge_weight, 20_001))
    assert all(torch.equal(mask, masks[0]) for mask in masks)


GOOD_INPUT = {
    "edge_index": torch.tensor([[0, 1, 2, 4], [1, 2, 0, 3]]),
    "edge_weight": torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "num_nodes": 5,
}
EDGE_INDEX = GOOD_INPUT["edge_index"]


@pytest.mark.parametrize(
    "argument, value, error, found",
    [
        ("edge_index", [[0, 1], [1, 2]], TypeError, "list"),
        ("edge_index", None, TypeError, "NoneType"),
        ("edge_index", EDGE_INDEX.int(), TypeError, "torch.int32"),
        ("edge_index", EDGE_INDEX.float(), TypeError, "torch.float32"),
        ("edge_index", EDGE_INDEX.new_zeros(3, 4), ValueError, "[3, 4]"),
        ("edge_index", EDGE_INDEX.t(), ValueError, "[4, 2]"),
        ("edge_index", EDGE_INDEX[0], ValueError, "[4]"),
        ("edge_index", EDGE_INDEX + 1, ValueError, "5"),
        ("edge_index", EDGE_INDEX - 1, ValueError, "-1"),
        ("edge_weight", [1.0, 2.0, 3.0, 4.0], TypeError, "list"),
        ("edge_weight", None, TypeError, "NoneType"),
        ("edge_weight", torch.ones(4, dtype=torch.complex64), TypeError, "torch.complex64"),
        ("edge_weight", torch.ones(4, dtype=torch.bool), TypeError, "torch.bool"),
        ("edge_weight", torch.ones(4, dtype=torch.uint64), TypeError, "torch.uint64"),
        ("edge_weight", torch.ones(4, 1), ValueError, "[4, 1]"),
        ("edge_weight", torch.ones(3), ValueError, "[3]"),
        ("edge_weight", torch.tensor(1.0), ValueError, "[]"),
        ("edge_weight", torch.ones(4, device="meta"), ValueError, "meta"),
        ("edge_weight", torch.tensor([1.0, 2.0, math.nan, 4.0]), ValueError, "nan"),
        ("num_nodes", "5", TypeError, "str"),
        ("num_nodes", 5.0, TypeError, "float"),
        ("num_nodes", True, TypeError, "bool"),
        ("num_nodes", -1, ValueError, "-1"),
    ],
)
def test_bad_input_is_refused(argument, value, error, found):
    with pytest.raises(error) as refusal:
        minimum_spanning_forest(**{**GOOD_INPUT, argument: value})
    message = str(refusal.value)
    assert f"'{argument}' must" in message
    assert found.lower() in message.lower().split("got", 1)[1]


def test_num_nodes_below_the_highest_node_is_refused():
    with pytest.raises(ValueError, match=r"'edge_index' must .*num_nodes.*3.*got 4"):
        minimum_spanning_forest(**{**GOOD_INPUT, "num_nodes": 4})


def test_negative_node_is_refused_where_num_nodes_is_inferred():
    with pytest.raises(ValueError, match="'edge_index' must .*got -1"):
        minimum_spanning_forest(torch.tensor([[0, -1], [1, 2]]), torch.ones(2))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_is_refused_in_every_dtype_and_on_self_loops(dtype):
    edge_weight = torch.tensor([1.0, math.nan]).to(dtype)
    with pytest.raises(ValueError, match="'edge_weight' must"):
        minimum_spanning_forest(torch.tensor([[0, 1], [1, 1]]), edge_weight)


@pytest.mark.parametrize("node", [-1, 4])
def test_a_compiled_graph_refuses_a_node_out_of_range(node):
    torch.compiler.reset()
    compiled = torch.compile(
        lambda edge_index, weight: minimum_spanning_forest(edge_index, weight, 4),
        backend="aot_eager",
        fullgraph=True,
    )
    edge_index, weight = torch.tensor([[0, 1, 2], [1, 2, 3]]), torch.rand(3)
    assert compiled(edge_index, weight).all()
    edge_index[1, 1] = node
    with pytest.raises(ValueError, match=f"from 0 to num_nodes - 1 = 3, got {node}"):
        compiled(edge_index, weight)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("graph", "hint"),
    [
        (Data(edge_index=torch.zeros(2, 1)), "Data: hand over its 'edge_index' and 'edge_weight'"),
        (networkx.path_graph(3), "Graph: torch_geometric.utils.from_networkx makes a Data of it"),
        (
            scipy.sparse.csr_array((3, 3)),
            "csr_array: torch_geometric.utils.from_scipy",
        ),
        (np.zeros((2, 1), dtype=int), "ndarray: torch.from_numpy makes one of it"),
        (pd.DataFrame([[0], [1]]), r"DataFrame: torch.from_numpy\(frame.to_numpy\(\)\) makes one"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whole_graphs_are_told_how_to_be_taken_apart(graph, hint):
    message = f"'edge_index' must be a torch.Tensor, got {hint}"
    with pytest.raises(TypeError, match=message):
        minimum_spanning_forest(graph)
    with pytest.raises(TypeError, match=message):
        root_forest(graph)


def test_weights_are_asked_for():
    with pytest.raises(TypeError, match="'edge_weight' must be a torch.Tensor, got NoneType"):
        minimum_spanning_forest(torch.tensor([[0], [1]]))
