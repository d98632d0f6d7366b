"""PyTorch's FLOP counter knows the scans."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from groot_graph import root_forest, selective_tree_scan, tree_scan


def counted(function) -> dict:
    with FlopCounterMode(display=False) as counter:
        function()
    names = counter.get_flop_counts()["Global"]
    return {str(op).split(".")[-1]: number for op, number in names.items()}


@pytest.fixture
def chain():
    return root_forest(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]))


# A chain of 5 nodes: by hand, the scan's own passes over nodes x channels.
@pytest.mark.parametrize(
    "direction, forward, backward", [("both", 6, 15), ("up", 2, 3), ("down", 2, 3)]
)
def test_tree_scan(chain, direction, forward, backward):
    x, transition = torch.rand(2, 5, 3, requires_grad=True).unbind()

    def run():
        tree_scan(x, transition, chain, direction).sum().backward()

    assert counted(run) == {"tree_scan": 5 * 3 * forward, "tree_scan_backward": 5 * 3 * backward}


@pytest.mark.parametrize(
    "direction, eps, forward, backward",
    [("both", None, 11, 31), ("up", None, 7, 17), ("both", 1e-5, 15, 48), ("up", 1e-5, 11, 30)],
)
@pytest.mark.parametrize("state_size", [1, 4])
def test_selective_tree_scan(chain, direction, eps, forward, backward, state_size):
    u, delta = torch.rand(2, 5, 3, requires_grad=True).unbind()
    B, C = torch.rand(2, 5, state_size).unbind()
    A, D = -torch.rand(3, state_size), torch.rand(3)

    def run():
        y = selective_tree_scan(u, delta, A, B, C, chain, D, direction, state_norm_eps=eps)
        y.sum().backward()

    assert counted(run) == {
        "selective_tree_scan": 5 * 3 * (state_size * forward + 3),
        "selective_tree_scan_backward": 5 * 3 * (state_size * backward + 6),
    }
