"""The layer over CUDA implementations, run on the CPU."""

from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from groot_graph import Forest, checks, minimum_spanning_forest, root_forest, tree_scan
from groot_graph.nn import TreeSSM, TreeSSMConv
from groot_graph.ops import plan
from tests.equipment.graphs import make_forest, random_graph
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels, seen_by, without_plan

# What makes the host wait for the device, in PyTorch's own names.
WAITS = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "argwhere",
    "_unique",
    "unique",
    "masked_select",
    "equal",
    "is_nonzero",
    "repeat_interleave.Tensor",
    "bincount",
    "to_dense",
)


class NothingWaits(TorchDispatchMode):
    """Refuses every operation that reads a value back, also inside of custom operations."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = str(function).removeprefix("aten.")
        if name.startswith(WAITS):
            raise RuntimeError(f"{name} waits for the device")
        indices = arguments[1] if name.startswith(("index.Tensor", "index_put")) else ()
        if any(index is not None and index.dtype == torch.bool for index in indices):
            raise RuntimeError(f"{name} by a mask waits for the device")
        return function(*arguments, **(keywords or {}))


@contextmanager
def as_on_a_gpu():
    """Values are not read to check them."""
    with cuda_kernels(), patch.object(checks, "values_are_checked", lambda tensor: False):
        yield


@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
@pytest.mark.parametrize("state_norm", [True, False], ids=["state_norm", "no-norm"])
@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_nothing_waits_for_the_device(direction, state_norm, edge_steps):
    settings = {"direction": direction, "state_norm": state_norm, "edge_steps": edge_steps}
    conv = TreeSSMConv(5, 7, state_size=2, **settings)
    x, edge_index = torch.randn(40, 5, requires_grad=True), random_graph(40, 90)
    with as_on_a_gpu(), seen_by(NothingWaits()):
        conv(x, edge_index).square().sum().backward()
    assert x.grad.isfinite().all()


def test_what_waits_is_noticed():
    x = torch.arange(4)
    for wait in (x.sum().item, x.nonzero, x.unique, lambda: x[x > 1], lambda: torch.equal(x, x)):
        with NothingWaits(), pytest.raises(RuntimeError, match="waits for the device"):
            wait()
    # The checks that are left out on a GPU do read values.
    with cuda_kernels(), seen_by(NothingWaits()), pytest.raises(RuntimeError, match="waits"):
        root_forest(random_graph(9, 5), torch.zeros(5, dtype=torch.bool), 9)


@pytest.mark.parametrize("direction", ["both", "up", "down"])
@pytest.mark.parametrize("state_norm", [True, False], ids=["state_norm", "no-norm"])
@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
def test_layer_equals_that_of_the_cpu(edge_steps, state_norm, direction):
    settings = {"direction": direction, "state_norm": state_norm, "edge_steps": edge_steps}
    conv = TreeSSMConv(5, 7, state_size=3, **settings).double()
    x, edge_index = torch.randn(61, 5, dtype=torch.float64), random_graph(61, 150)
    leaves = [x.requires_grad_(), *conv.parameters()]
    expected = conv(x, edge_index)
    expected_grads = torch.autograd.grad(expected.square().sum(), leaves)
    with cuda_kernels(**SHORT_SEGMENTS):
        actual = conv(x, edge_index)
        grads = torch.autograd.grad(actual.square().sum(), leaves)
    assert_close(actual, expected)
    assert_close(grads, expected_grads)


def test_one_plan_serves_every_scan_of_a_forest():
    edge_index = random_graph(40, 90)
    with cuda_kernels():
        mask = minimum_spanning_forest(edge_index, torch.rand(90), 40)
        forest = root_forest(edge_index, mask, 40)
        came_along = forest._plan
        TreeSSM(3)(torch.randn(40, 3), forest)
        assert forest._plan is came_along
        own = without_plan(forest)
        scan = torch.randn(40, 3), torch.rand(40, 3), own
        tree_scan(*scan)
        made = own._plan
        assert torch.equal(made.values, came_along.values)
        tree_scan(*scan)
        assert own._plan is made


def test_plan_follows_what_is_written_into_the_forest():
    x, transition = torch.randn(33, 2), torch.rand(33, 2)
    first, second = make_forest("random", 33), make_forest("chain", 33)
    forest = Forest(first.order.clone(), first.parent.clone())
    for source in (first, second, first):
        forest.order.copy_(source.order)
        forest.parent.copy_(source.parent)
        expected = tree_scan(x, transition, source)
        with cuda_kernels():
            assert_close(tree_scan(x, transition, forest), expected)


def test_plan_of_another_device_is_made_anew():
    forest = make_forest("random", 33)
    x, transition = torch.randn(33, 2), torch.rand(33, 2)
    expected = tree_scan(x, transition, forest)
    with cuda_kernels():
        assert_close(tree_scan(x, transition, forest), expected)


def test_forest_seen_in_inference_mode_can_be_trained_on():
    forest = without_plan(make_forest("random", 33))
    x, transition = torch.randn(33, 2, requires_grad=True), torch.rand(33, 2)
    with cuda_kernels():
        with torch.inference_mode():
            tree_scan(x, transition, forest)
        assert forest._plan is None
        tree_scan(x, transition, forest).sum().backward()
    assert x.grad.isfinite().all()


def test_every_stream_makes_its_own_plan(monkeypatch):
    forest = without_plan(make_forest("random", 33))
    x, transition = torch.randn(33, 2), torch.rand(33, 2)
    with cuda_kernels():
        tree_scan(x, transition, forest)
        first = forest._plan
        monkeypatch.setattr(plan, "current_stream", lambda device: 77)
        tree_scan(x, transition, forest)
    assert 77 in forest._plan.state
    assert forest._plan.values is not first.values


def test_forest_in_any_valid_order():
    parent = torch.tensor([3, 3, 0, 3, 0, 1, 6])
    x, transition = torch.randn(7, 2), torch.rand(7, 2)
    for order in ([6, 3, 0, 4, 2, 1, 5], [3, 6, 1, 0, 5, 2, 4]):
        forest = Forest(torch.tensor(order), parent)
        expected = tree_scan(x, transition, forest)
        with cuda_kernels():
            assert_close(tree_scan(x, transition, without_plan(forest)), expected)


def test_tracing_leaves_no_plan_behind():
    forest = without_plan(make_forest("random", 33))
    x, transition = torch.randn(33, 2), torch.rand(33, 2)
    expected = tree_scan(x, transition, make_forest("random", 33))
    torch.compiler.reset()
    scan = torch.compile(
        lambda x, a, order, parent: tree_scan(x, a, Forest(order, parent)),
        fullgraph=True,
        backend="aot_eager",
    )
    with cuda_kernels():
        assert_close(scan(x, transition, forest.order, forest.parent), expected)
    torch.compiler.reset()
