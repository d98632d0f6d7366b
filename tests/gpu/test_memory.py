"""The selective scan never holds [num_nodes, channels, states]."""

import pytest
import torch

from groot_graph import root_forest, selective_tree_scan
from tests.equipment.gpu_cases import chains, moved
from tests.equipment.scans import directions, selective_operands

NUM_NODES, NUM_CHANNELS, NUM_STATES = 8 * 4096, 768, 16


def peak_beyond(run) -> int:
    """Bytes at the peak of a call, without what was there before and what it returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = run()
    torch.cuda.synchronize()
    returned = sum(output.numel() * output.element_size() for output in outputs)
    return torch.cuda.max_memory_allocated() - before - returned


# In shares of [N, D, S], with S = 16 and D = 768:
# - the tiers above the input, 3 / 64 and less of its rows: 3 arrays forward, 0.15, and 5 backward,
#   0.25, in direction "both", else 2 and 3;
# - in direction "both" what 2^15 / D segments of up to 127 nodes keep, 0.16 N: forward 9 numbers of
#   a node and channel, 0.09, and backward 18, 0.18;
# - backward: the parts of the gradients of B and C from groups of 32 channels, 2 / 32 = 0.06, and
#   those of A from as many parts as segments at once, 42 / N. Where
#   transition_delta is not given, its gradient is made all the same, 0.06.
@pytest.mark.parametrize("has_own_step", [True, False])
@directions
def test_selective_tree_scan(direction, has_own_step, device):
    full_state = 4 * NUM_NODES * NUM_CHANNELS * NUM_STATES
    forest = root_forest(chains(8, NUM_NODES // 8).to(device), num_nodes=NUM_NODES)
    operands = selective_operands(NUM_NODES, NUM_CHANNELS, NUM_STATES, torch.float32)
    if not has_own_step:
        del operands["transition_delta"]
    operands = {name: value.requires_grad_() for name, value in moved(operands, device).items()}
    weight = torch.randn_like(operands["u"])

    def forward():
        return [selective_tree_scan(**operands, forest=forest, direction=direction)]

    forward()
    assert peak_beyond(forward) < full_state / 4

    (y,) = forward()
    leaves = list(operands.values())

    def backward():
        return torch.autograd.grad(y, leaves, weight, retain_graph=True)

    backward()
    assert peak_beyond(backward) < 0.6 * full_state
