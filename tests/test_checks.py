import pytest
import torch
import torch_geometric
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

from groot_graph import checks


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
