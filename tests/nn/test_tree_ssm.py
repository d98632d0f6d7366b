import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import groot_graph.nn.tree_ssm
from groot_graph.errors import NotANumberError
from groot_graph.nn import TreeSSM
from tests.equipment.graphs import make_forest
from tests.equipment.modules import perturbed, pickled
from tests.equipment.tree_ssm import plain_loop

DIRECTIONS = ("both", "up", "down")
STATE_NORM = pytest.mark.parametrize("state_norm", [False, True], ids=["plain", "state_norm"])
SHAPES = [
    ("chain", 1, 1, 1),
    ("star", 9, 3, 2),
    ("random", 17, 5, 1),
    ("several", 13, 17, 3),
    ("isolated", 3, 2, 2),
]


def test_repr():
    assert str(TreeSSM(16)) == "TreeSSM(16)"
    told = "TreeSSM(4, state_size=2, dt_rank=3, direction='up', state_norm=True, edge_steps=True)"
    assert str(eval(told)) == told


@STATE_NORM
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind,num_nodes,channels,state_size", SHAPES)
def test_same_as_plain_loop(kind, num_nodes, channels, state_size, direction, state_norm):
    ssm = TreeSSM(channels, state_size, direction=direction, state_norm=state_norm)
    ssm = perturbed(ssm.double())
    forest = make_forest(kind, num_nodes)
    u = torch.randn(num_nodes, channels, dtype=torch.float64, requires_grad=True)
    operands = {"u": u, **dict(ssm.named_parameters())}
    expected, out = plain_loop(ssm, u, forest), ssm(u, forest)
    assert_close(out, expected)

    weight = torch.randn_like(out)
    expected = torch.autograd.grad(
        (expected * weight).sum(), operands.values(), allow_unused=True, materialize_grads=True
    )
    grads = torch.autograd.grad((out * weight).sum(), operands.values())
    for name, grad, expected_grad in zip(operands, grads, expected, strict=True):
        assert_close(grad, expected_grad, msg=lambda text, name=name: f"{name}: {text}")


@STATE_NORM
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind,num_nodes,channels,state_size", SHAPES)
def test_edge_steps_are_those_of_a_plain_loop(
    kind, num_nodes, channels, state_size, direction, state_norm
):
    settings = {"direction": direction, "state_norm": state_norm, "edge_steps": True}
    ssm = perturbed(TreeSSM(channels, state_size, **settings).double())
    forest = make_forest(kind, num_nodes)
    u = torch.randn(num_nodes, channels, dtype=torch.float64, requires_grad=True)
    edge_length = torch.rand(num_nodes, dtype=torch.float64).requires_grad_()
    operands = {"u": u, "edge_length": edge_length, **dict(ssm.named_parameters())}
    expected, out = plain_loop(ssm, u, forest, edge_length), ssm(u, forest, edge_length)
    assert_close(out, expected)

    weight, values = torch.randn_like(out), operands.values()
    expected = torch.autograd.grad((expected * weight).sum(), values, materialize_grads=True,
                                   allow_unused=True)  # fmt: skip
    grads = torch.autograd.grad((out * weight).sum(), values)
    for name, grad, expected_grad in zip(operands, grads, expected, strict=True):
        assert_close(grad, expected_grad, msg=lambda text, name=name: f"{name}: {text}")


@STATE_NORM
@pytest.mark.parametrize("state_size", [1, 3])
def test_edge_steps_of_no_length_are_the_published_layer(state_size, state_norm):
    ssm = perturbed(TreeSSM(5, state_size, state_norm=state_norm))
    with_steps = TreeSSM(5, state_size, state_norm=state_norm, edge_steps=True)
    missing, unexpected = with_steps.load_state_dict(ssm.state_dict(), strict=False)
    assert (missing, unexpected) == (["sigma"], [])
    u, forest = torch.randn(13, 5), make_forest("several", 13)
    assert with_steps(u, forest, torch.zeros(13)).equal(ssm(u, forest))


def test_the_length_of_a_root_is_not_read():
    ssm, u, forest = TreeSSM(5, edge_steps=True), torch.randn(13, 5), make_forest("several", 13)
    edge_length = torch.rand(13)
    expected = ssm(u, forest, edge_length)
    edge_length[forest.roots] = 9.0
    assert ssm(u, forest, edge_length).equal(expected)


def test_far_nodes_are_heard_less():
    ssm = TreeSSM(4, edge_steps=True)
    near, far = (ssm.transition(torch.ones(1, 4), torch.tensor([length])) for length in (0.0, 9.0))
    assert_close(far, near * math.exp(-9 * groot_graph.nn.tree_ssm.INITIAL_SCALE))


@STATE_NORM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_edge_steps_in_half_precision(dtype, state_norm):
    ssm = perturbed(TreeSSM(5, 2, state_norm=state_norm, edge_steps=True))
    u, forest, edge_length = torch.randn(17, 5), make_forest("random", 17), torch.rand(17)
    expected = ssm(u, forest, edge_length)
    with torch.autocast("cpu", dtype=dtype):
        assert_close(ssm(u, forest, edge_length), expected, atol=0.1, rtol=0.1)
    out = ssm.to(dtype)(u.to(dtype), forest, edge_length.to(dtype))
    assert out.dtype == dtype
    assert_close(out.float(), expected, atol=0.1, rtol=0.1)


def test_compiled_edge_steps():
    ssm = perturbed(TreeSSM(5, 2, state_norm=True, edge_steps=True))
    u, forest, edge_length = torch.randn(17, 5), make_forest("random", 17), torch.rand(17)
    compiled = torch.compile(ssm, backend="aot_eager", fullgraph=True)
    assert_close(compiled(u, forest, edge_length), ssm(u, forest, edge_length))


@pytest.mark.parametrize(
    "edge_steps, edge_length, error, message",
    [
        (False, torch.ones(3), ValueError, "'edge_length' must be None where the layer has"),
        (True, None, TypeError, "'edge_length' must be a torch.Tensor, got NoneType"),
        (True, torch.ones(3).long(), TypeError, "'edge_length' must have a floating point dtype"),
        (True, torch.ones(3, 1), ValueError, r"'edge_length' must have shape \[num_nodes\]"),
        (True, torch.tensor([1.0, -0.5, 0.0]), ValueError, "'edge_length' must hold .* got -0.5"),
        (
            True,
            torch.tensor([1.0, math.inf, 0.0]),
            ValueError,
            "'edge_length' must hold .* got inf",
        ),
        (True, torch.tensor([1.0, math.nan, 0.0]), NotANumberError, "'edge_length' .* got NaN"),
        (True, torch.ones(3, device="meta"), ValueError, "'edge_length' must be on the device"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(edge_steps, edge_length, error, message):
    ssm, u, forest = TreeSSM(4, edge_steps=edge_steps), torch.randn(3, 4), make_forest("chain", 3)
    with pytest.raises(error, match=message):
        ssm(u, forest, edge_length)
    with pytest.raises(error, match=message):
        ssm.transition(u, edge_length)


@STATE_NORM
def test_parameters_are_named_as_in_mamba(state_norm):
    shapes = {
        k: tuple(v.shape) for k, v in TreeSSM(33, 4, state_norm=state_norm).named_parameters()
    }
    norm = {"state_norm.weight": (33,), "state_norm.bias": (33,)} if state_norm else {}
    assert shapes == {
        "x_proj.weight": (3 + 2 * 4, 33),
        "dt_proj.weight": (33, 3),
        "dt_proj.bias": (33,),
        "A_log": (33, 4),
        "D": (33,),
        **norm,
    }


def test_initial_values():
    ssm = TreeSSM(1001, state_size=3, dt_rank=4, dt_min=0.01, dt_max=0.2)
    delta = F.softplus(ssm.dt_proj.bias)
    assert 0.01 * 0.999 <= delta.min() < 0.011
    assert 0.18 < delta.max() <= 0.2 * 1.001
    median = math.sqrt(0.01 * 0.2)
    assert 0.8 * median < delta.median() < 1.25 * median
    assert 0.45 < ssm.dt_proj.weight.abs().max() <= 0.5
    assert ssm.A_log.equal(torch.zeros(1001, 3))
    assert ssm.D.equal(torch.ones(1001))


def test_dt_init_floor():
    delta = F.softplus(TreeSSM(101, dt_min=1e-6, dt_max=1e-5, dt_init_floor=0.05).dt_proj.bias)
    assert_close(delta, torch.full((101,), 0.05))


@STATE_NORM
def test_reset_parameters_follows_the_seed(state_norm):
    ssm = TreeSSM(17, 3, state_norm=state_norm)
    torch.manual_seed(5)
    ssm.reset_parameters()
    first = copy.deepcopy(ssm.state_dict())
    perturbed(ssm)
    torch.manual_seed(5)
    ssm.reset_parameters()
    for name, value in ssm.state_dict().items():
        assert value.equal(first[name]), name


@STATE_NORM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, state_norm):
    ssm, forest = TreeSSM(17, 3, state_norm=state_norm).to(dtype), make_forest("random", 33)
    u = torch.randn(33, 17).to(dtype)
    out = ssm(u, forest)
    assert out.dtype == dtype
    assert_close(out.float(), ssm.float()(u.float(), forest), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "scan, state_size, state_norm",
    [
        ("trusted_selective_tree_scan", 3, False),
        ("trusted_selective_tree_scan", 3, True),
        ("trusted_tree_scan", 1, True),
    ],
)
def test_scan_stays_in_float32_under_autocast(monkeypatch, scan, state_size, state_norm, dtype):
    dtypes = set()
    compute = getattr(groot_graph.nn.tree_ssm, scan)

    def spy(*operands, **kwargs):
        dtypes.update(operand.dtype for operand in operands if isinstance(operand, torch.Tensor))
        return compute(*operands, **kwargs)

    monkeypatch.setattr(groot_graph.nn.tree_ssm, scan, spy)
    ssm, forest = TreeSSM(17, state_size, state_norm=state_norm), make_forest("random", 33)
    u = torch.randn(33, 17).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ssm(u, forest)
    assert dtypes == {torch.float32}
    assert out.dtype == dtype
    assert_close(out.float(), ssm(u.float(), forest), atol=0.05, rtol=0.05)
    out.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in ssm.parameters())


@STATE_NORM
def test_no_nodes(state_norm):
    ssm = TreeSSM(5, 2, state_norm=state_norm)
    u = torch.empty(0, 5, requires_grad=True)
    out = ssm(u, make_forest("chain", 0))
    out.sum().backward()
    assert out.shape == u.grad.shape == (0, 5)


@STATE_NORM
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies(duplicate, state_norm):
    ssm, forest = TreeSSM(5, 2, state_norm=state_norm), make_forest("random", 9)
    u = torch.randn(9, 5)
    assert duplicate(ssm)(u, duplicate(forest)).equal(ssm(u, forest))


@STATE_NORM
def test_compile(state_norm):
    ssm = TreeSSM(5, 2, state_norm=state_norm)
    compiled = torch.compile(ssm, backend="aot_eager", fullgraph=True)
    forest, u = make_forest("random", 9), torch.randn(9, 5)
    assert_close(compiled(u, forest), ssm(u, forest))


@pytest.mark.parametrize(
    "argument,value,error,message",
    [
        ("channels", 0, ValueError, "'channels' must be at least 1, got 0"),
        ("channels", 2.0, TypeError, "'channels' must be an int, got float"),
        ("channels", True, TypeError, "'channels' must be an int, got bool"),
        ("state_size", -1, ValueError, "'state_size' must be at least 1, got -1"),
        ("state_size", "1", TypeError, "'state_size' must be an int, got str"),
        ("dt_rank", 0, ValueError, "'dt_rank' must be at least 1, got 0"),
        ("dt_rank", "full", ValueError, "'dt_rank' must be one of .*'auto'.*, got 'full'"),
        ("dt_rank", None, TypeError, "'dt_rank' must be an int, got NoneType"),
        ("direction", "left", ValueError, "'direction' must be one of .*'up'.*, got 'left'"),
        ("direction", 1, TypeError, "'direction' must be one of .*'up'.*, got int"),
        ("state_norm", 1, TypeError, "'state_norm' must be a bool, got int"),
        ("dt_min", 0.0, ValueError, "'dt_min' must be positive and finite, got 0.0"),
        ("dt_min", 0.2, ValueError, "'dt_min' must not exceed 'dt_max', 0.1, got 0.2"),
        ("dt_max", math.inf, ValueError, "'dt_max' must be positive and finite, got inf"),
        ("dt_max", "0.1", TypeError, "'dt_max' must be a number, got str"),
        ("dt_init_floor", -1, ValueError, "'dt_init_floor' must be positive .*, got -1"),
        ("dt_init_floor", None, TypeError, "'dt_init_floor' must be a number, got NoneType"),
    ],
)
def test_bad_constructor_argument(argument, value, error, message):
    with pytest.raises(error, match=message):
        TreeSSM(**{"channels": 5, argument: value})


u = torch.randn(4, 5)
FOREST = make_forest("random", 4)


@STATE_NORM
@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"u": u.numpy()}, TypeError, "'u' must be a torch.Tensor, got ndarray"),
        ({"u": u.int()}, TypeError, "'u' must have a floating point dtype, got torch.int32"),
        ({"u": u[:, :4]}, ValueError, r"'u' must have shape .* = \[any, 5\], got \[4, 4\]"),
        ({"u": u[0]}, ValueError, r"'u' must have shape .* = \[any, 5\], got \[5\]"),
        ({"u": u[:3]}, ValueError, "'forest' must have as many nodes as 'u' has rows, 3, got 4"),
        ({"u": u.to("meta")}, ValueError, "'forest' must be on the device of 'u', meta, got cpu"),
        ({"forest": None}, TypeError, "'forest' must be a groot_graph.Forest, got NoneType"),
        ({"forest": FOREST.parent}, TypeError, "'forest' must be .*Forest, got Tensor"),
        ({"forest": make_forest("chain", 5)}, ValueError, "'forest' .* 'u' has rows, 4, got 5"),
    ],
)
def test_bad_input(arguments, error, message, state_norm):
    with pytest.raises(error, match=message):
        TreeSSM(5, state_norm=state_norm)(**{"u": u, "forest": FOREST, **arguments})
