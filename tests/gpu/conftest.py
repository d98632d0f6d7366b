import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The GPU; without one, or without what compiles for it, the whole folder is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use")
    pytest.importorskip("cupy", reason="needs CuPy: pip install 'groot-graph[cuda12]' or [cuda13]")
    return torch.device("cuda")
