import pytest
import torch
from torch.autograd import gradcheck

from groot_graph import minimum_spanning_forest, root_forest, tree_scan
from groot_graph.ops.tree_scan.reference import tree_scan_reference
from tests.equipment.cuda_host.sanitize import run_sanitized
from tests.equipment.graphs import FOREST_KINDS, make_forest
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels, without_plan
from tests.equipment.scans import assert_near, directions

SHAPES = [(1, 1), (2, 3), (63, 17), (257, 5), (700, 3)]
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def make_inputs(num_nodes, num_channels, dtype=torch.float64):
    x = torch.randn(num_nodes, num_channels, dtype=torch.float64)
    transition = torch.rand(num_nodes, num_channels, dtype=torch.float64)
    return x.to(dtype), transition.to(dtype)


def with_gradients(scan, inputs, weight, forest, direction) -> dict:
    x, transition = (tensor.detach().clone().requires_grad_() for tensor in inputs)
    h = scan(x, transition, forest, direction)
    grad_x, grad_transition = torch.autograd.grad(
        h, (x, transition), weight, allow_unused=True, materialize_grads=True
    )
    return {"h": h.detach(), "gradient of x": grad_x, "gradient of transition": grad_transition}


def assert_equals_reference(forest, num_channels, direction, dtype=torch.float64, **kernels):
    inputs = make_inputs(forest.num_nodes, num_channels, dtype)
    weight = torch.randn(forest.num_nodes, num_channels, dtype=torch.float64).to(dtype)
    with cuda_kernels(**kernels):
        actual = with_gradients(tree_scan, inputs, weight, without_plan(forest), direction)
    exact = [tensor.double() for tensor in inputs]
    expected = with_gradients(tree_scan_reference, exact, weight.double(), forest, direction)
    for name, value in actual.items():
        assert value.dtype == dtype
        assert_near(name, value, expected[name], TOLERANCE[dtype])


@directions
@pytest.mark.parametrize("num_nodes, num_channels", SHAPES, ids=lambda value: str(value))
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_values_and_gradients_against_reference(kind, num_nodes, num_channels, direction):
    assert_equals_reference(make_forest(kind, num_nodes), num_channels, direction)


@directions
@pytest.mark.parametrize("most, few", [(4, 6), (7, 9)])
@pytest.mark.parametrize("num_nodes", [9, 63, 257])
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_through_many_levels(kind, num_nodes, most, few, direction):
    assert_equals_reference(make_forest(kind, num_nodes), 3, direction, most=most, few=few)


@directions
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["several", "caterpillar"])
def test_every_dtype(kind, dtype, direction):
    assert_equals_reference(make_forest(kind, 257), 33, direction, dtype)


@directions
def test_over_the_spanning_forest_of_images(direction):
    node = torch.arange(2 * 40 * 30).view(2, 40, 30)
    vertical = torch.stack([node[:, :-1].flatten(), node[:, 1:].flatten()])
    horizontal = torch.stack([node[:, :, :-1].flatten(), node[:, :, 1:].flatten()])
    edge_index = torch.cat([vertical, horizontal], dim=1)
    edge_mask = minimum_spanning_forest(edge_index, torch.rand(edge_index.size(1)))
    forest = root_forest(edge_index, edge_mask)
    assert forest.depth().max() > 64
    assert_equals_reference(forest, 5, direction)


@directions
@pytest.mark.parametrize("num_nodes, num_channels", [(0, 0), (0, 3), (5, 0)])
def test_of_nothing(num_nodes, num_channels, direction):
    forest = make_forest("several", num_nodes)
    assert_equals_reference(forest, num_channels, direction)


@directions
@pytest.mark.parametrize("kind", ["several", "chain", "star"])
def test_gradcheck(kind, direction):
    forest = make_forest(kind, 9)
    inputs = tuple(tensor.requires_grad_() for tensor in make_inputs(9, 2))
    with cuda_kernels(**SHORT_SEGMENTS):
        forest = without_plan(forest)
        assert gradcheck(lambda x, a: tree_scan(x, a, forest, direction), inputs)


@directions
def test_transition_of_root_is_ignored(direction):
    forest = make_forest("several", 60)
    x, transition = make_inputs(60, 3)
    with cuda_kernels(**SHORT_SEGMENTS):
        forest = without_plan(forest)
        expected = tree_scan(x, transition, forest, direction)
        transition[forest.roots] = torch.nan
        transition.requires_grad_()
        h = tree_scan(x, transition, forest, direction)
        (grad,) = torch.autograd.grad(h.sum(), transition)
    assert torch.equal(h, expected)
    assert torch.equal(grad[forest.roots], torch.zeros(forest.num_trees, 3).double())
    assert grad.isfinite().all()


@directions
@pytest.mark.parametrize("lengths", [SHORT_SEGMENTS, {}], ids=["cut", "together-in-a-segment"])
def test_infinite_input_stays_in_its_tree(lengths, direction):
    edge_index = torch.stack([torch.arange(39), torch.arange(1, 40)])
    edge_index = edge_index[:, edge_index[0] != 19]
    with cuda_kernels(**lengths):
        forest = root_forest(edge_index, num_nodes=40)
        for node, others in ((3, slice(20, 40)), (30, slice(0, 20))):
            x, transition = make_inputs(40, 1)
            expected = tree_scan(x, transition, forest, direction)
            x[node] = torch.inf
            h = tree_scan(x, transition, forest, direction)
            assert torch.equal(h[others], expected[others])


@directions
@pytest.mark.parametrize("kind", ["random", "several"])
def test_same_bits_in_any_order_of_threads(kind, direction):
    forest = make_forest(kind, 700)
    inputs, weight = make_inputs(700, 9, torch.float32), torch.randn(700, 9)
    results = []
    for seed in range(3):
        with cuda_kernels(seed):
            forest = without_plan(forest)
            results.append(with_gradients(tree_scan, inputs, weight, forest, direction))
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


@directions
def test_strided_and_expanded_inputs(direction):
    x, transition = make_inputs(31, 5)
    with cuda_kernels():
        forest = without_plan(make_forest("several", 31))
        expected = tree_scan(x, transition, forest, direction)
        columns = x.t().contiguous().t()
        assert torch.equal(tree_scan(columns, transition, forest, direction), expected)
        leaf = torch.rand(1, 5, dtype=torch.float64, requires_grad=True)
        h = tree_scan(x, leaf.expand(31, 5), forest, direction)
        (grad,) = torch.autograd.grad(h, leaf, torch.ones(1, 5).double().expand(31, 5))
    assert_near("h", h, tree_scan_reference(x, leaf.expand(31, 5), forest, direction), 1e-10)
    assert grad.shape == (1, 5)


@pytest.mark.parametrize("bits", [0, 1, 2], ids=["zero", "subnormal", "normal"])
def test_every_half_number_is_read_as_it_is(bits):
    # One isolated node for each: the scan of an isolated node is what went in.
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    for dtype in (torch.float16, torch.bfloat16):
        x = numbers.view(dtype)[bits::3][:, None]
        is_number = ~x.isnan().flatten()
        with cuda_kernels():
            forest = root_forest(torch.empty(2, 0, dtype=torch.long), num_nodes=len(x))
            h = tree_scan(x, torch.zeros_like(x), forest, "up")
        assert torch.equal(h[is_number], x[is_number])
        assert h[~is_number].isnan().all()


@pytest.mark.full
def test_no_access_out_of_bounds():
    run_sanitized("""
import torch
from groot_graph import tree_scan
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels, without_plan
from tests.equipment.graphs import FOREST_KINDS, make_forest
for kind in FOREST_KINDS:
    for num_nodes, length in ((1, {}), (63, SHORT_SEGMENTS), (700, {})):
        forest = make_forest(kind, num_nodes)
        for direction in ("both", "up", "down"):
            with cuda_kernels(num_nodes, **length):
                x, transition = (torch.rand(num_nodes, 3, requires_grad=True) for _ in range(2))
                tree_scan(x, transition, without_plan(forest), direction).sum().backward()
""")
