import pytest
import torch
from torch.autograd import gradcheck

from groot_graph import root_forest, selective_tree_scan
from groot_graph.ops.selective_tree_scan.reference import selective_tree_scan_reference
from tests.equipment.cuda_host.sanitize import run_sanitized
from tests.equipment.graphs import FOREST_KINDS, make_forest
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels, seen_by, without_plan
from tests.equipment.scans import EPS, assert_near, directions, norms, selective_operands

REQUIRED = ("u", "delta", "A", "B", "C")
OPTIONS = {
    "plain": REQUIRED,
    "D": (*REQUIRED, "D"),
    "transition_delta": (*REQUIRED, "transition_delta"),
    "D-transition_delta": (*REQUIRED, "D", "transition_delta"),
}
SHAPES = [(1, 1, 1), (2, 3, 3), (63, 33, 1), (60, 5, 16), (257, 17, 3)]
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 3e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}


def options(test):
    return pytest.mark.parametrize("names", OPTIONS.values(), ids=OPTIONS.keys())(test)


def with_gradients(scan, inputs, weight, forest, direction, eps=None) -> dict:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    y = scan(**leaves, forest=forest, direction=direction, state_norm_eps=eps)
    grads = torch.autograd.grad(
        y, list(leaves.values()), weight, allow_unused=True, materialize_grads=True
    )
    named = {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"y": y.detach(), **named}


def assert_equals_reference(
    forest, num_channels, num_states, direction, names, dtype=torch.float64, eps=None, **kernels
):
    operands = selective_operands(forest.num_nodes, num_channels, num_states, dtype)
    inputs = {name: operands[name] for name in names}
    weight = torch.randn(forest.num_nodes, num_channels, dtype=torch.float64).to(dtype)
    with cuda_kernels(**kernels):
        forest = without_plan(forest)
        actual = with_gradients(selective_tree_scan, inputs, weight, forest, direction, eps)
    exact = {name: value.double() for name, value in inputs.items()}
    expected = with_gradients(
        selective_tree_scan_reference, exact, weight.double(), forest, direction, eps
    )
    for name, value in actual.items():
        assert value.dtype == dtype
        assert_near(name, value, expected[name], TOLERANCE[dtype])


@directions
@options
@norms
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "N{}-D{}-S{}".format(*shape))
def test_values_and_gradients_against_reference(shape, eps, names, direction):
    num_nodes, num_channels, num_states = shape
    for kind in FOREST_KINDS:
        forest = make_forest(kind, num_nodes)
        assert_equals_reference(forest, num_channels, num_states, direction, names, eps=eps)


@directions
@pytest.mark.parametrize("num_channels, num_states", [(3, 11), (9, 2)])
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_through_many_levels(kind, num_channels, num_states, direction):
    names, forest = OPTIONS["D-transition_delta"], make_forest(kind, 150)
    shape = num_channels, num_states
    assert_equals_reference(forest, *shape, direction, names, **SHORT_SEGMENTS)


@directions
def test_long_chain(direction):
    edge_index = torch.stack([torch.arange(899), torch.arange(1, 900)])
    forest = root_forest(edge_index, root="last")
    assert_equals_reference(forest, 3, 16, direction, OPTIONS["D-transition_delta"])


@directions
@norms
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_dtype(dtype, eps, direction):
    names, forest = OPTIONS["D-transition_delta"], make_forest("several", 150)
    assert_equals_reference(forest, 33, 3, direction, names, dtype, eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_rows_of_whole_and_of_misaligned_chunks(direction, dtype):
    forest, operands = make_forest("several", 31), selective_operands(31, 3, 16, dtype)
    one_off = {
        name: torch.cat([operands[name].flatten()[:1], operands[name].flatten()])[1:]
        for name in "BC"
    }
    one_off = {name: value.view(31, 16) for name, value in one_off.items()}
    assert all(value.is_contiguous() and value.data_ptr() % 16 for value in one_off.values())
    with cuda_kernels():
        forest = without_plan(forest)
        expected = selective_tree_scan(**operands, forest=forest, direction=direction)
        found = selective_tree_scan(**operands | one_off, forest=forest, direction=direction)
    assert torch.equal(found, expected)


@directions
def test_mixed_dtypes_are_computed_in_the_widest(direction):
    forest, operands = make_forest("several", 31), selective_operands(31, 3, 2, torch.float32)
    mixed = operands | {name: operands[name].bfloat16() for name in ("u", "B")}
    exact = {name: value.float() for name, value in mixed.items()}
    with cuda_kernels():
        y = selective_tree_scan(**mixed, forest=without_plan(forest), direction=direction)
        expected = selective_tree_scan(**exact, forest=without_plan(forest), direction=direction)
    assert torch.equal(y, expected.bfloat16())


@directions
@options
@pytest.mark.parametrize("shape", [(0, 3, 2), (5, 0, 2), (5, 3, 0), (0, 0, 0)], ids=str)
def test_of_nothing(shape, names, direction):
    num_nodes, num_channels, num_states = shape
    forest = make_forest("several", num_nodes)
    for eps in (None, EPS):
        assert_equals_reference(forest, num_channels, num_states, direction, names, eps=eps)


@directions
@options
def test_gradcheck(names, direction):
    operands = selective_operands(7, 3, 2)
    leaves = tuple(operands[name].requires_grad_() for name in names)
    with cuda_kernels(**SHORT_SEGMENTS):
        forest = without_plan(make_forest("several", 7))

        def scan(*values):
            inputs = dict(zip(names, values, strict=True))
            return selective_tree_scan(**inputs, forest=forest, direction=direction)

        assert gradcheck(scan, leaves)


@directions
@pytest.mark.parametrize("kind", ["random", "several"])
def test_same_bits_in_any_order_of_threads(kind, direction):
    inputs = selective_operands(300, 35, 3, torch.float32)
    weight, results = torch.randn(300, 35), []
    for seed in range(3):
        with cuda_kernels(seed):
            forest = without_plan(make_forest(kind, 300))
            results.append(with_gradients(selective_tree_scan, inputs, weight, forest, direction))
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


@directions
@norms
def test_never_holds_the_states_of_all_nodes(eps, direction):
    num_nodes, num_channels, num_states = 3000, 8, 16
    inputs = selective_operands(num_nodes, num_channels, num_states, torch.float32)
    forest = root_forest(torch.stack([torch.arange(2999), torch.arange(1, 3000)]))
    largest = LargestTensor()
    with cuda_kernels(), seen_by(largest):
        forest = without_plan(forest)
        weight = torch.randn(num_nodes, num_channels)
        with_gradients(selective_tree_scan, inputs, weight, forest, direction, eps)
    assert largest.num_elements > num_nodes * num_channels
    assert largest.num_elements <= num_nodes * num_channels * num_states / 4


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Sees what is allocated, also inside of custom operations."""

    num_elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result


@pytest.mark.full
def test_no_access_out_of_bounds():
    run_sanitized("""
import torch
from groot_graph import selective_tree_scan
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels, seen_by, without_plan
from tests.equipment.graphs import FOREST_KINDS, make_forest
from tests.equipment.scans import selective_operands
for kind in FOREST_KINDS:
    for *shape, length in ((63, 5, 3, SHORT_SEGMENTS), (600, 3, 1, {})):
        num_nodes = shape[0]
        forest = make_forest(kind, num_nodes)
        for direction in ("both", "up", "down"):
            with cuda_kernels(num_nodes, **length):
                operands = selective_operands(*shape, torch.float32)
                leaves = {name: value.requires_grad_() for name, value in operands.items()}
                forest = without_plan(forest)
                selective_tree_scan(**leaves, forest=forest, direction=direction).sum().backward()
""")
