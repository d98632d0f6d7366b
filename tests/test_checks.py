import pytest
import torch
import torch_geometric
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

from groot_graph import checks, minimum_spanning_forest, root_forest, tree_scan


@pytest.mark.parametrize("is_debug", [False, True])
def test_values_of_cuda_tensors_are_checked_in_debug_mode_only(is_debug, monkeypatch):
    with FakeTensorMode():
        on_gpu = torch.empty(1, device="cuda")
    monkeypatch.setattr(checks, "is_fake", lambda tensor: False)
    with torch_geometric.debug() if is_debug else torch_geometric.set_debug(False):
        assert checks.values_are_checked(torch.empty(1))
        assert checks.values_are_checked(on_gpu) == is_debug


def test_values_that_are_not_there_are_not_checked():
    x = torch.ones(2)
    seen = []

    def see(tensor):
        seen.append(checks.values_are_checked(tensor))
        return tensor * 2

    with FakeTensorMode():
        see(torch.ones(2))
    see(torch.ones(2, device="meta"))
    torch.func.vmap(see)(x)
    torch.func.functionalize(see)(x)
    torch.func.grad(lambda x: see(x).sum())(x)
    with FunctionalTensorMode():
        see(FunctionalTensor.to_functional(x))
    assert seen == 6 * [False]


def test_numbers_of_eight_bits_are_refused():
    """PyTorch has them to store weights, and no arithmetic on them."""
    edge_index = torch.tensor([[0, 1], [1, 2]])
    forest = root_forest(edge_index)
    x = torch.ones(3, 2).to(torch.float8_e4m3fn)
    with pytest.raises(TypeError, match="'x' must have at least 16 bits .* got torch.float8"):
        tree_scan(x, x, forest)
    with pytest.raises(TypeError, match="'edge_weight' must have .* got torch.float8_e4m3fn"):
        minimum_spanning_forest(edge_index, x[:2, 0])
