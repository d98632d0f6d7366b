"""What the tests of scans share."""

import pytest
import torch
from torch.testing import assert_close

DIRECTIONS = ("both", "up", "down")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# How far a value may be from the reference's in doubles, in shares of itself or of the largest.
TOLERANCE = {
    purpose: dict(zip(FLOATS, shares, strict=True))
    for purpose, shares in {
        "tree_scan": (1e-10, 2e-5, 2e-3, 1.6e-2),
        "selective_tree_scan": (1e-10, 3e-5, 3e-3, 2e-2),
        "thousands of nodes": (1e-10, 5e-5, 2e-3, 1.6e-2),
        "any layout": (1e-11, 2e-4, 2e-2, 1e-1),
    }.items()
}

REQUIRED = ("u", "delta", "A", "B", "C")
OPTIONS = {
    "plain": REQUIRED,
    "D": (*REQUIRED, "D"),
    "transition_delta": (*REQUIRED, "transition_delta"),
    "D-transition_delta": (*REQUIRED, "D", "transition_delta"),
}
EPS = 1e-2  # of the variance of a state; beside it the norm of one or two channels stays smooth


def directions(test):
    return pytest.mark.parametrize("direction", DIRECTIONS)(test)


def options(test):
    """Which operands a selective scan gets."""
    return pytest.mark.parametrize("names", OPTIONS.values(), ids=OPTIONS.keys())(test)


def norms(test):
    return pytest.mark.parametrize("eps", [None, EPS], ids=["plain", "state_norm"])(test)


def scan_operands(num_nodes: int, num_channels: int, dtype=torch.float64) -> dict:
    """What the scan of a tree takes, by name."""
    shape = (num_nodes, num_channels)
    operands = {
        "x": torch.randn(shape, dtype=torch.float64),
        "transition": torch.rand(shape, dtype=torch.float64),
    }
    return {name: operand.to(dtype) for name, operand in operands.items()}


def selective_operands(num_nodes, num_channels, state_size, dtype=torch.float64) -> dict:
    """Every tensor that the selective scan takes, by name."""
    N, D, S = num_nodes, num_channels, state_size
    operands = {
        "u": torch.randn(N, D, dtype=torch.float64),
        "delta": torch.rand(N, D, dtype=torch.float64),
        "A": -torch.rand(D, S, dtype=torch.float64) - 0.2,
        "B": torch.randn(N, S, dtype=torch.float64),
        "C": torch.randn(N, S, dtype=torch.float64),
        "D": torch.randn(D, dtype=torch.float64),
        "transition_delta": torch.rand(N, D, dtype=torch.float64),
    }
    return {name: operand.to(dtype) for name, operand in operands.items()}


def in_doubles(operands: dict) -> dict:
    return {name: operand.double() for name, operand in operands.items()}


def with_gradients(scan, operands: dict, weight: torch.Tensor, **settings) -> dict:
    """The scan's output and every operand's gradient, by name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in operands.items()}
    output = scan(**leaves, **settings)
    # The reference does not touch the transitions of roots, which may be all there are.
    grads = torch.autograd.grad(
        output, list(leaves.values()), weight, allow_unused=True, materialize_grads=True
    )
    return {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_same_scan(scan, reference, operands: dict, tolerance: float, **settings) -> None:
    """Values and every gradient as the reference gives them in doubles."""
    first = next(iter(operands.values()))
    weight = torch.randn(first.shape, dtype=torch.float64).to(first.dtype)
    actual = with_gradients(scan, operands, weight, **settings)
    expected = with_gradients(reference, in_doubles(operands), weight.double(), **settings)
    for name, value in actual.items():
        assert value.dtype == operands.get(name, first).dtype
        assert_near(name, value, expected[name], tolerance)


def assert_near(name, actual, expected, tolerance):
    """Within `tolerance` of each value or of the largest value, whichever is wider."""
    actual, expected = actual.detach(), expected.detach().to(actual.dtype)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * largest,
        msg=lambda message: f"{name}: {message}",
    )
