from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from groot_graph import root_forest, selective_tree_scan, tree_scan
from groot_graph.forest import Forest
from groot_graph.ops.selective_tree_scan.reference import (
    selective_tree_scan_backward_reference,
    selective_tree_scan_reference,
)
from tests.equipment.graphs import FOREST_KINDS, make_forest
from tests.equipment.scans import (
    DIRECTIONS,
    EPS,
    FLOATS,
    OPTIONS,
    REQUIRED,
    TOLERANCE,
    assert_near,
    assert_same_scan,
    directions,
    norms,
    options,
    selective_operands,
)
from tests.equipment.strategies import forests

NEAR = TOLERANCE["selective_tree_scan"]
OPERANDS = OPTIONS["D-transition_delta"]
SHAPES = [
    ("random", 1, 1, 1),
    ("chain", 2, 3, 3),
    ("chain", 63, 65, 16),
    ("star", 63, 17, 1),
    ("several", 60, 64, 3),
    ("caterpillar", 60, 17, 16),
    ("isolated", 63, 3, 3),
    ("random", 257, 160, 1),
    ("binary", 257, 1, 16),
    ("several", 150, 33, 3),
    ("chain", 63, 5, 16),
    ("chain", 900, 3, 16),
]
# Of the half types, what is quick by default.
SHAPES_IN_DTYPES = [
    pytest.param(
        *shape,
        dtype,
        id="-".join(map(str, (*shape, dtype))),
        marks=pytest.mark.full if dtype.itemsize == 2 and shape not in SHAPES[-3:-1] else (),
    )
    for shape in SHAPES
    for dtype in FLOATS
]


@pytest.fixture
def scan(backend):
    return backend.selective_tree_scan


def make_inputs(num_nodes, num_channels, state_size, names=OPERANDS, dtype=torch.float64):
    operands = selective_operands(num_nodes, num_channels, state_size, dtype)
    return {name: operands[name] for name in names}


def run(scan, inputs, forest, direction="both", state_norm_eps=None):
    required = [inputs[name] for name in REQUIRED]
    return scan(
        *required,
        forest,
        D=inputs.get("D"),
        direction=direction,
        transition_delta=inputs.get("transition_delta"),
        state_norm_eps=state_norm_eps,
    )


def require_grad(inputs):
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}


def gradients(y, inputs, weight):
    # The reference does not touch the transitions of roots, which may be all there are.
    grads = torch.autograd.grad(
        y, list(inputs.values()), weight, allow_unused=True, materialize_grads=True
    )
    return dict(zip(inputs, grads, strict=True))


def path_products(transition, parent, direction) -> np.ndarray:
    """[listener, speaker, ...]: the product of the transitions on their path, 0 where unheard."""
    num_nodes = len(parent)
    lines = []
    for i in range(num_nodes):
        line = {i}
        while parent[i] != i:
            i = parent[i]
            line.add(i)
        lines.append(line)
    products = np.zeros((num_nodes, *transition.shape))
    for i, listener in enumerate(lines):
        for j, speaker in enumerate(lines):
            heard = {"up": i in speaker, "down": j in listener, "both": listener & speaker}
            if heard[direction]:
                products[i, j] = transition[sorted(listener ^ speaker)].prod(axis=0)
    return products


def brute_force_scan(inputs, parent, direction, eps=None) -> torch.Tensor:
    u, delta, A, B, C = (inputs[name].numpy() for name in REQUIRED)
    transition_delta = inputs.get("transition_delta", inputs["delta"]).numpy()
    transition = np.exp(transition_delta[:, :, None] * A)
    x = (delta * u)[:, :, None] * B[:, None, :]
    h = np.einsum("ijds,jds->ids", path_products(transition, parent, direction), x)
    if eps is not None and h.size:
        h = (h - h.mean(axis=1, keepdims=True)) / np.sqrt(h.var(axis=1, keepdims=True) + eps)
    y = np.einsum("ids,is->id", h, C)
    return torch.from_numpy(y + inputs["D"].numpy() * u if "D" in inputs else y)


@given(
    forest=forests(max_nodes=12),
    num_channels=st.integers(0, 3),
    state_size=st.integers(1, 3),
    names=st.sampled_from(list(OPTIONS.values())),
    eps=st.sampled_from([None, EPS]),
    seed=st.integers(0, 2**16),
)
def test_equals_brute_force_over_all_paths(
    scan, forest, num_channels, state_size, names, eps, seed
):
    edge_index, num_nodes = forest
    forest = root_forest(edge_index, num_nodes=num_nodes)
    torch.manual_seed(seed)
    inputs = make_inputs(num_nodes, num_channels, state_size, names)
    for direction in DIRECTIONS:
        expected = brute_force_scan(inputs, forest.parent.tolist(), direction, eps)
        y = run(scan, inputs, forest, direction, eps)
        assert_close(y, expected, rtol=1e-9, atol=1e-9)


@directions
def test_takes_any_order_with_parents_before_children(direction, scan):
    parent = torch.tensor([3, 3, 0, 3, 0, 1, 6])
    forest = Forest(torch.tensor([3, 6, 1, 0, 5, 2, 4]), parent)
    inputs = make_inputs(7, 3, 2)
    expected = brute_force_scan(inputs, parent.tolist(), direction)
    assert_close(run(scan, inputs, forest, direction), expected)


@pytest.mark.sampled(3)
@directions
@options
@norms
@pytest.mark.parametrize("state_size", [1, 2], ids=lambda s: f"S{s}")
def test_gradcheck(state_size, eps, names, direction):
    forest = make_forest("several", 7)
    inputs = require_grad(make_inputs(7, 3, state_size, names))

    def scan_of(*tensors):
        operands = dict(zip(names, tensors, strict=True))
        return run(selective_tree_scan, operands, forest, direction, eps)

    assert gradcheck(scan_of, tuple(inputs.values()))


@pytest.mark.parametrize("operand", OPERANDS)
def test_gradcheck_of_one_operand(operand):
    forest = make_forest("several", 7)
    inputs = make_inputs(7, 2, 2)
    inputs[operand].requires_grad_()
    run(selective_tree_scan, inputs, forest).sum().backward()
    assert [name for name in OPERANDS if inputs[name].grad is not None] == [operand]
    assert gradcheck(
        lambda tensor: run(selective_tree_scan, {**inputs, operand: tensor}, forest),
        (inputs[operand],),
    )


@pytest.mark.sampled(3)
@directions
@norms
@pytest.mark.parametrize("kind, num_nodes, num_channels, state_size, dtype", SHAPES_IN_DTYPES)
def test_values_and_gradients_in_every_dtype(
    kind, num_nodes, num_channels, state_size, dtype, eps, direction, kernels
):
    operands = selective_operands(num_nodes, num_channels, state_size, dtype)
    assert_same(kernels, operands, NEAR[dtype], make_forest(kind, num_nodes), direction, eps)


def assert_same(kernels, operands, tolerance, forest, direction="both", eps=None):
    settings = {"forest": forest, "direction": direction, "state_norm_eps": eps}
    scans = kernels.selective_tree_scan, selective_tree_scan_reference
    assert_same_scan(*scans, operands, tolerance, **settings)


@pytest.mark.sampled(3)
@directions
@norms
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(names, id=name, marks=() if names == OPERANDS else pytest.mark.full)
        for name, names in OPTIONS.items()
    ],
)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (2, 3, 3), (63, 33, 1), (60, 5, 16), (257, 17, 3)],
    ids=lambda shape: "N{}-D{}-S{}".format(*shape),
)
def test_values_and_gradients_on_every_kind_of_forest(shape, names, eps, direction, kernels):
    for kind in FOREST_KINDS:
        operands = make_inputs(*shape, names)
        assert_same(kernels, operands, 1e-10, make_forest(kind, shape[0]), direction, eps)


@options
@norms
def test_gradients_of_every_option_against_reference(eps, names, kernels):
    operands = make_inputs(63, 17, 3, names)
    assert_same(kernels, operands, 1e-10, make_forest("several", 63), eps=eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_rows_of_whole_and_of_misaligned_chunks(direction, dtype, kernels):
    forest, operands = make_forest("several", 31), selective_operands(31, 3, 16, dtype)
    one_off = {
        name: torch.cat([operands[name].flatten()[:1], operands[name].flatten()])[1:]
        for name in "BC"
    }
    one_off = {name: value.view(31, 16) for name, value in one_off.items()}
    assert all(value.is_contiguous() and value.data_ptr() % 16 for value in one_off.values())
    scan = partial(kernels.selective_tree_scan, forest=forest, direction=direction)
    assert torch.equal(scan(**operands | one_off), scan(**operands))


@directions
def test_mixed_dtypes_are_computed_in_the_widest(direction, kernels):
    forest, operands = make_forest("several", 31), selective_operands(31, 3, 2, torch.float32)
    mixed = operands | {name: operands[name].bfloat16() for name in ("u", "B")}
    exact = {name: value.float() for name, value in mixed.items()}
    scan = partial(kernels.selective_tree_scan, forest=forest, direction=direction)
    assert torch.equal(scan(**mixed), scan(**exact).bfloat16())


@directions
@options
def test_gradients_of_the_reference_by_the_equations(names, direction):
    forest = make_forest("several", 63)
    inputs = require_grad(make_inputs(63, 17, 3, names))
    weight = torch.randn(63, 17, dtype=torch.float64)
    for eps in (None, EPS):
        y = run(selective_tree_scan_reference, inputs, forest, direction, eps)
        found = run(partial(selective_tree_scan_backward_reference, weight), inputs, forest,
                    direction, eps)  # fmt: skip
        grads = dict(zip(OPERANDS, found, strict=True))
        for name, grad in gradients(y, inputs, weight).items():
            assert_near(f"{name}.grad", grads[name], grad, 1e-10)


def test_a_state_far_from_zero_is_normalized_to_full_precision(kernels):
    forest = make_forest("isolated", 9)
    inputs = make_inputs(9, 65, 2, REQUIRED, torch.float32)
    inputs["u"] = inputs["u"] / 100 + 10
    inputs["delta"] = torch.ones_like(inputs["delta"])
    y = run(kernels.selective_tree_scan, inputs, forest, state_norm_eps=1e-6)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    expected = run(selective_tree_scan_reference, exact, forest, state_norm_eps=1e-6)
    assert_near("y", y, expected, 1e-3)  # of differences of a thousandth of the values


@options
def test_gradients_under_checkpointing(names):
    forest = root_forest(torch.tensor([[0, 1, 1], [1, 2, 3]]))
    inputs = require_grad(make_inputs(4, 3, 2, names))
    weight = torch.randn(4, 3, dtype=torch.float64)
    expected = gradients(run(selective_tree_scan, inputs, forest), inputs, weight)
    y = checkpoint(run, selective_tree_scan, inputs, forest, use_reentrant=False)
    for name, grad in gradients(y, inputs, weight).items():
        assert_close(grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_inputs_with_float32_parameters(half, kernels):
    forest = make_forest("several", 60)
    inputs = make_inputs(60, 17, 3, dtype=torch.float32)
    for name in ("u", "B", "C"):
        inputs[name] = inputs[name].to(half)
    exact_y = run(selective_tree_scan_reference, {k: v.double() for k, v in inputs.items()}, forest)
    inputs = require_grad(inputs)
    y = run(kernels.selective_tree_scan, inputs, forest)
    assert y.dtype == half
    assert_near("y", y, exact_y, NEAR[half])
    for name, grad in gradients(y, inputs, torch.ones_like(y)).items():
        assert grad.dtype == inputs[name].dtype


@directions
@norms
@options
@pytest.mark.parametrize("shape", [(0, 0, 0), (0, 0, 1), (0, 3, 2), (5, 0, 2), (5, 3, 0)], ids=str)
def test_of_nothing(shape, names, eps, direction, scan):
    forest = make_forest("several", shape[0])
    inputs = require_grad(make_inputs(*shape, names))
    y = run(scan, inputs, forest, direction, eps)
    grads = gradients(y, inputs, torch.ones_like(y))
    assert_close(y, inputs["D"] * inputs["u"] if "D" in names else torch.zeros_like(y))
    assert [grads[name].shape for name in names] == [inputs[name].shape for name in names]


@directions
def test_equals_tree_scan_of_discretised_inputs(direction, scan):
    forest = make_forest("several", 33)
    inputs = make_inputs(33, 5, 3)
    u, delta, A, B, C, D, transition_delta = inputs.values()
    x = (delta * u)[:, :, None] * B[:, None, :]
    transition = torch.exp(transition_delta[:, :, None] * A)
    h = tree_scan(x.flatten(1), transition.flatten(1), forest, direction).view_as(x)
    assert_close(run(scan, inputs, forest, direction), (h * C[:, None, :]).sum(-1) + D * u)


@pytest.mark.parametrize("num_tokens", [1, 2, 63, 257], ids=lambda n: f"N{n}")
def test_up_on_a_chain_is_mamba(num_tokens, scan):
    # The edge from token t carries the transition of token t + 1.
    edge_index = torch.stack([torch.arange(num_tokens - 1), torch.arange(1, num_tokens)])
    forest = root_forest(edge_index, num_nodes=num_tokens, root="last")
    inputs = make_inputs(num_tokens, 5, 3)
    delta = inputs["delta"]
    inputs["transition_delta"] = torch.cat([delta[1:], delta[:1]])
    u, _, A, B, C, D, _ = inputs.values()
    state = torch.zeros(5, 3, dtype=torch.float64)
    expected = torch.empty_like(u)
    for t in range(num_tokens):
        state = torch.exp(delta[t, :, None] * A) * state + (delta[t] * u[t])[:, None] * B[t]
        expected[t] = state @ C[t] + D * u[t]
    assert_close(run(scan, inputs, forest, "up"), expected)


@directions
def test_transition_of_root_is_ignored(direction, scan):
    forest = make_forest("several", 17)
    inputs = require_grad(make_inputs(17, 3, 2))
    changed = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    changed["transition_delta"][forest.roots] += 3
    changed = require_grad(changed)
    y, changed_y = (run(scan, operands, forest, direction) for operands in (inputs, changed))
    assert torch.equal(y, changed_y)
    grads = gradients(y, inputs, torch.ones_like(y))
    assert torch.equal(grads["transition_delta"][forest.roots], torch.zeros(forest.num_trees, 3))
    assert_close(gradients(changed_y, changed, torch.ones_like(y)), grads)


@directions
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-11), (torch.float32, 2e-6)], ids=str)
def test_transition_over_the_whole_range_of_exp(dtype, rtol, direction):
    exponent = torch.tensor(
        [-torch.inf, -1e4, -740, -100, -87.3, -20, -1, -1e-9, -0.0, 0, 1e-9, 1, 20, 88, 89, 709]
        + [710, 1e4, torch.inf, torch.nan],
        dtype=dtype,
    )
    num_channels = len(exponent)
    forest = make_forest("chain", 2)
    ones = torch.ones(2, 1, dtype=dtype)
    u = torch.zeros(2, num_channels, dtype=dtype)
    listener = forest.roots if direction != "down" else 1 - forest.roots
    u[1 - listener] = 1
    delta = torch.ones(2, num_channels, dtype=dtype)
    y = selective_tree_scan(u, delta, exponent[:, None], ones, ones, forest, direction=direction)
    # The kernel may round what is next to the smallest normal number down to zero.
    smallest = 2 * torch.finfo(dtype).tiny
    assert_close(y[listener[0]], exponent.exp(), rtol=rtol, atol=smallest, equal_nan=True)


@pytest.mark.sampled(3)
@directions
@pytest.mark.parametrize("kind", ["chain", "caterpillar", "star"])
def test_long_trees_train(kind, direction, kernels):
    operands = selective_operands(5000, 2, 2)
    assert_same(kernels, operands, 1e-9, make_forest(kind, 5000), direction)


@directions
@norms
def test_strided_inputs(eps, direction, scan):
    forest = make_forest("several", 31)
    inputs = make_inputs(31, 5, 3)
    strided = {
        name: torch.stack([tensor, -tensor], dim=-1)[..., 0] for name, tensor in inputs.items()
    }
    strided["delta"] = inputs["delta"].t().contiguous().t()
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    expected = run(scan, inputs, forest, direction, eps)
    assert_close(run(scan, strided, forest, direction, eps), expected, rtol=0, atol=1e-14)


@directions
def test_expanded_inputs(direction, scan):
    forest = make_forest("several", 31)
    sizes = {"u": (1, 5), "delta": (31, 1), "A": (1, 3), "B": (31, 1), "C": (1, 3), "D": (1,)}
    shapes = {"u": (31, 5), "delta": (31, 5), "A": (5, 3), "B": (31, 3), "C": (31, 3), "D": (5,)}
    small = {
        name: torch.rand(size, dtype=torch.float64).requires_grad_() for name, size in sizes.items()
    }
    expanded = {name: tensor.expand(shapes[name]) for name, tensor in small.items()}
    copied = {name: tensor.clone() for name, tensor in expanded.items()}
    weight = torch.randn(5, dtype=torch.float64).expand(31, 5)
    y, expected = (run(scan, inputs, forest, direction) for inputs in (expanded, copied))
    assert_close(y, expected)
    assert_close(gradients(y, small, weight), gradients(expected, small, weight))


@directions
@norms
def test_inputs_are_not_changed(eps, direction, scan):
    forest = make_forest("several", 31)
    inputs = require_grad(make_inputs(31, 5, 3))
    copies = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    weight = torch.randn(31, 5, dtype=torch.float64)
    weight_copy = weight.clone()
    run(scan, inputs, forest, direction, eps).backward(weight)
    assert torch.equal(weight, weight_copy)
    for name in OPERANDS:
        assert torch.equal(inputs[name].detach(), copies[name])


@directions
@norms
@pytest.mark.parametrize(
    "kind, num_nodes, num_channels, state_size",
    [("random", 1001, 65, 3), ("several", 2001, 17, 1), ("chain", 2001, 65, 16)],
    ids=lambda value: str(value),
)
def test_same_bits_with_any_number_of_threads(
    kind, num_nodes, num_channels, state_size, eps, direction
):
    forest = make_forest(kind, num_nodes)
    inputs = require_grad(make_inputs(num_nodes, num_channels, state_size, dtype=torch.float32))
    weight = torch.randn(num_nodes, num_channels)
    results = []
    for num_threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(num_threads)
        y = run(selective_tree_scan, inputs, forest, direction, eps)
        results.append((y, *gradients(y, inputs, weight).values()))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


ORDER = torch.arange(5)
MISFITS = {
    "u": [(5,), (5, 3, 1)],
    "delta": [(5, 1), (4, 3)],
    "A": [(3,), (4, 2), (3, 2, 1)],
    "B": [(5,), (4, 2), (5, 3)],
    "C": [(5,), (4, 2), (5, 3)],
    "D": [(2,), (5, 3), ()],
    "transition_delta": [(5, 1), (4, 3)],
}


def bad_operands():
    for name, shapes in MISFITS.items():
        good = make_inputs(5, 3, 2, [name])[name]
        yield pytest.param(name, good.tolist(), TypeError, "list", id=f"{name}-list")
        yield pytest.param(name, good.long(), TypeError, "torch.int64", id=f"{name}-int64")
        for shape in shapes:
            found = str(list(shape))
            yield pytest.param(name, torch.ones(shape), ValueError, found, id=f"{name}-{found}")
        if name != "u":
            yield pytest.param(name, good.to("meta"), ValueError, "meta", id=f"{name}-device")


@pytest.mark.parametrize(
    "argument, value, error, found",
    [
        *bad_operands(),
        ("forest", None, TypeError, "NoneType"),
        ("forest", (ORDER, ORDER), TypeError, "tuple"),
        ("forest", Forest(ORDER[:4], ORDER[:4]), ValueError, "4"),
        ("forest", Forest(ORDER.to("meta"), ORDER.to("meta")), ValueError, "meta"),
        ("forest", Forest(ORDER, torch.tensor([1, 2, 0, 3, 4])), ValueError, ""),
        ("direction", None, TypeError, "NoneType"),
        ("direction", "sideways", ValueError, "sideways"),
        ("state_norm_eps", "1e-5", TypeError, "str"),
        ("state_norm_eps", True, TypeError, "bool"),
        ("state_norm_eps", 0, ValueError, "0"),
        ("state_norm_eps", float("nan"), ValueError, "nan"),
    ],
)
def test_bad_input_is_refused(argument, value, error, found):
    inputs = {**make_inputs(5, 3, 2), "forest": make_forest("several", 5)}
    with pytest.raises(error) as refusal:
        selective_tree_scan(**{**inputs, argument: value})
    message = str(refusal.value)
    assert f"'{argument}' must" in message
    assert found in message.split("got", 1)[1]
