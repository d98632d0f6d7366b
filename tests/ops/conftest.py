import pytest

from tests.equipment.backends import BACKENDS, KERNELS, backend_of


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every implementation."""
    with backend_of(request.param) as backend:
        yield backend


@pytest.fixture(params=KERNELS)
def kernels(request):
    """Every implementation but the reference."""
    with backend_of(request.param) as backend:
        yield backend
