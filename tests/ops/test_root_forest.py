import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groot_graph import minimum_spanning_forest, root_forest
from groot_graph.ops.root_forest.reference import root_forest_reference
from tests.equipment.graphs import FOREST_KINDS, forest_edges, random_graph, to_edge_index
from tests.equipment.strategies import forests


@pytest.fixture
def root_edges(backend):
    return order_and_parent(backend)


def order_and_parent(implementation):
    def root_edges(edge_index, edge_mask, num_nodes, root):
        forest = implementation.root_forest(edge_index, edge_mask, num_nodes, root)
        return forest.order, forest.parent

    return root_edges


def neighbors_of(edges: list, num_nodes: int) -> list[set]:
    neighbors = [set() for _ in range(num_nodes)]
    for i, j in edges:
        neighbors[i].add(j)
        neighbors[j].add(i)
    return neighbors


def trees_of(neighbors: list[set]) -> list[set]:
    """The trees by their lowest node."""
    trees, seen = [], set()
    for start in range(len(neighbors)):
        if start in seen:
            continue
        tree, todo = {start}, [start]
        while todo:
            new = neighbors[todo.pop()] - tree
            tree |= new
            todo.extend(new)
        seen |= tree
        trees.append(tree)
    return trees


def preorder(node: int, parent: int, neighbors: list[set], parents: list) -> list[int]:
    """The largest subtree last (ties: the highest node), the others by ascending node number."""
    parents[node] = parent
    children = sorted(neighbors[node] - {parent})
    subtrees = [preorder(child, node, neighbors, parents) for child in children]
    sizes = [(len(subtree), child) for subtree, child in zip(subtrees, children, strict=True)]
    if subtrees:
        subtrees.append(subtrees.pop(sizes.index(max(sizes))))
    return sum(subtrees, [node])


def canonical_forest(edges: list, num_nodes: int, root) -> tuple[list, list]:
    neighbors = neighbors_of(edges, num_nodes)
    order, parents = [], [None] * num_nodes
    for tree in trees_of(neighbors):
        if isinstance(root, str):
            start = min(tree) if root == "first" else max(tree)
        else:
            (start,) = tree.intersection(root)
        order += preorder(start, start, neighbors, parents)
    return order, parents


def draw_roots(draw, edges: list, num_nodes: int) -> list[int]:
    trees = trees_of(neighbors_of(edges, num_nodes))
    return draw.sample([draw.choice(sorted(tree)) for tree in trees], len(trees))


@given(forest=forests(max_nodes=20), draw=st.randoms(use_true_random=False))
def test_equals_canonical_order(root_edges, forest, draw):
    edge_index, num_nodes = forest
    edges = edge_index.t().tolist()
    for root in ("first", "last", draw_roots(draw, edges, num_nodes)):
        expected = canonical_forest(edges, num_nodes, root)
        if isinstance(root, list):
            root = torch.tensor(root, dtype=torch.long)
        order, parent = root_edges(edge_index, None, num_nodes, root)
        assert order.dtype == parent.dtype == torch.long
        assert (order.tolist(), parent.tolist()) == expected


@given(
    forest=forests(max_nodes=12),
    extra=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12),
    draw=st.randoms(use_true_random=False),
)
def test_mask_hides_edges(root_edges, forest, extra, draw):
    edge_index, num_nodes = forest
    kept = edge_index.t().tolist()
    hidden = [[i, j] for i, j in extra if max(i, j) < num_nodes]
    edges = [(edge, True) for edge in kept] + [(edge, False) for edge in hidden]
    draw.shuffle(edges)
    edge_mask = torch.tensor([keep for _, keep in edges], dtype=torch.bool)
    edge_index = to_edge_index([edge for edge, _ in edges])
    order, parent = root_edges(edge_index, edge_mask, num_nodes, "first")
    assert (order.tolist(), parent.tolist()) == canonical_forest(kept, num_nodes, "first")


def test_of_a_tree_by_hand():
    # 4 is joined to 1, 6, 3 and 5; 6 to 0; 5 to 2. Subtrees (6, 0) and (5, 2) are the largest.
    edge_index = torch.tensor([[1, 6, 4, 4, 0, 2], [4, 4, 3, 5, 6, 5]])
    forest = root_forest(edge_index, root=torch.tensor([4]))
    assert forest.order.tolist() == [4, 1, 3, 5, 2, 6, 0]
    assert forest.parent.tolist() == [6, 4, 5, 4, 4, 4, 4]
    assert root_forest(edge_index).order.tolist() == [0, 6, 4, 1, 3, 5, 2]
    assert root_forest(edge_index, root="last").order.tolist() == [6, 0, 4, 1, 3, 5, 2]


def one_node_of_each_tree(edge_index, num_nodes) -> torch.Tensor:
    """In any sequence."""
    trees = trees_of(neighbors_of(edge_index.t().tolist(), num_nodes))
    draw = random.Random(0)
    return torch.tensor(draw.sample([draw.choice(sorted(tree)) for tree in trees], len(trees)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("root", ["first", "last", "given"])
@pytest.mark.parametrize("num_nodes", [1, 2, 3, 60, 63, 257, 1025], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_equals_reference(kind, num_nodes, root, kernels):
    edge_index = forest_edges(kind, num_nodes)
    root = one_node_of_each_tree(edge_index, num_nodes) if root == "given" else root
    order, parent = order_and_parent(kernels)(edge_index, None, num_nodes, root)
    expected_order, expected_parent = root_forest_reference(edge_index, None, num_nodes, root)
    assert torch.equal(order, expected_order)
    assert torch.equal(parent, expected_parent)


@pytest.mark.parametrize("root", ["first", "last"])
@pytest.mark.parametrize("num_nodes, num_edges", [(60, 63), (257, 160), (300, 900), (1000, 4000)])
def test_of_spanning_forests(num_nodes, num_edges, root, kernels):
    edge_index = random_graph(num_nodes, num_edges)
    edge_mask = minimum_spanning_forest(edge_index, torch.rand(num_edges), num_nodes)
    order, parent = order_and_parent(kernels)(edge_index, edge_mask, num_nodes, root)
    kept = edge_index[:, edge_mask].t().tolist()
    assert (order.tolist(), parent.tolist()) == canonical_forest(kept, num_nodes, root)
    expected = root_forest_reference(edge_index, edge_mask, num_nodes, root)
    assert torch.equal(order, expected[0]) and torch.equal(parent, expected[1])


@pytest.mark.parametrize("num_nodes", [0, 1, 5])
def test_of_no_edge(num_nodes, root_edges):
    no_edge = torch.empty(2, 0, dtype=torch.long)
    for root in ("first", "last", torch.arange(num_nodes).flip(0)):
        order, parent = root_edges(no_edge, None, num_nodes, root)
        assert order.tolist() == parent.tolist() == list(range(num_nodes))


def test_num_nodes_is_inferred():
    edge_index = torch.tensor([[0, 4], [4, 2]])
    forest = root_forest(edge_index)
    assert forest.num_nodes == 5 and forest.num_trees == 3
    assert root_forest(edge_index, num_nodes=6).num_trees == 4


@pytest.mark.parametrize("kind", ["chain", "caterpillar", "star"])
def test_of_trees_too_deep_for_recursion(kind, root_edges):
    num_nodes = 5001
    edge_index = forest_edges(kind, num_nodes)
    order, parent = root_edges(edge_index, None, num_nodes, "last")
    position = torch.empty_like(order)
    position[order] = torch.arange(num_nodes)
    assert order[0] == num_nodes - 1 and parent[num_nodes - 1] == num_nodes - 1
    assert (position[parent] < position)[order[1:]].all()


def test_strided_inputs(root_edges):
    edge_index = forest_edges("several", 40)
    edge_mask = torch.ones(1, dtype=torch.bool).expand(edge_index.size(1))
    expected = root_edges(edge_index, None, 40, "first")
    actual = root_edges(edge_index.t().contiguous().t(), edge_mask, 40, "first")
    assert all(map(torch.equal, actual, expected))
    roots = torch.arange(9).repeat_interleave(2)[::2]
    actual = root_edges(torch.empty(2, 0, dtype=torch.long), None, 9, roots)
    assert actual[1].tolist() == list(range(9))


def test_inputs_are_not_changed(root_edges):
    edge_index = forest_edges("random", 40)
    edge_mask, root = torch.ones(39, dtype=torch.bool), torch.tensor([17])
    inputs = (edge_index, edge_mask, root)
    copies = [tensor.clone() for tensor in inputs]
    root_edges(edge_index, edge_mask, 40, root)
    assert all(map(torch.equal, inputs, copies))


def test_same_forest_with_any_number_of_threads():
    edge_index = forest_edges("several", 20_001)
    forests = []
    for num_threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(num_threads)
        forests.append(root_forest(edge_index, num_nodes=20_001))
    for forest in forests[1:]:
        assert torch.equal(forest.order, forests[0].order)
        assert torch.equal(forest.parent, forests[0].parent)


TRIANGLE = [(0, 1), (1, 2), (2, 0)]


@pytest.mark.parametrize(
    "edges, num_nodes",
    [
        pytest.param(TRIANGLE, 3, id="triangle"),
        pytest.param(TRIANGLE, 4, id="triangle-beside-a-node"),
        pytest.param([*TRIANGLE, (3, 4)], 5, id="triangle-beside-a-tree"),
        pytest.param([(0, 1), (0, 1)], 2, id="parallel"),
        pytest.param([(0, 1), (1, 0)], 2, id="both-directions"),
        pytest.param([(0, 0)], 1, id="self-loop"),
        pytest.param([(0, 1), (2, 2)], 3, id="self-loop-beside-a-tree"),
        pytest.param([(i, (i + 1) % 63) for i in range(63)], 63, id="ring"),
        pytest.param([(5, 6), (6, 7), (7, 8), (8, 5)], 20, id="ring-among-isolated-nodes"),
    ],
)
@pytest.mark.parametrize("root", ["first", "last"])
def test_cycle_is_refused(edges, num_nodes, root, root_edges):
    with pytest.raises(ValueError, match="cycle"):
        root_edges(to_edge_index(edges), None, num_nodes, root)


TWO_TREES = [(0, 1), (1, 2), (3, 4)]


@pytest.mark.parametrize(
    "roots",
    [
        pytest.param([0, 1], id="two-in-one-tree"),
        pytest.param([0, 2, 3], id="two-in-one-tree-one-in-the-other"),
        pytest.param([0, 0], id="same-root-twice"),
        pytest.param([1, 3, 3], id="same-root-twice-beside-another"),
        pytest.param([0], id="missing-in-one-tree"),
        pytest.param([], id="none"),
    ],
)
def test_wrong_roots_are_refused(roots, root_edges):
    with pytest.raises(ValueError, match="'root'"):
        root_edges(to_edge_index(TWO_TREES), None, 5, torch.tensor(roots, dtype=torch.long))


def test_isolated_node_needs_its_root(root_edges):
    edge_index = to_edge_index([(0, 1)])
    with pytest.raises(ValueError, match="'root'"):
        root_edges(edge_index, None, 3, torch.tensor([0]))
    order, parent = root_edges(edge_index, None, 3, torch.tensor([2, 1]))
    assert order.tolist() == [1, 0, 2] and parent.tolist() == [1, 1, 2]


GOOD_INPUT = {
    "edge_index": torch.tensor([[0, 1, 2, 4], [1, 2, 0, 3]]),
    "edge_mask": torch.tensor([True, True, False, True]),
    "num_nodes": 5,
    "root": torch.tensor([3, 1]),
}
EDGE_INDEX, EDGE_MASK = GOOD_INPUT["edge_index"], GOOD_INPUT["edge_mask"]


@pytest.mark.parametrize(
    "argument, value, error, found",
    [
        ("edge_index", [[0, 1], [1, 2]], TypeError, "list"),
        ("edge_index", None, TypeError, "NoneType"),
        ("edge_index", EDGE_INDEX.int(), TypeError, "torch.int32"),
        ("edge_index", EDGE_INDEX.new_zeros(3, 4), ValueError, "[3, 4]"),
        ("edge_index", EDGE_INDEX.t(), ValueError, "[4, 2]"),
        ("edge_index", EDGE_INDEX[0], ValueError, "[4]"),
        ("edge_index", EDGE_INDEX + 1, ValueError, "5"),
        ("edge_index", EDGE_INDEX - 1, ValueError, "-1"),
        ("edge_mask", [True, True, False, True], TypeError, "list"),
        ("edge_mask", EDGE_MASK.long(), TypeError, "torch.int64"),
        ("edge_mask", EDGE_MASK[:3], ValueError, "[3]"),
        ("edge_mask", EDGE_MASK[:, None], ValueError, "[4, 1]"),
        ("edge_mask", EDGE_MASK.to("meta"), ValueError, "meta"),
        ("num_nodes", "5", TypeError, "str"),
        ("num_nodes", 5.0, TypeError, "float"),
        ("num_nodes", -1, ValueError, "-1"),
        ("root", None, TypeError, "NoneType"),
        ("root", 3, TypeError, "int"),
        ("root", [3, 1], TypeError, "list"),
        ("root", "middle", ValueError, "middle"),
        ("root", torch.tensor([3.0, 1.0]), TypeError, "torch.float32"),
        ("root", torch.tensor([3, 1]).int(), TypeError, "torch.int32"),
        ("root", torch.tensor([[3, 1]]), ValueError, "[1, 2]"),
        ("root", torch.tensor(3), ValueError, "[]"),
        ("root", torch.tensor([3, 1], device="meta"), ValueError, "meta"),
        ("root", torch.tensor([5, 1]), ValueError, "5"),
        ("root", torch.tensor([-1, 1]), ValueError, "-1"),
    ],
)
def test_bad_input_is_refused(argument, value, error, found):
    with pytest.raises(error) as refusal:
        root_forest(**{**GOOD_INPUT, argument: value})
    message = str(refusal.value)
    assert f"'{argument}' must" in message
    assert found.lower() in message.lower().split("got", 1)[1]


def test_good_input_is_accepted():
    assert root_forest(**GOOD_INPUT).parent.tolist() == [1, 1, 1, 3, 3]


def test_masked_edge_out_of_range_is_refused():
    edge_index = torch.tensor([[0, 7], [1, 2]])
    with pytest.raises(ValueError, match="'edge_index' must .*got 7"):
        root_forest(edge_index, torch.tensor([True, False]), num_nodes=3)


@pytest.mark.parametrize("node", [-1, 4])
def test_a_compiled_graph_refuses_a_node_out_of_range(node):
    torch.compiler.reset()
    compiled = torch.compile(
        lambda edge_index, root: root_forest(edge_index, None, 4, root).parent,
        backend="aot_eager",
        fullgraph=True,
    )
    edge_index, root = torch.tensor([[0, 1, 2], [1, 2, 3]]), torch.tensor([2])
    assert compiled(edge_index, root).tolist() == [1, 2, 2, 2]
    with pytest.raises(ValueError, match=f"'root' .* num_nodes - 1 = 3, got {node}"):
        compiled(edge_index, torch.tensor([node]))
    edge_index[1, 1] = node
    with pytest.raises(ValueError, match=f"'edge_index' .* num_nodes - 1 = 3, got {node}"):
        compiled(edge_index, root)
    torch.compiler.reset()
