"""The selective scan never holds the states of all nodes at once."""

from unittest.mock import patch

import pytest
import torch

from groot_graph import root_forest, selective_tree_scan
from groot_graph.ops.selective_tree_scan import cuda
from tests.equipment.on_host import cuda_kernels, seen_by, without_plan
from tests.equipment.scans import EPS, directions, selective_operands, with_gradients


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Sees what is allocated, also inside of custom operations."""

    num_elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result


@pytest.mark.parametrize("eps", [pytest.param(None, marks=pytest.mark.full), EPS])
@directions
def test_no_tensor_of_all_states(eps, direction):
    num_nodes, num_channels, num_states = 3000, 8, 16
    operands = selective_operands(num_nodes, num_channels, num_states, torch.float32)
    forest = root_forest(torch.stack([torch.arange(2999), torch.arange(1, 3000)]))
    largest = LargestTensor()
    # Of the nodes as few segments at once as of the millions that a GPU has.
    few_threads = patch.object(cuda, "MOST_KEEPING_THREADS", 32)
    with cuda_kernels(), seen_by(largest), few_threads:
        weight = torch.randn(num_nodes, num_channels)
        settings = {"direction": direction, "state_norm_eps": eps}
        with_gradients(
            selective_tree_scan, operands, weight, forest=without_plan(forest), **settings
        )
    assert largest.num_elements > num_nodes * num_channels
    assert largest.num_elements <= num_nodes * num_channels * num_states / 4
