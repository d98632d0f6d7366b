import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from groot_graph.ops.cuda import launch

OPERATIONS = sorted(file.stem for file in launch.source_folder().glob("*.cu"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_source_holds_what_it_includes_once(operation):
    text = launch.source(operation)
    assert "#include" not in text
    assert text.count("__device__ inline long long thread_index()") == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_parameter_of_a_kernel_is_a_word(operation):
    signatures = re.findall(
        r'extern "C" __global__ void\s+(?:__launch_bounds__\(\w+\)\s*)?\w+\((.*?)\)',
        launch.source(operation),
        re.S,
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


@pytest.mark.full
def test_a_cpu_alone_loads_nothing_of_cuda():
    script = """
import sys, torch
from groot_graph.nn import TreeSSMConv

x = torch.ones(3, 2, requires_grad=True)
TreeSSMConv(2, 2)(x, torch.tensor([[0, 1], [1, 2]])).sum().backward()
cuda = "groot_graph.ops.cuda"
print([name for name in sys.modules if name.startswith((cuda, "cupy")) or name.endswith(".cuda")
       and name.startswith("groot_graph")])
"""
    folder = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


class RecordedCuPy:
    """CuPy, of which that alone is written down instead of run that needs a GPU: to enter a device
    or a stream, to load a kernel and to launch it.
    """

    def __init__(self, cupy):
        self.__version__ = cupy.__version__
        self.entered, self.launched, self.compiled = [], [], []
        self._cupy = cupy
        runtime = cupy.cuda.runtime
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                runtimeGetVersion=runtime.runtimeGetVersion, driverGetVersion=lambda: 13010
            ),
            Device=lambda index: self._context("device", index),
            Stream=SimpleNamespace(from_external=self._stream),
        )

    def _stream(self, stream):
        return self._context("stream", self._cupy.cuda.Stream.from_external(stream).ptr)

    def RawModule(self, code, options):  # noqa: N802
        module = self._cupy.RawModule(code=code, options=options)
        self.compiled.append((module.code, module.options))
        return SimpleNamespace(get_function=self._function)

    def _function(self, name):
        return lambda *arguments: self.launched.append((name, *arguments, tuple(self.entered)))

    def _context(self, *what):
        entered = self.entered

        class Context:
            def __enter__(self):
                entered.append(what)

            def __exit__(self, *error):
                assert entered.pop() == what

        return Context()


@pytest.fixture
def cupy():
    recorded = RecordedCuPy(pytest.importorskip("cupy", minversion="14"))
    stream = SimpleNamespace(cuda_stream=77, device_index=1)
    caches = launch._cupy, launch.load, launch._external_stream
    for cached in caches:
        cached.cache_clear()
    with (
        patch.dict(sys.modules, cupy=recorded),
        patch.object(torch.cuda, "current_stream", lambda device: stream),
        # PyTorch built for a CPU alone cannot be asked.
        patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
    ):
        yield recorded
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
        kernel = launch.bind("tree_scan", VALUE="float", INPUT="Half")
        kernel("first", 600, tensor, None, number)
        kernel("second", 1, tensor)
        return number

    assert run(tensor, 3) == 3
    assert cupy.entered == []
    inside = (("device", 1), ("stream", 77))
    words = (tensor.data_ptr(), 0, 3)
    assert cupy.launched == [
        ("first", (3,), (256,), words, inside),
        ("second", (1,), (256,), words[:1], inside),
    ]
    # CuPy passes exactly these as eight bytes.
    assert [type(word) for word in cupy.launched[0][3]] == [int, int, int]
    assert cupy.compiled == [
        (launch.source("tree_scan"), ("-std=c++17", "-DINPUT=Half", "-DVALUE=float")),
    ]


def test_cupy_takes_a_stream_of_pytorch_without_a_warning(monkeypatch):
    cupy = pytest.importorskip("cupy", minversion="14")
    monkeypatch.setattr(launch, "_cupy", lambda: cupy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = launch._external_stream(77)
    assert isinstance(stream, cupy.cuda.Stream) and stream.ptr == 77


@pytest.mark.full
def test_the_sources_are_found_in_a_bare_checkout(tmp_path):
    """With nothing installed, from the checkout's folder and from another one."""
    folder = Path(__file__).parents[2]
    for name in ("groot_graph", "cuda"):
        shutil.copytree(folder / name, tmp_path / name)
    script = """
import groot_graph
from groot_graph.ops.cuda import launch

print(groot_graph.__file__, len(launch.source("root_forest")) > 1000)
"""
    # Without the finder of an editable installation, which knows the folder already.
    packages = Path(torch.__file__).parents[1]
    where = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{packages}"}
    for cwd in (tmp_path, tmp_path.parent):
        done = subprocess.run(
            [sys.executable, "-S", "-c", script],
            cwd=cwd,
            env=os.environ | where,
            capture_output=True,
            text=True,
        )
        expected = f"{tmp_path / 'groot_graph' / '__init__.py'} True\n"
        assert (done.stdout, done.returncode) == (expected, 0), done.stderr


def test_a_kernel_that_strides_gets_no_more_threads_than_run_at_once(cupy):
    kernel = launch.bind("tree_scan")
    for num_items in (0, 1, launch.MOST_THREADS, launch.MOST_THREADS + 1, 2**40):
        kernel.strided("find", num_items, num_items)
    grids = [(grid, words) for _, grid, _, words, _ in cupy.launched]
    most = launch.MOST_THREADS // launch.THREADS_PER_BLOCK
    assert grids == [
        ((1,), (1,)),
        ((most,), (launch.MOST_THREADS,)),
        ((most,), (launch.MOST_THREADS + 1,)),
        ((most,), (2**40,)),
    ]


@pytest.mark.parametrize(
    "num_items, block_size",
    [(1, 32), (32, 32), (33, 64), (1000, 1024), (1025, 1024), (2**40, 1024)],
)
def test_a_kernel_in_one_block_gets_whole_warps(cupy, num_items, block_size):
    launch.bind("tree_scan").in_one_block("finish", num_items, num_items)
    assert cupy.launched == [("finish", (1,), (block_size,), (num_items,), ())]


def test_a_word_is_eight_bytes(cupy):
    for value in (True, 1.0, "1"):
        with pytest.raises(AttributeError, match="data_ptr"):
            launch.bind("tree_scan")("first", 1, value)
    assert cupy.launched == []


def test_nothing_is_launched_for_no_threads(cupy):
    launch.bind("tree_scan")("first", 0, torch.zeros(0))
    launch.bind("tree_scan").in_one_block("first", 0, torch.zeros(0))
    assert cupy.launched == cupy.compiled == []


def test_a_kernel_is_not_loaded_while_a_graph_is_captured(cupy):
    kernel = launch.bind("tree_scan")
    kernel("first", 1, torch.zeros(1))
    with patch.object(torch.cuda, "is_current_stream_capturing", lambda: True):
        kernel("first", 1, torch.zeros(1))
        with pytest.raises(RuntimeError, match="second of tree_scan .* once before the capture"):
            kernel("second", 1, torch.zeros(1))
    kernel("second", 1, torch.zeros(1))
    assert [name for name, *_ in cupy.launched] == ["first", "first", "second"]


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
        launch.bind("tree_scan")("first", 1, torch.zeros(1))
    assert cupy.compiled == []
