import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from groot_graph import minimum_spanning_forest, root_forest, tree_scan
from groot_graph.forest import Forest
from groot_graph.graphs import grid_edge_index
from groot_graph.ops.tree_scan.reference import tree_scan_reference
from tests.equipment.graphs import FOREST_KINDS, forest_edges, make_forest
from tests.equipment.scans import (
    DIRECTIONS,
    FLOATS,
    TOLERANCE,
    assert_same_scan,
    directions,
    scan_operands,
)
from tests.equipment.strategies import forests

NEAR = TOLERANCE["tree_scan"]
SHAPES = [
    ("chain", 1, 1),
    ("chain", 2, 3),
    ("star", 63, 17),
    ("caterpillar", 60, 64),
    ("random", 257, 65),
    ("several", 60, 160),
    ("isolated", 63, 3),
    ("binary", 257, 1),
    ("several", 257, 33),
    ("caterpillar", 257, 33),
]


def ancestors(parent: list, node: int) -> set:
    """The nodes from `node` to its root, both included."""
    found = {node}
    while parent[node] != node:
        node = parent[node]
        found.add(node)
    return found


def is_heard(direction: str, listener: int, speaker: int, lines: list) -> bool:
    if direction == "up":
        return listener in lines[speaker]
    if direction == "down":
        return speaker in lines[listener]
    return bool(lines[listener] & lines[speaker])


def brute_force_scan(x, transition, parent, direction) -> np.ndarray:
    """h_i = sum_j prod_{k on path(i, j)} a_k x_j, where an edge is named by its child."""
    lines = [ancestors(parent, i) for i in range(len(parent))]
    h = np.zeros_like(x)
    for i in range(len(parent)):
        for j in range(len(parent)):
            if is_heard(direction, i, j, lines):
                path = sorted(lines[i] ^ lines[j])
                h[i] += transition[path].prod(axis=0) * x[j]
    return h


def make_inputs(num_nodes, num_channels, dtype=torch.float64):
    return tuple(scan_operands(num_nodes, num_channels, dtype).values())


@given(forest=forests(), num_channels=st.integers(0, 3), seed=st.integers(0, 2**16))
def test_equals_brute_force_over_all_paths(backend, forest, num_channels, seed):
    edge_index, num_nodes = forest
    forest = root_forest(edge_index, num_nodes=num_nodes)
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((num_nodes, num_channels))
    transition = draw.uniform(-1.5, 1.5, (num_nodes, num_channels))
    for direction in DIRECTIONS:
        expected = brute_force_scan(x, transition, forest.parent.tolist(), direction)
        h = backend.tree_scan(torch.from_numpy(x), torch.from_numpy(transition), forest, direction)
        assert_close(h, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_of_three_nodes_by_hand(backend):
    # 0 is the root of 1, and 1 of 2.
    forest = root_forest(torch.tensor([[0, 1], [1, 2]]))
    x = torch.tensor([[1.0], [10.0], [100.0]])
    transition = torch.tensor([[7.0], [2.0], [3.0]])
    assert backend.tree_scan(x, transition, forest, "up").flatten().tolist() == [621, 310, 100]
    assert backend.tree_scan(x, transition, forest, "down").flatten().tolist() == [1, 12, 136]
    assert backend.tree_scan(x, transition, forest, "both").flatten().tolist() == [621, 312, 136]


def test_hears_the_whole_tree_by_default():
    forest = make_forest("several", 17)
    inputs = make_inputs(17, 2)
    assert torch.equal(tree_scan(*inputs, forest), tree_scan(*inputs, forest, "both"))


@directions
def test_takes_any_order_with_parents_before_children(direction, backend):
    parent = torch.tensor([3, 3, 0, 3, 0, 1, 6])
    depth_first = Forest(torch.tensor([6, 3, 0, 4, 2, 1, 5]), parent)
    breadth_first = Forest(torch.tensor([3, 6, 1, 0, 5, 2, 4]), parent)
    x, transition = make_inputs(7, 2)
    expected = brute_force_scan(x.numpy(), transition.numpy(), parent.tolist(), direction)
    for forest in (depth_first, breadth_first):
        assert_close(
            backend.tree_scan(x, transition, forest, direction), torch.from_numpy(expected)
        )


@pytest.mark.sampled(3)
@directions
@pytest.mark.parametrize("needs_grad", ["x", "transition", "x and transition"])
@pytest.mark.parametrize("kind", ["several", "chain", "star"])
def test_gradcheck(kind, needs_grad, direction, backend):
    forest = make_forest(kind, 9)
    x, transition = make_inputs(9, 3)
    x.requires_grad_("x" in needs_grad.split())
    transition.requires_grad_("transition" in needs_grad)
    assert gradcheck(lambda x, a: backend.tree_scan(x, a, forest, direction), (x, transition))


@pytest.mark.sampled(3)
@directions
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind, num_nodes, num_channels", SHAPES, ids=lambda value: str(value))
def test_values_and_gradients_in_every_dtype(
    kind, num_nodes, num_channels, dtype, direction, kernels
):
    along = {"forest": make_forest(kind, num_nodes), "direction": direction}
    operands = scan_operands(num_nodes, num_channels, dtype)
    assert_same_scan(kernels.tree_scan, tree_scan_reference, operands, NEAR[dtype], **along)


@pytest.mark.sampled(4)
@directions
@pytest.mark.parametrize(
    "num_nodes, num_channels", [(1, 1), (2, 3), (9, 3), (63, 17), (257, 5), (700, 3)]
)
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_values_and_gradients_on_every_kind_of_forest(
    kind, num_nodes, num_channels, direction, kernels
):
    along = {"forest": make_forest(kind, num_nodes, root="last"), "direction": direction}
    operands = scan_operands(num_nodes, num_channels)
    assert_same_scan(kernels.tree_scan, tree_scan_reference, operands, 1e-10, **along)


@directions
def test_values_and_gradients_over_the_spanning_forest_of_images(direction, kernels):
    edge_index = grid_edge_index(40, 30, num_graphs=2)
    edge_mask = minimum_spanning_forest(edge_index, torch.rand(edge_index.size(1)))
    forest = root_forest(edge_index, edge_mask)
    assert forest.depth.max() > 64
    along = {"forest": forest, "direction": direction}
    operands = scan_operands(2 * 40 * 30, 5)
    assert_same_scan(kernels.tree_scan, tree_scan_reference, operands, 1e-10, **along)


@pytest.mark.parametrize("bits", [0, 1, 2], ids=["zero", "subnormal", "normal"])
def test_every_half_number_is_read_as_it_is(bits, kernels):
    # One isolated node for each: the scan of an isolated node is what went in.
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    for dtype in (torch.float16, torch.bfloat16):
        x = numbers.view(dtype)[bits::3][:, None]
        is_number = ~x.isnan().flatten()
        forest = root_forest(torch.empty(2, 0, dtype=torch.long), num_nodes=len(x))
        h = kernels.tree_scan(x, torch.zeros_like(x), forest, "up")
        assert torch.equal(h[is_number], x[is_number])
        assert h[~is_number].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_compute_in_float32(dtype, kernels):
    # Summed in a half type, 1 + 1 + ... stops growing at 256 (bfloat16) or 2048 (float16).
    num_nodes = 4097
    forest = root_forest(torch.stack([torch.arange(4096), torch.arange(1, 4097)]))
    ones = torch.ones(num_nodes, 1, dtype=dtype)
    h = kernels.tree_scan(ones, ones, forest, "up")
    expected = torch.arange(num_nodes, 0, -1, dtype=torch.float32).to(dtype)
    assert torch.equal(h.flatten(), expected)


@directions
@pytest.mark.parametrize("num_nodes, num_channels", [(0, 0), (0, 3), (5, 0)])
def test_of_nothing(num_nodes, num_channels, direction, backend):
    forest = make_forest("several", num_nodes)
    x, transition = (t.requires_grad_() for t in make_inputs(num_nodes, num_channels))
    h = backend.tree_scan(x, transition, forest, direction)
    grads = torch.autograd.grad(h.sum(), (x, transition), allow_unused=True, materialize_grads=True)
    assert h.shape == grads[0].shape == grads[1].shape == (num_nodes, num_channels)


@directions
def test_transition_of_root_is_ignored(direction, backend):
    forest = make_forest("several", 17)
    x, transition = make_inputs(17, 3)
    expected = backend.tree_scan(x, transition, forest, direction)
    transition[forest.roots] = torch.nan
    transition.requires_grad_()
    h = backend.tree_scan(x, transition, forest, direction)
    h.sum().backward()
    assert torch.equal(h, expected)
    assert torch.equal(transition.grad[forest.roots], torch.zeros(forest.num_trees, 3).double())


def test_zero_transition_separates_nodes(backend):
    forest = make_forest("random", 33)
    x, _ = make_inputs(33, 3)
    assert torch.equal(backend.tree_scan(x, torch.zeros_like(x), forest, "both"), x)


@directions
def test_infinite_input_stays_in_its_tree(direction, backend):
    edge_index = torch.stack([torch.arange(39), torch.arange(1, 40)])
    forest = root_forest(edge_index[:, edge_index[0] != 19], num_nodes=40)
    for node, others in ((3, slice(20, 40)), (30, slice(0, 20))):
        x, transition = make_inputs(40, 1)
        expected = backend.tree_scan(x, transition, forest, direction)
        x[node] = torch.inf
        h = backend.tree_scan(x, transition, forest, direction)
        assert torch.equal(h[others], expected[others])


def test_long_chain_against_recurrences(backend):
    num_nodes = 5000
    forest = root_forest(torch.stack([torch.arange(4999), torch.arange(1, 5000)]))
    x, transition = make_inputs(num_nodes, 2)
    up, down = x.clone(), x.clone()
    for i in range(num_nodes - 1, 0, -1):
        up[i - 1] += transition[i] * up[i]
    for i in range(1, num_nodes):
        down[i] += transition[i] * down[i - 1]
    assert_close(backend.tree_scan(x, transition, forest, "up"), up)
    assert_close(backend.tree_scan(x, transition, forest, "down"), down)
    assert_close(backend.tree_scan(x, transition, forest, "both"), up + down - x)


@pytest.mark.parametrize("kind", ["chain", "caterpillar", "star"])
def test_long_trees_train(kind, kernels):
    along = {"forest": make_forest(kind, 5000), "direction": "both"}
    operands = scan_operands(5000, 2)
    assert_same_scan(kernels.tree_scan, tree_scan_reference, operands, 1e-10, **along)


@directions
def test_strided_inputs(direction, backend):
    forest = make_forest("several", 31)
    x, transition = make_inputs(31, 5)
    expected = backend.tree_scan(x, transition, forest, direction)
    columns = x.t().contiguous().t()
    rows = torch.stack([transition, transition], dim=1).flatten(0, 1)[::2]
    assert not columns.is_contiguous() and not rows.is_contiguous()
    assert torch.equal(backend.tree_scan(columns, rows, forest, direction), expected)


@directions
def test_expanded_inputs(direction, backend):
    forest = make_forest("several", 31)
    x = torch.randn(31, 1, dtype=torch.float64, requires_grad=True)
    transition = torch.rand(1, 4, dtype=torch.float64, requires_grad=True)
    h = backend.tree_scan(x.expand(31, 4), transition.expand(31, 4), forest, direction)
    expected = backend.tree_scan(x.repeat(1, 4), transition.repeat(31, 1), forest, direction)
    assert torch.equal(h, expected)
    weight = torch.randn(4, dtype=torch.float64).expand(31, 4)
    actual_grad = torch.autograd.grad(h, (x, transition), weight)
    expected_grad = torch.autograd.grad(expected, (x, transition), weight.clone())
    assert_close(actual_grad, expected_grad)


@directions
def test_inputs_are_not_changed(direction, backend):
    forest = make_forest("several", 31)
    order, parent = forest.order.clone(), forest.parent.clone()
    x, transition = (tensor.requires_grad_() for tensor in make_inputs(31, 5))
    weight = torch.randn_like(x)
    copies = [tensor.detach().clone() for tensor in (x, transition, weight)]
    backend.tree_scan(x, transition, forest, direction).backward(weight)
    for tensor, copy in zip((x, transition, weight), copies, strict=True):
        assert torch.equal(tensor.detach(), copy)
    assert torch.equal(forest.order, order) and torch.equal(forest.parent, parent)


@directions
def test_output_shares_no_memory_with_input(direction, backend):
    forest = make_forest("isolated", 5)
    x, transition = make_inputs(5, 2)
    h = backend.tree_scan(x, transition, forest, direction)
    h.zero_()
    assert x.abs().min() > 0


def test_only_needed_gradients_are_returned(kernels):
    forest = make_forest("several", 9)
    x, transition = make_inputs(9, 2)
    x.requires_grad_()
    kernels.tree_scan(x, transition, forest).sum().backward()
    assert transition.grad is None and x.grad is not None
    assert not kernels.tree_scan(x.detach(), transition, forest).requires_grad


@directions
@pytest.mark.parametrize("kind", ["random", "several"])
def test_same_bits_with_any_number_of_threads(kind, direction):
    forest = make_forest(kind, 3001)
    weight = torch.randn(3001, 65)
    results = []
    for num_threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(num_threads)
        torch.manual_seed(0)
        x, transition = (t.requires_grad_() for t in make_inputs(3001, 65, torch.float32))
        h = tree_scan(x, transition, forest, direction)
        results.append((h, *torch.autograd.grad(h, (x, transition), weight)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_edge_direction_and_order_do_not_matter(kernels):
    edge_index = forest_edges("random", 40)
    x, transition = make_inputs(40, 3)
    shuffled = edge_index.flip(0)[:, torch.randperm(edge_index.size(1))]
    expected = kernels.tree_scan(x, transition, root_forest(edge_index))
    assert torch.equal(kernels.tree_scan(x, transition, root_forest(shuffled)), expected)


def good_input():
    x, transition = make_inputs(5, 3, torch.float32)
    return {"x": x, "transition": transition, "forest": make_forest("several", 5)}


ORDER = torch.arange(5)


@pytest.mark.parametrize(
    "argument, value, error, found",
    [
        ("x", [[0.0] * 3] * 5, TypeError, "list"),
        ("x", np.zeros((5, 3), np.float32), TypeError, "ndarray"),
        ("x", torch.ones(5, 3, dtype=torch.long), TypeError, "torch.int64"),
        ("x", torch.ones(5, 3, dtype=torch.complex64), TypeError, "torch.complex64"),
        ("x", torch.ones(5), ValueError, "[5]"),
        ("x", torch.ones(5, 3, 1), ValueError, "[5, 3, 1]"),
        ("transition", 0.5, TypeError, "float"),
        ("transition", torch.ones(5, 3, dtype=torch.long), TypeError, "torch.int64"),
        ("transition", torch.ones(5, 1), ValueError, "[5, 1]"),
        ("transition", torch.ones(4, 3), ValueError, "[4, 3]"),
        ("transition", torch.ones(5, 3, device="meta"), ValueError, "meta"),
        ("forest", None, TypeError, "NoneType"),
        ("forest", (ORDER, ORDER), TypeError, "tuple"),
        ("forest", Forest(ORDER[:4], ORDER[:4]), ValueError, "4"),
        ("forest", Forest(ORDER.to("meta"), ORDER.to("meta")), ValueError, "meta"),
        ("direction", None, TypeError, "NoneType"),
        ("direction", "sideways", ValueError, "sideways"),
    ],
)
def test_bad_input_is_refused(argument, value, error, found):
    with pytest.raises(error) as refusal:
        tree_scan(**{**good_input(), argument: value})
    message = str(refusal.value)
    assert f"'{argument}' must" in message
    assert found in message.split("got", 1)[1]


@pytest.mark.parametrize(
    "order, parent",
    [
        pytest.param([0, 1, 2], [0, 2, 0], id="child-before-parent"),
        pytest.param([0, 1, 2], [1, 2, 0], id="cycle"),
        pytest.param([0, 1, 2], [0, 2, 1], id="cycle-beside-a-tree"),
        pytest.param([0, 1, 1], [0, 0, 0], id="node-twice"),
        pytest.param([0, 1, 3], [0, 0, 0], id="order-outside"),
        pytest.param([0, -1, 2], [0, 0, 0], id="order-negative"),
        pytest.param([0, 1, 2], [0, 0, 3], id="parent-outside"),
        pytest.param([0, 1, 2], [0, 0, -1], id="parent-negative"),
    ],
)
@directions
def test_tensors_that_are_no_forest_are_refused(order, parent, direction):
    forest = Forest(torch.tensor(order), torch.tensor(parent))
    with pytest.raises(ValueError, match="'forest'"):
        tree_scan(torch.ones(3, 2), torch.ones(3, 2), forest, direction)
