"""What the tests of scans share."""

import pytest
import torch
from torch.testing import assert_close

DIRECTIONS = ("both", "up", "down")


EPS = 1e-2  # of the variance of a state; beside it the norm of one or two channels stays smooth


def directions(test):
    return pytest.mark.parametrize("direction", DIRECTIONS)(test)


def norms(test):
    return pytest.mark.parametrize("eps", [None, EPS], ids=["plain", "state_norm"])(test)


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
