import re
import sys
from importlib.resources import files
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from groot_graph.ops.cuda import launch

OPERATIONS = [
    file.name.removesuffix(".cu")
    for file in files("groot_graph.cuda").iterdir()
    if file.name.endswith(".cu")
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_source_holds_what_it_includes_once(operation):
    text = launch.source(operation)
    assert "#include" not in text
    assert text.count("__device__ inline long long thread_index()") == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_parameter_of_a_kernel_is_a_word(operation):
    signatures = re.findall(
        r'extern "C" __global__ void\s+\w+\((.*?)\)', launch.source(operation), re.S
    )
    assert signatures
    for parameter in re.split(",", ",".join(signatures)):
        assert "*" in parameter or "long long" in parameter


def test_options_hold_the_macros():
    assert launch.options((("VALUE", "float"), ("SIZE", 3))) == (
        "-std=c++17",
        "-DVALUE=float",
        "-DSIZE=3",
    )


@pytest.mark.parametrize("runtime, driver", [(12, 12), (12, 13), (13, 13)])
def test_a_driver_runs_its_own_cuda_and_older_ones(runtime, driver):
    launch.check_versions("14.2.0", runtime, driver)


def test_a_driver_that_is_too_old_is_named_with_the_remedy():
    with pytest.raises(RuntimeError) as refusal:
        launch.check_versions("14.2.0", 13, 12)
    message = str(refusal.value)
    for part in ("CuPy 14.2.0", "CUDA 13", "CUDA 12", "groot-graph[cuda12]", "cupy-cuda13x"):
        assert part in message


class FakeCuPy:
    """What the launcher uses of CuPy, written down instead of run."""

    __version__ = "14.2.0"

    def __init__(self):
        self.entered, self.launched, self.compiled = [], [], []
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                runtimeGetVersion=lambda: 13000, driverGetVersion=lambda: 13010
            ),
            Device=lambda index: self._context("device", index),
            ExternalStream=lambda stream, index: self._context("stream", stream, index),
        )

    def RawModule(self, code, options):  # noqa: N802
        self.compiled.append((code, options))
        return SimpleNamespace(get_function=self._function)

    def _function(self, name):
        return lambda *arguments: self.launched.append((name, *arguments, tuple(self.entered)))

    def _context(self, *what):
        fake = self

        class Context:
            def __enter__(self):
                fake.entered.append(what)

            def __exit__(self, *error):
                assert fake.entered.pop() == what

        return Context()


@pytest.fixture
def cupy():
    fake = FakeCuPy()
    stream = SimpleNamespace(cuda_stream=77, device_index=1)
    caches = launch._cupy, launch.load, launch._external_stream
    for cached in caches:
        cached.cache_clear()
    with (
        patch.dict(sys.modules, cupy=fake),
        patch.object(torch.cuda, "current_stream", lambda device: stream),
    ):
        yield fake
    for cached in caches:
        cached.cache_clear()


class OnGPU(torch.Tensor):
    """A tensor of the CPU that says it is on the second GPU."""

    @property
    def device(self):
        return torch.device("cuda", 1)


def test_launches_on_pytorch_s_device_and_stream(cupy):
    tensor = torch.zeros(5).as_subclass(OnGPU)

    @launch.on_current_stream
    def run(tensor, number):
        launch.launch("tree_scan", "first", 600, tensor, None, number, VALUE="float")
        launch.launch("tree_scan", "second", 1, tensor, VALUE="float")
        return number

    assert run(tensor, 3) == 3
    assert cupy.entered == []
    inside = (("device", 1), ("stream", 77, 1))
    words = (tensor.data_ptr(), 0, 3)
    assert cupy.launched == [
        ("first", (3,), (256,), words, inside),
        ("second", (1,), (256,), words[:1], inside),
    ]
    assert [type(word) for word in cupy.launched[0][3]] == [np.uint64, np.int64, np.int64]
    assert cupy.compiled == [
        (launch.source("tree_scan"), ("-std=c++17", "-DVALUE=float")),
    ]


def test_nothing_is_launched_for_no_threads(cupy):
    launch.launch("tree_scan", "first", 0, torch.zeros(0))
    assert cupy.launched == cupy.compiled == []


def test_an_error_leaves_device_and_stream(cupy):
    @launch.on_current_stream
    def fail(tensor):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail(torch.zeros(1).as_subclass(OnGPU))
    assert cupy.entered == []


def test_the_driver_is_asked_before_anything_is_compiled(cupy):
    cupy.cuda.runtime.driverGetVersion = lambda: 12080
    with pytest.raises(RuntimeError, match="cuda12"):
        launch.launch("tree_scan", "first", 1, torch.zeros(1))
    assert cupy.compiled == []
