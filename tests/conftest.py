from importlib.util import find_spec

import pytest
import torch


def pytest_configure(config):
    # A machine that is lent for its GPU need not have it: its tests draw nothing.
    if find_spec("hypothesis") is None:
        return
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "groot_graph",
        deadline=None,
        derandomize=True,
        max_examples=400 if config.getoption("full") else 50,
        # A backend stays the same from example to example.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("groot_graph")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread():
    """More gain nothing on small tensors; a test or an example may set its own number."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
