"""What is prepared for the scans of a forest: once, and as long as it holds."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from groot_graph import Forest, tree_scan
from groot_graph.ops.cpu.order import NODES_PER_BUNDLE, placed
from groot_graph.ops.plan import plan_of
from tests.equipment.graphs import FOREST_KINDS, make_forest

x, transition = torch.randn(33, 2), torch.rand(33, 2)


def own_forest(kind="random") -> Forest:
    forest = make_forest(kind, 33)
    return Forest(forest.order.clone(), forest.parent.clone())


def test_one_plan_serves_all_scans_and_their_gradients():
    forest = own_forest()
    assert forest._plan is None
    inputs = x.clone().requires_grad_(), transition.clone().requires_grad_()
    h = tree_scan(*inputs, forest)
    kept = forest._plan
    h.sum().backward()
    tree_scan(*inputs, forest, "up").sum().backward()
    assert forest._plan is kept


def test_it_follows_what_is_written_into_the_forest():
    forest = own_forest("random")
    for source in (make_forest("chain", 33), make_forest("star", 33)):
        expected = tree_scan(x, transition, source)
        tree_scan(x, transition, forest)
        forest.order.copy_(source.order)
        forest.parent.copy_(source.parent)
        assert_close(tree_scan(x, transition, forest), expected)
    other = own_forest("several")
    forest.order, forest.parent = other.order, other.parent
    assert_close(tree_scan(x, transition, forest), tree_scan(x, transition, other))


def test_it_stays_where_the_forest_stays():
    forest = own_forest()
    plan = plan_of(forest)
    assert plan_of(forest.to("cpu")) is plan
    assert plan_of(Forest(forest.order, forest.parent)) is not plan


@pytest.mark.parametrize("copy", [deepcopy, lambda forest: pickle.loads(pickle.dumps(forest))])
def test_copies_scan_as_their_original(copy):
    forest = own_forest()
    expected = tree_scan(x, transition, forest)
    copied = copy(forest)
    assert_close(tree_scan(x, transition, copied), expected, rtol=0, atol=0)
    copied.parent.copy_(copied.order[:1].expand(33))
    assert not torch.equal(tree_scan(x, transition, copied), expected)


def test_none_is_kept_that_belongs_to_inference_mode_or_a_trace():
    forest = own_forest()
    with torch.inference_mode():
        tree_scan(x, transition, forest)
    assert forest._plan is None
    with FakeTensorMode(allow_non_fake_inputs=True):
        tree_scan(torch.randn(33, 2), torch.rand(33, 2), forest)
    assert forest._plan is None
    torch.compiler.reset()
    scan = torch.compile(lambda x: tree_scan(x, transition, forest), backend="aot_eager")
    assert_close(scan(x), tree_scan(x, transition, own_forest()))
    assert forest._plan is None
    tree_scan(x.clone().requires_grad_(), transition, forest).sum().backward()


def test_a_compiled_scan_refuses_what_is_no_forest():
    torch.compiler.reset()
    scan = torch.compile(
        lambda x, order, parent: tree_scan(x, x, Forest(order, parent)),
        backend="aot_eager",
        fullgraph=True,
    )
    forest = own_forest("chain")
    assert_close(scan(x, forest.order, forest.parent), tree_scan(x, x, forest))
    with pytest.raises(ValueError, match="'forest' must hold every node once in 'order'"):
        scan(x, forest.order.flip(0), forest.parent)
    torch.compiler.reset()


@pytest.mark.parametrize("num_nodes", [0, 1, 7, NODES_PER_BUNDLE, 5000])
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_bundles_are_whole_trees(kind, num_nodes):
    forest = make_forest(kind, num_nodes)
    found = placed(forest)
    starts = found.bundles.tolist()
    assert starts[0] == 0 and starts[-1] == num_nodes and len(starts) == found.num_bundles + 1
    roots = set((forest.parent[forest.order] == forest.order).nonzero().flatten().tolist())
    assert roots.issuperset(starts[:-1])
    assert all(b - a >= NODES_PER_BUNDLE for a, b in zip(starts[:-2], starts[1:-1], strict=True))
    assert found.order[found.above].tolist() == forest.parent[forest.order].tolist()
