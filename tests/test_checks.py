import pytest
import torch
import torch_geometric

from groot_graph.checks import values_are_checked


@pytest.mark.parametrize("is_debug", [False, True])
def test_values_of_cuda_tensors_are_checked_in_debug_mode_only(is_debug):
    with torch_geometric.debug() if is_debug else torch_geometric.set_debug(False):
        assert values_are_checked(torch.device("cpu"))
        assert values_are_checked(torch.device("cuda")) == is_debug
