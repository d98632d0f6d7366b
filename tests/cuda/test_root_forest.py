from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groot_graph import Forest, checks, minimum_spanning_forest, root_forest
from groot_graph.ops.root_forest import cuda
from groot_graph.ops.root_forest.cuda import root_forest_cuda
from tests.equipment.cuda_host import recorded_launches
from tests.equipment.cuda_host.sanitize import run_sanitized
from tests.equipment.graphs import (
    FOREST_KINDS,
    forest_edges,
    make_forest,
    random_graph,
    to_edge_index,
)
from tests.equipment.on_host import cuda_kernels
from tests.equipment.strategies import multigraphs


@pytest.mark.parametrize("preempt", [False, True], ids=["whole-turns", "preempted"])
def test_same_bits_in_any_order_of_threads(preempt):
    edge_index = forest_edges("several", 700)
    results = []
    for seed in range(5):
        with cuda_kernels(seed, preempt):
            results.append(root_forest_cuda(edge_index, None, 700, "first"))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("kind", ["chain", "star", "random", "several"])
def test_no_list_has_more_splitters_than_the_jumps_pass(kind):
    edge_index = forest_edges(kind, 700)
    with cuda_kernels(), recorded_launches() as launched:
        root_forest_cuda(edge_index, None, 700, "first")
    splitters = next(launch.arguments[0] for launch in launched if launch.kernel == "jump")
    num_arcs = 2 * edge_index.size(1)
    is_splitter = splitters == torch.arange(len(splitters))
    # So many arcs in a row have one, and every tree has a head.
    num_trees = 700 - edge_index.size(1)
    assert num_arcs // 16 <= is_splitter[:num_arcs].sum()
    assert is_splitter.sum() <= cuda.most_splitters(num_arcs) - 1 + num_trees
    assert cuda.most_splitters(num_arcs) == -(-num_arcs // 16) + 1


@pytest.mark.parametrize("kind", ["chain", "random"])
def test_as_many_jumps_as_there_can_be(kind):
    expected = make_forest(kind, 700)
    every_arc = {"JUMP": 2, "ARCS_PER_SPLITTER": 1}
    sizes = patch.multiple(cuda, MACROS=cuda.MACROS | every_arc, **every_arc)
    with cuda_kernels(), sizes, recorded_launches() as launched:
        forest = root_forest(forest_edges(kind, 700), num_nodes=700)
    assert torch.equal(forest.parent, expected.parent)
    assert torch.equal(forest.order, expected.order)
    assert [launch.kernel for launch in launched].count("jump") == 11


@pytest.mark.parametrize("num_edges", [100, 698, 699, 2000])
def test_cycles_and_few_edges_leave_a_forest_of_the_components(num_edges):
    edge_index = random_graph(700, num_edges)
    with cuda_kernels(num_edges), unchecked():
        order, parent, _ = root_forest_cuda(edge_index, None, 700, "last")
    mask = minimum_spanning_forest(edge_index, torch.ones(num_edges), 700)
    forest, expected = Forest(order, parent), root_forest(edge_index, mask, 700, root="last")
    assert torch.equal(forest.roots.sort().values, expected.roots.sort().values)


@given(graph=multigraphs(), draw=st.randoms(use_true_random=False))
def test_makes_a_forest_of_anything(graph, draw):
    # On a GPU nothing is checked: cycles, self-loops and numbers out of range have to do no harm.
    edges, num_nodes = graph
    wrong = [(draw.choice([-1, num_nodes, 2**40, 0]), 0) for _ in range(draw.randrange(3))]
    edge_index = to_edge_index(draw.sample(edges + wrong, len(edges) + len(wrong)))
    roots = torch.tensor([draw.randrange(-2, num_nodes + 2) for _ in range(draw.randrange(4))])
    with cuda_kernels(), unchecked():
        for root in ("first", "last", roots.long()):
            order, parent, _ = root_forest_cuda(edge_index, None, num_nodes, root)
            assert order.sort().values.tolist() == list(range(num_nodes))
            place = torch.empty_like(order)
            place[order] = torch.arange(num_nodes)
            is_root = parent == torch.arange(num_nodes)
            assert torch.all((place[parent] < place) | is_root)
            components = Forest(order, parent).num_trees
            valid = edge_index[:, ((edge_index >= 0) & (edge_index < num_nodes)).all(dim=0)]
            mask = minimum_spanning_forest(valid, torch.ones(valid.size(1)), num_nodes)
            assert components == num_nodes - int(mask.sum())


def unchecked():
    """As on a GPU: values are not read."""
    return patch.object(checks, "values_are_checked", lambda tensor: False)


@pytest.mark.parametrize(
    "edges, root, message",
    [
        pytest.param([(0, 1), (1, 2), (2, 0)], "first", "no cycle", id="cycle"),
        pytest.param([(0, 1), (1, 0)], "first", "no cycle", id="edge-twice"),
        pytest.param([(1, 1)], "first", "no cycle", id="self-loop"),
        pytest.param([(0, 1)], [0], "one node of each", id="tree-without-root"),
        pytest.param([(0, 1), (1, 2), (2, 3)], [0, 1], "one node of each", id="two-roots"),
    ],
)
def test_values_are_checked_where_they_may_be_read(edges, root, message):
    edge_index = to_edge_index(edges)
    root = root if isinstance(root, str) else torch.tensor(root)
    with cuda_kernels(), pytest.raises(ValueError, match=message):
        root_forest(edge_index, num_nodes=4, root=root)


def test_too_many_nodes_are_refused():
    with cuda_kernels(), pytest.raises(ValueError, match="'num_nodes' must be at most"):
        root_forest_cuda(to_edge_index([]), None, 2**30 + 1)


def test_no_node():
    with cuda_kernels():
        forest = root_forest(to_edge_index([]), num_nodes=0)
    assert forest.num_nodes == forest.num_trees == 0


@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_plan_of_a_forest_known_by_its_parents(kind):
    expected = make_forest(kind, 700, root="last")
    with cuda_kernels():
        forest = root_forest(forest_edges(kind, 700), num_nodes=700, root="last")
        plan = cuda.root_forest_plan_cuda(expected.order, expected.parent)
    assert torch.equal(forest.parent, expected.parent)
    assert torch.equal(plan, forest._plan.values)


def test_parents_that_are_no_forest_are_refused():
    for parent in ([1, 2, 0], [0, 3, 0], [0, -1, 0], [1, 0, 2]):
        forest = Forest(torch.arange(3), torch.tensor(parent))
        with cuda_kernels(), pytest.raises(ValueError, match="'forest' must"):
            cuda.root_forest_plan_cuda(forest.order, forest.parent)


@pytest.mark.full
def test_no_access_out_of_bounds():
    run_sanitized("""
import torch
from groot_graph.ops.root_forest import cuda
from groot_graph.ops.root_forest.cuda import root_forest_cuda
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels
from tests.equipment.graphs import FOREST_KINDS, forest_edges, random_graph
from tests.cuda.test_root_forest import unchecked
for kind in FOREST_KINDS:
    for num_nodes in (1, 2, 63, 601):
        with cuda_kernels(num_nodes), unchecked():
            root_forest_cuda(forest_edges(kind, num_nodes), None, num_nodes, "last")
            edge_index = random_graph(num_nodes + 3, 2 * num_nodes) - 1
            root_forest_cuda(edge_index, None, num_nodes, torch.tensor([-1, 0, num_nodes]))
    for in_one_block in (6, 2**15):
        with cuda_kernels(**SHORT_SEGMENTS, most_in_one_block=in_one_block):
            root_forest_cuda(forest_edges(kind, 200), None, 200, "first")
""")
