import copy
import pickle
import sys

import networkx
import pytest
import torch
from hypothesis import given
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_geometric.data import Batch, Data
from torch_geometric.utils import from_networkx

from groot_graph import Forest, minimum_spanning_forest, root_forest
from tests.equipment.graphs import FOREST_KINDS, make_forest
from tests.equipment.strategies import forests


def small_forest() -> Forest:
    # 1 is the root of 0 and 3, and 3 of 2; 4 stands alone.
    return Forest(order=torch.tensor([1, 0, 3, 2, 4]), parent=torch.tensor([1, 1, 3, 1, 4]))


def test_attributes():
    forest = small_forest()
    assert str(forest) == "Forest(num_nodes=5, num_trees=2)"
    assert forest.num_nodes == 5 and isinstance(forest.num_nodes, int)
    assert forest.num_trees == 2 and isinstance(forest.num_trees, int)
    assert forest.roots.tolist() == [1, 4]
    assert forest.device == torch.device("cpu")
    assert forest.order.dtype == forest.parent.dtype == forest.roots.dtype == torch.long


def test_without_nodes():
    forest = root_forest(torch.empty(2, 0, dtype=torch.long))
    assert str(forest) == "Forest(num_nodes=0, num_trees=0)"
    assert forest.roots.shape == (0,)


def test_roots_stand_as_in_order():
    forest = Forest(order=torch.tensor([2, 0, 1]), parent=torch.tensor([0, 0, 2]))
    assert forest.roots.tolist() == [2, 0]


@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_num_trees(kind):
    forest = make_forest(kind, 17)
    is_root = forest.parent == torch.arange(17)
    assert forest.num_trees == int(is_root.sum())
    assert set(forest.roots.tolist()) == set(is_root.nonzero().flatten().tolist())


@given(forest=forests())
def test_depth_and_levels(forest):
    edge_index, num_nodes = forest
    forest = root_forest(edge_index, num_nodes=num_nodes)
    parent, expected = forest.parent.tolist(), [0] * num_nodes
    for node in forest.order.tolist():
        if parent[node] != node:
            expected[node] = expected[parent[node]] + 1
    assert forest.depth.tolist() == expected
    levels = [level.tolist() for level in forest.levels]
    assert sorted(sum(levels, [])) == list(range(num_nodes))
    position = {node: i for i, node in enumerate(forest.order.tolist())}
    for depth, level in enumerate(levels):
        assert {expected[node] for node in level} == {depth}
        assert level == sorted(level, key=position.get)


@given(forest=forests())
def test_labels_are_the_connected_components_by_their_lowest_node(forest):
    edge_index, num_nodes = forest
    number, seen = {}, []
    graph = networkx.Graph(edge_index.t().tolist())
    graph.add_nodes_from(range(num_nodes))
    for node in range(num_nodes):
        if node not in number:
            component = networkx.node_connected_component(graph, node)
            number |= dict.fromkeys(component, len(seen))
            seen.append(node)
        assert number[node] <= node
    for root in ("first", "last"):
        labels = root_forest(edge_index, num_nodes=num_nodes, root=root).labels
        assert labels.dtype == torch.long
        assert labels.tolist() == [number[node] for node in range(num_nodes)]


@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_labels_are_those_of_scipy(kind):
    forest = make_forest(kind, 33)
    matrix = csr_array((torch.ones(33), (range(33), forest.parent.numpy())), shape=(33, 33))
    assert forest.labels.tolist() == connected_components(matrix, directed=False)[1].tolist()


@given(forest=forests())
def test_edges_lead_from_parents_to_children(forest):
    edge_index, num_nodes = forest
    forest = root_forest(edge_index, num_nodes=num_nodes, root="last")
    above, child = forest.edge_index
    assert forest.edge_index.shape == (2, num_nodes - forest.num_trees)
    assert above.equal(forest.parent[child])
    roots = set(forest.roots.tolist())
    assert child.tolist() == [node for node in forest.order.tolist() if node not in roots]


def test_edge_mask_marks_the_edges_of_the_forest_in_either_direction():
    edge_index = torch.tensor([[0, 1, 3, 2, 4, 1, 2, 0], [1, 0, 2, 1, 4, 1, 3, 3]])
    mask = small_forest().edge_mask(edge_index)
    assert mask.tolist() == [True, True, True, False, False, False, True, False]
    assert mask.dtype == torch.bool


def test_edge_mask_of_the_input_gives_the_edges_that_the_spanning_forest_kept():
    graph = Data(edge_index=torch.randint(40, (2, 90)))
    weight = torch.rand(90)
    kept = minimum_spanning_forest(graph.edge_index, weight, 40)
    forest = root_forest(graph.edge_index, kept, 40)
    mask = forest.edge_mask(graph.edge_index)
    assert bool((mask >= kept).all())
    marked = {frozenset(edge) for edge in graph.edge_index[:, mask].t().tolist()}
    assert marked == {frozenset(edge) for edge in graph.edge_index[:, kept].t().tolist()}


@pytest.mark.parametrize(
    "edge_index, error, found",
    [
        ([[0], [1]], TypeError, "list"),
        (torch.zeros(2, 3), TypeError, "torch.float32"),
        (torch.zeros(3, 2, dtype=torch.long), ValueError, "[3, 2]"),
        (torch.tensor([[0], [5]]), ValueError, "5"),
    ],
)
def test_edge_mask_refuses_what_are_no_edges_of_its_nodes(edge_index, error, found):
    with pytest.raises(error, match="'edge_index' must") as refusal:
        small_forest().edge_mask(edge_index)
    assert found in str(refusal.value).split("got", 1)[1]


@given(forest=forests())
def test_data_and_back(forest):
    edge_index, num_nodes = forest
    forest = root_forest(edge_index, num_nodes=num_nodes, root="last")
    data = forest.to_data()
    data.validate()
    assert data.num_nodes == num_nodes and data.is_undirected()
    assert data.tree_depth.equal(forest.depth)
    assert Forest.from_data(data).parent.equal(forest.parent)
    batch = Batch.from_data_list([data, data])
    assert Forest.from_data(batch).labels.equal(
        torch.cat([forest.labels, forest.labels + forest.num_trees])
    )


@given(forest=forests())
def test_networkx_and_back(forest):
    edge_index, num_nodes = forest
    forest = root_forest(edge_index, num_nodes=num_nodes)
    graph = forest.to_networkx()
    assert sorted(graph.nodes) == list(range(num_nodes))
    if num_nodes > 0:
        assert networkx.is_branching(graph)
    back = from_networkx(graph) if graph.edges else Data(edge_index=edge_index)
    again = root_forest(back.edge_index, num_nodes=num_nodes, root=forest.roots)
    assert again.parent.equal(forest.parent)


def test_networkx_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ImportError, match="pip install networkx"):
        small_forest().to_networkx()


def test_what_needs_no_count_works_without_values():
    forest = small_forest()
    with FakeTensorMode() as mode:
        fake = Forest(mode.from_tensor(forest.order), mode.from_tensor(forest.parent))
        assert fake.labels.shape == (5,)
        assert fake.edge_mask(torch.zeros(2, 7, dtype=torch.long)).shape == (7,)
    assert forest.to("meta").labels.shape == (5,)


def test_to():
    forest = small_forest()
    assert torch.equal(forest.to("cpu").parent, forest.parent)
    moved = forest.to("meta")
    assert isinstance(moved, Forest)
    assert moved.device == moved.order.device == moved.parent.device == torch.device("meta")
    assert moved.num_nodes == 5
    assert forest.device == torch.device("cpu")


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda forest: pickle.loads(pickle.dumps(forest))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies(duplicate):
    forest = small_forest()
    twin = duplicate(forest)
    assert isinstance(twin, Forest) and str(twin) == str(forest)
    assert torch.equal(twin.order, forest.order) and torch.equal(twin.parent, forest.parent)


def test_deepcopy_shares_nothing():
    forest = small_forest()
    copy.deepcopy(forest).parent.zero_()
    assert forest.parent.tolist() == [1, 1, 3, 1, 4]


NODES = torch.arange(5)


@pytest.mark.parametrize("argument", ["order", "parent"])
@pytest.mark.parametrize(
    "value, error, found",
    [
        ([0, 1, 2, 3, 4], TypeError, "list"),
        (None, TypeError, "NoneType"),
        (NODES.int(), TypeError, "torch.int32"),
        (NODES.float(), TypeError, "torch.float32"),
        (NODES[:, None], ValueError, "[5, 1]"),
        (torch.tensor(0), ValueError, "[]"),
    ],
)
def test_bad_input_is_refused(argument, value, error, found):
    with pytest.raises(error) as refusal:
        Forest(**{"order": NODES, "parent": NODES, argument: value})
    message = str(refusal.value)
    assert f"'{argument}' must" in message
    assert found in message.split("got", 1)[1]


def test_mismatched_tensors_are_refused():
    with pytest.raises(ValueError, match="'parent' must .*5.*got 4"):
        Forest(NODES, NODES[:4])
    with pytest.raises(ValueError, match="'parent' must .*cpu.*got meta"):
        Forest(NODES, NODES.to("meta"))


@pytest.mark.parametrize("parent", [[1, 0, 2], [1, 2, 0], [1, 2, 3, 1]])
def test_depth_and_levels_refuse_a_cycle(parent):
    forest = Forest(torch.arange(len(parent)), torch.tensor(parent))
    with pytest.raises(ValueError, match="'parent' must .*cycle"):
        _ = forest.depth
    with pytest.raises(ValueError, match="'parent' must .*cycle"):
        _ = forest.levels


def test_a_forest_goes_wherever_its_data_goes(monkeypatch):
    forest = root_forest(torch.tensor([[0, 1, 3], [1, 2, 4]]))
    data = Data(x=torch.ones(5, 1), forest=forest)
    moved = data.clone().to("meta", non_blocking=True)
    assert moved.forest.device.type == moved.x.device.type == "meta"
    copied = data.clone()
    assert copied.forest is not data.forest and copied.forest.parent.equal(forest.parent)
    copied.forest.parent[0] = 4
    assert forest.parent[0] == 0
    assert data.cpu().forest.num_trees == 2 and data.contiguous().forest.num_trees == 2
    assert not data.forest.is_shared()
    assert data.share_memory_().forest.is_shared()


def test_a_forest_is_pinned_and_sent_to_a_gpu_with_its_data(monkeypatch):
    calls = []
    for name in ("pin_memory", "to"):
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *args, _name=name, **kw: calls.append(_name) or self
        )
    forest = root_forest(torch.tensor([[0, 1], [1, 2]]))
    calls.clear()
    assert forest.pin_memory().num_nodes == forest.cuda(non_blocking=True).num_nodes == 3
    assert calls == 2 * ["pin_memory"] + 2 * ["to"]


def test_a_forest_without_values_can_be_printed():
    forest = Forest(torch.arange(3), torch.arange(3)).to("meta")
    assert str(forest) == "Forest(num_nodes=3, device='meta')"
