"""Second derivatives, derivatives carried forward, and the transforms of torch.func."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.testing import assert_close

from groot_graph import Forest, root_forest, selective_tree_scan, tree_scan
from groot_graph.nn import TreeSSM, TreeSSMConv
from groot_graph.ops.plan import plan_of
from groot_graph.ops.tree_scan.api import _gradients
from tests.equipment.graphs import make_forest, random_graph
from tests.equipment.on_host import cuda_kernels
from tests.equipment.scans import directions, norms, options, selective_operands

KINDS = ("several", "random", "isolated")
kinds = pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(k, marks=pytest.mark.full)
                                                      for k in KINDS[1:])])  # fmt: skip


def draw(*shape) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64).add(0.1).requires_grad_()


def operands_of(names, num_nodes=5, state_size=2) -> tuple:
    operands = selective_operands(num_nodes, 2, state_size, torch.float64)
    return tuple(operands[name].detach().requires_grad_() for name in names)


def selective_scan_of(names, forest, direction, eps):
    def scan(*tensors):
        operands = dict(zip(names, tensors, strict=True))
        return selective_tree_scan(
            **operands, forest=forest, direction=direction, state_norm_eps=eps
        )

    return scan


@directions
@kinds
def test_second_derivatives_of_the_scan(kind, direction):
    scan = partial(tree_scan, forest=make_forest(kind, 7), direction=direction)
    assert gradgradcheck(scan, (draw(7, 2), draw(7, 2)))


@directions
def test_second_derivatives_of_the_scan_by_the_cuda_sources(direction):
    scan = partial(tree_scan, forest=make_forest("several", 7), direction=direction)
    with cuda_kernels():
        assert gradgradcheck(scan, (draw(7, 2), draw(7, 2)))


@directions
def test_what_a_gpu_does_not_hold_is_found_again(direction):
    forest, x, transition, grad = make_forest("several", 7), draw(7, 2), draw(7, 2), draw(7, 2)
    h = tree_scan(x, transition, forest, direction)
    tensors = forest.order, forest.parent, plan_of(forest), direction
    expected = torch.autograd.grad(h, (x, transition), grad)
    for held in (h, h.new_empty(0)):
        assert_close(_gradients(grad, x, transition, held, *tensors), expected)


@pytest.mark.sampled(3)
@directions
@options
@norms
def test_second_derivatives_of_the_selective_scan(eps, names, direction):
    scan = selective_scan_of(names, make_forest("several", 5), direction, eps)
    assert gradgradcheck(scan, operands_of(names))


@directions
@kinds
def test_tangents_of_the_scan(kind, direction):
    scan = partial(tree_scan, forest=make_forest(kind, 7), direction=direction)
    for inputs in ((draw(7, 2), draw(7, 2)), (draw(7, 2), draw(7, 2).detach()),
                   (draw(7, 2).detach(), draw(7, 2))):  # fmt: skip
        assert gradcheck(scan, inputs, check_forward_ad=True, check_backward_ad=False)


@pytest.mark.sampled(2)
@directions
@options
@norms
def test_tangents_of_the_selective_scan(eps, names, direction):
    scan = selective_scan_of(names, make_forest("several", 5), direction, eps)
    assert gradcheck(scan, operands_of(names), check_forward_ad=True, check_backward_ad=False)


@directions
def test_hessians_by_every_transform(direction):
    forest = make_forest("several", 6)
    x, transition = draw(6, 1).detach(), draw(6, 1).detach()

    def function(x, transition):
        return tree_scan(x, transition, forest, direction).sin().sum()

    both = (0, 1)
    expected = torch.autograd.functional.hessian(function, (x, transition))
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    for found in (
        torch.func.hessian(function, both)(x, transition),
        jacrev(jacrev(function, both), both)(x, transition),
        jacrev(jacfwd(function, both), both)(x, transition),
    ):
        assert_close(found, expected)


@norms
@directions
def test_hessians_of_the_selective_scan_by_every_transform(direction, eps):
    forest, operands = make_forest("several", 6), selective_operands(6, 2, 3)
    u, *others = (operands[name].detach() for name in ("u", "delta", "A", "B", "C"))

    def function(u):
        y = selective_tree_scan(u, *others, forest, direction=direction, state_norm_eps=eps)
        return y.sin().sum()

    expected = torch.autograd.functional.hessian(function, u)
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    for found in (torch.func.hessian(function), jacrev(jacrev(function)), jacrev(jacfwd(function))):
        assert_close(found(u), expected)


def test_forward_twice_is_refused():
    forest, x, transition = make_forest("chain", 3), draw(3, 1).detach(), draw(3, 1).detach()
    twice = torch.func.jacfwd(torch.func.jacfwd(lambda a: tree_scan(x, a, forest).sum()))
    with pytest.raises(NotImplementedError, match="does not carry derivatives forward twice"):
        twice(transition)


def test_a_linear_map_of_what_the_nodes_hold():
    forest, x, transition = make_forest("random", 9), draw(9, 3).detach(), draw(9, 3).detach()
    out, linear = torch.func.linearize(lambda x: tree_scan(x, transition, forest), x)
    assert_close(out, tree_scan(x, transition, forest))
    assert_close(linear(transition), tree_scan(transition, transition, forest))


@directions
@pytest.mark.parametrize("in_dims", [(0, None), (None, 1), (2, 0)], ids=str)
def test_a_batch_of_scans(in_dims, direction):
    forest = make_forest("several", 7)
    x, transition = draw(7, 3).detach(), draw(7, 3).detach()
    batches = [
        value if dim is None else torch.stack([value, 2 * value, -value], dim)
        for value, dim in zip((x, transition / 2), in_dims, strict=True)
    ]
    scan = partial(tree_scan, forest=forest, direction=direction)
    found = torch.func.vmap(scan, in_dims)(*batches)
    alone = [
        scan(*(value if dim is None else value.select(dim, number)
               for value, dim in zip(batches, in_dims, strict=True)))
        for number in range(3)
    ]  # fmt: skip
    assert_close(found, torch.stack(alone))
    scans = torch.func.vmap(torch.func.grad(lambda x, a: scan(x, a).sin().sum()), in_dims)
    assert scans(*batches).shape == (3, 7, 3)


def test_a_forest_for_every_entry_of_a_batch_is_refused():
    chain = torch.tensor([[0, 1, 2], [0, 1, 2]])

    def scan(x, parent):
        return tree_scan(x, x, Forest(chain[0], parent))

    with pytest.raises(ValueError, match="'forest' must be the same for the whole batch"):
        torch.func.vmap(scan)(torch.rand(2, 3, 1), chain)


def test_a_batch_of_selective_scans():
    names = ("u", "delta", "A", "B", "C")
    forest, operands = make_forest("several", 5), operands_of(names)
    scan = selective_scan_of(names, forest, "both", None)
    u = torch.stack([operands[0], 2 * operands[0]])
    found = torch.func.vmap(scan, (0, None, None, None, None))(u, *operands[1:])
    assert_close(found, torch.stack([scan(one, *operands[1:]) for one in u]))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("edge_steps", [False, True])
@pytest.mark.parametrize("state_size, state_norm", [(1, True), (2, True), (2, False)])
def test_second_derivatives_of_the_layer(state_size, state_norm, edge_steps):
    """Of the parameters, and of the features, whose choice of a tree is constant nearby."""
    settings = {"state_norm": state_norm, "edge_steps": edge_steps}
    conv = TreeSSMConv(3, 2, state_size, **settings).double()
    x, edge_index = draw(6, 3), random_graph(6, 12)
    assert gradgradcheck(lambda x: conv(x, edge_index), (x,))


def test_a_gradient_penalty_reaches_the_parameters():
    conv, x = TreeSSMConv(3, 2, 2), torch.rand(6, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(conv(x, random_graph(6, 12)).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(
        parameter.grad.isfinite().all()
        for name, parameter in conv.named_parameters()
        if name != "out_proj.bias" and parameter.grad is not None
    )
    assert conv.ssm.A_log.grad.abs().sum() > 0 and conv.in_proj.weight.grad.abs().sum() > 0


def test_a_frozen_layer_below_carries_tangents():
    ssm, forest = TreeSSM(3, 2).double().requires_grad_(False), make_forest("random", 6)
    u, tangent = torch.rand(6, 3).double(), torch.rand(6, 3).double()
    with forward_ad.dual_level():
        out = ssm(forward_ad.make_dual(u, tangent), forest)
        found = forward_ad.unpack_dual(out).tangent
    step = 1e-6
    expected = (ssm(u + step * tangent, forest) - ssm(u - step * tangent, forest)) / (2 * step)
    assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_tangents_in_half_precision():
    forest = root_forest(torch.tensor([[0, 1], [1, 2]]))
    x, transition = (torch.rand(3, 2).bfloat16() for _ in range(2))
    scan = partial(tree_scan, transition=transition, forest=forest)
    out, tangent = torch.func.jvp(scan, (x,), (torch.ones_like(x),))
    assert out.dtype == tangent.dtype == torch.bfloat16
    assert_close(tangent, scan(torch.ones_like(x)))
