import warnings
from importlib import import_module

import pytest
import torch
from torch.library import opcheck
from torch.testing import assert_close

from groot_graph import minimum_spanning_forest, root_forest, selective_tree_scan, tree_scan
from groot_graph.ops import dispatch
from groot_graph.ops.dtypes import operand_dtype
from groot_graph.ops.plan import plan_of
from tests.equipment.graphs import make_forest, random_graph
from tests.equipment.scans import DIRECTIONS, norms, selective_operands

OPERATIONS = ("minimum_spanning_forest", "root_forest", "tree_scan", "selective_tree_scan")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def reference_of(operation, device, step=""):
    module = import_module(f"groot_graph.ops.{operation}.reference")
    return getattr(module, f"{operation}{step}_reference")


@pytest.fixture
def use_reference(monkeypatch):
    """Computes on the CPU what a device without kernels computes."""

    def patch():
        monkeypatch.setattr(dispatch, "implementation", reference_of)

    return patch


def make_operands(num_nodes, num_channels, state_size, dtype=torch.float64) -> dict:
    operands = selective_operands(num_nodes, num_channels, state_size, dtype)
    return {name: operand.requires_grad_() for name, operand in operands.items()}


def plain(forest) -> tuple:
    return forest.order, forest.parent, plan_of(forest)


def whole_chain(edge_index, edge_weight, x, transition, operands, direction="both"):
    """Every operation once, as one differentiable function of tensors."""
    edge_mask = minimum_spanning_forest(edge_index, edge_weight, x.size(0))
    forest = root_forest(edge_index, edge_mask, x.size(0), "last")
    h = tree_scan(x, transition, forest, direction)
    return h, selective_tree_scan(**operands, forest=forest, direction=direction)


def chain_inputs(num_nodes=33, num_edges=63, num_channels=5, dtype=torch.float64) -> tuple:
    x = torch.randn(num_nodes, num_channels, dtype=torch.float64).to(dtype).requires_grad_()
    transition = torch.rand(num_nodes, num_channels, dtype=torch.float64).to(dtype)
    return (
        random_graph(num_nodes, num_edges),
        torch.rand(num_edges),
        x,
        transition.requires_grad_(),
        make_operands(num_nodes, num_channels, 3, dtype),
    )


def outputs_and_gradients(chain, inputs, direction) -> dict:
    h, y = chain(*inputs, direction)
    *_, x, transition, operands = inputs
    leaves = {"x": x, "transition": transition, **operands}
    scalar = (h.float().sin().sum() + y.float().sin().sum()).double()
    grads = torch.autograd.grad(scalar, list(leaves.values()))
    return {"h": h.detach(), "y": y.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cpu_tensors_get_compiled_kernels(operation):
    function = dispatch.implementation(operation, torch.device("cpu"))
    assert function.__module__ == f"groot_graph.ops.{operation}.cpu"
    assert function.__name__ == f"{operation}_cpu"


def test_a_device_without_kernels_warns_once_and_gets_the_reference():
    device = torch.device("xpu")
    with pytest.warns(UserWarning, match="no compiled kernels for 'xpu'"):
        functions = [dispatch.implementation(operation, device) for operation in OPERATIONS]
    assert [f.__name__ for f in functions] == [f"{name}_reference" for name in OPERATIONS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch.implementation("tree_scan", device)


@pytest.fixture
def cuda_build(monkeypatch):
    """As where PyTorch is built for CUDA 12 and nobody has been warned yet."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for cached in (dispatch.implementation, dispatch._has_cupy, dispatch._warn_once):
        cached.cache_clear()
    yield
    for cached in (dispatch.implementation, dispatch._has_cupy, dispatch._warn_once):
        cached.cache_clear()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cuda_tensors_get_cuda_kernels_where_cupy_is_installed(operation, cuda_build, monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name == "cupy" or None)
    device = torch.device("cuda", 1)
    assert dispatch.has_cuda_kernels(device)
    function = dispatch.implementation(operation, device)
    assert function.__module__ == f"groot_graph.ops.{operation}.cuda"
    assert function.__name__ == f"{operation}_cuda"


def test_without_cupy_a_warning_says_what_to_install(cuda_build, monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    device = torch.device("cuda")
    with pytest.warns(UserWarning, match=r"pip install 'groot-graph\[cuda12\]'") as warned:
        functions = [dispatch.implementation(operation, device) for operation in OPERATIONS]
    assert len(warned) == 1
    assert [f.__name__ for f in functions] == [f"{name}_reference" for name in OPERATIONS]


def test_rocm_builds_of_pytorch_get_the_reference(cuda_build, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: True)
    with pytest.warns(UserWarning, match="no compiled kernels for 'cuda'"):
        function = dispatch.implementation("tree_scan", torch.device("cuda"))
    assert function.__name__ == "tree_scan_reference"


def test_half_types_reach_kernels_that_read_them(monkeypatch):
    half, single = torch.ones(1, dtype=torch.bfloat16), torch.ones(1)
    assert operand_dtype(half, half) == torch.float32
    monkeypatch.setattr(dispatch, "backend", lambda device: "cuda")
    assert operand_dtype(half, half) == torch.bfloat16
    assert operand_dtype(half, half.half()) == torch.float32
    assert operand_dtype(half, single) == torch.float32
    assert operand_dtype(half, single.double()) == torch.float64


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_and_cpu_agree_through_public_functions(dtype, direction, use_reference):
    inputs = chain_inputs(dtype=dtype)
    expected = outputs_and_gradients(whole_chain, inputs, direction)
    use_reference()
    actual = outputs_and_gradients(whole_chain, inputs, direction)
    for name, value in actual.items():
        assert value.dtype == dtype
        largest = float(expected[name].abs().max())
        assert_close(
            value,
            expected[name],
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype] * largest,
            msg=lambda message, name=name: f"{name}: {message}",
        )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck_of_reference_behind_public_functions(direction, use_reference):
    use_reference()
    forest = make_forest("several", 7)
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    transition = torch.rand(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, transition: tree_scan(x, transition, forest, direction), (x, transition)
    )
    operands = make_operands(7, 2, 2)
    for names in (list(operands), list(operands)[:5]):
        assert torch.autograd.gradcheck(
            lambda *tensors, names=names: selective_tree_scan(
                **dict(zip(names, tensors, strict=True)), forest=forest, direction=direction
            ),
            tuple(operands[name] for name in names),
        )


def test_opcheck_of_minimum_spanning_forest():
    op = torch.ops.groot_graph.minimum_spanning_forest.default
    for num_nodes, num_edges in [(17, 63), (3, 0)]:
        opcheck(op, (random_graph(num_nodes, num_edges), torch.rand(num_edges), num_nodes, "x"))


def test_opcheck_of_root_forest():
    op = torch.ops.groot_graph.root_forest.default
    edge_index = random_graph(17, 63)
    edge_mask = minimum_spanning_forest(edge_index, torch.rand(63), 17)
    roots = root_forest(edge_index, edge_mask, 17, "last").roots
    opcheck(op, (edge_index, edge_mask, 17, "first", None))
    opcheck(op, (edge_index[:, edge_mask], None, 17, "given", roots))
    opcheck(op, (edge_index[:, :0], None, 3, "last", None))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("num_nodes", [9, 0], ids=lambda n: f"N{n}")
def test_opcheck_of_tree_scan(num_nodes, direction):
    forest = make_forest("several", num_nodes)
    x = torch.randn(num_nodes, 3, requires_grad=True)
    transition = torch.rand(num_nodes, 3, requires_grad=True)
    opcheck(
        torch.ops.groot_graph.tree_scan.default,
        (x, transition, *plain(forest), direction),
    )
    grad, h = torch.randn(num_nodes, 3), tree_scan(x, transition, forest, direction)
    arguments = (grad, x, transition, h, *plain(forest), direction)
    opcheck(
        torch.ops.groot_graph.tree_scan_backward.default,
        [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments],
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("has_options", [True, False], ids=["D-transition_delta", "plain"])
@norms
def test_opcheck_of_selective_tree_scan(eps, has_options, direction):
    forest = make_forest("several", 9)
    operands = list(make_operands(9, 3, 2, torch.float32).values())
    if not has_options:
        operands[5:] = [None, None]
    tail = (*plain(forest), direction, eps)
    opcheck(torch.ops.groot_graph.selective_tree_scan.default, (*operands, *tail))
    detached = [operand if operand is None else operand.detach() for operand in operands]
    opcheck(
        torch.ops.groot_graph.selective_tree_scan_backward.default,
        (torch.randn(9, 3), *detached, *tail),
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compiles_to_one_graph(direction):
    torch.compiler.reset()
    compiled = torch.compile(whole_chain, fullgraph=True, backend="aot_eager")
    # The second size compiles once more with symbolic shapes, the third runs what that made.
    for num_nodes, num_edges in [(33, 63), (60, 257), (41, 80)]:
        inputs = chain_inputs(num_nodes, num_edges)
        expected = outputs_and_gradients(whole_chain, inputs, direction)
        actual = outputs_and_gradients(compiled, inputs, direction)
        for name, value in actual.items():
            assert_close(value, expected[name], msg=lambda message, name=name: f"{name}: {message}")


def test_export_holds_the_operations():
    class Chain(torch.nn.Module):
        def forward(self, edge_index, edge_weight, x, transition):
            edge_mask = minimum_spanning_forest(edge_index, edge_weight, x.size(0))
            return tree_scan(x, transition, root_forest(edge_index, edge_mask, x.size(0)))

    inputs = tuple(tensor.detach() for tensor in chain_inputs()[:4])
    exported = torch.export.export(Chain(), inputs)
    called = {str(node.target) for node in exported.graph.nodes}
    assert {f"groot_graph.{operation}.default" for operation in OPERATIONS[:3]} <= called
    assert torch.equal(exported.module()(*inputs), Chain()(*inputs))


def test_meta_tensors_give_shapes():
    edge_index, edge_weight = random_graph(17, 63).to("meta"), torch.rand(63, device="meta")
    edge_mask = minimum_spanning_forest(edge_index, edge_weight, 17)
    assert edge_mask.shape == (63,) and edge_mask.dtype == torch.bool
    forest = root_forest(edge_index, edge_mask, 17)
    assert forest.order.shape == forest.parent.shape == (17,)
    x = torch.rand(17, 3, dtype=torch.bfloat16, device="meta")
    operands = {name: operand.to("meta") for name, operand in make_operands(17, 3, 2).items()}
    for output in (
        tree_scan(x, x, forest),
        selective_tree_scan(**{**operands, "u": x}, forest=forest),
    ):
        assert output.shape == (17, 3) and output.dtype == torch.bfloat16 and output.is_meta


def test_no_grad_and_inference_mode():
    inputs = chain_inputs()
    expected = whole_chain(*inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            outputs = whole_chain(*inputs)
        for output, value in zip(outputs, expected, strict=True):
            assert not output.requires_grad
            assert torch.equal(output, value.detach())
