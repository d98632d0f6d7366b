r"""Compiles CUDA sources at run time with CuPy and launches them on PyTorch's tensors."""

import re
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from groot_graph.forest import Forest

THREADS_PER_BLOCK = 256
WARP_SIZE = 32
MOST_THREADS_PER_BLOCK = 1024
# About what the largest GPUs run at once. Kernels stride over their work, so more gain nothing.
MOST_THREADS = 2**18

# The types of cuda/common.cuh in which the kernels read tensors.
C_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}

# What a kernel takes as eight bytes: an address, a number, or null. Of a bool CuPy passes one byte.
Argument: TypeAlias = Tensor | int | None


def on_current_stream(function: Callable) -> Callable:
    r"""Makes CuPy's device and stream, for the time of a call, what PyTorch's are for the tensors
    of the call: once, because it costs as much as a launch.
    """

    @wraps(function)
    def call(*arguments):
        with _entered(_device_of(arguments)):
            return function(*arguments)

    return call


def bind(operation: str, **macros: "str | int") -> "Kernels":
    r"""The kernels of :obj:`cuda/<operation>.cu` with given macros, for the launches of one call of
    an operation, inside a function that is called :func:`on_current_stream`.
    """
    return Kernels(load(operation, tuple(sorted(macros.items()))))


class Kernels:
    r"""Launches the kernels of one source: :obj:`kernel("find_arcs", num_threads, *arguments)`.

    A kernel takes up to 24 arguments, so what each costs counts: a tensor's address is asked for
    anew, which takes less time than to look it up, and numbers go to CuPy as they are.
    """

    def __init__(self, compiled: "CompiledSource"):
        self._compiled = compiled

    def __call__(self, kernel: str, num_threads: int, *arguments: Argument) -> None:
        r"""Runs a kernel.

        Args:
            kernel (str): The kernel's name.
            num_threads (int): How many threads are wanted; rounded up to whole blocks.
            *arguments (Tensor or int or None): What the kernel takes, each as a word.
        """
        self._launch(kernel, num_threads, THREADS_PER_BLOCK, arguments)

    def strided(self, kernel: str, num_items: int, *arguments: Argument) -> None:
        r"""Runs a kernel whose threads stride over so many items."""
        self._launch(kernel, min(num_items, MOST_THREADS), THREADS_PER_BLOCK, arguments)

    def in_one_block(self, kernel: str, num_items: int, *arguments: Argument) -> None:
        r"""Runs a kernel whose threads, all of one block, stride over so many items."""
        block_size = min(-(-num_items // WARP_SIZE) * WARP_SIZE, MOST_THREADS_PER_BLOCK)
        self._launch(kernel, block_size, block_size, arguments)

    def _launch(
        self, kernel: str, num_threads: int, block_size: int, arguments: tuple[Argument, ...]
    ) -> None:
        if num_threads == 0:
            return
        # Not isinstance, which costs more and takes a bool for a number.
        words = [
            value if type(value) is int else value.data_ptr() if value is not None else 0  # type: ignore[union-attr]
            for value in arguments
        ]
        self._compiled.launch(kernel, -(-num_threads // block_size), tuple(words), block_size)


def source(operation: str) -> str:
    r"""The text of :obj:`cuda/<operation>.cu`, with what it includes in its place.

    CuPy looks a compiled kernel up by its source's text, so that has to hold the included files.
    """
    return _with_includes(f"{operation}.cu", set())


def _with_includes(name: str, included: set[str]) -> str:
    if name in included:
        return ""
    included.add(name)
    text = source_folder().joinpath(name).read_text()
    return re.sub(
        r'^#include "(\w+\.cuh)"$',
        lambda match: _with_includes(match[1], included),
        text,
        flags=re.MULTILINE,
    )


def source_folder() -> Path:
    r"""The folder of the CUDA sources: in the package, or beside it in a checkout."""
    installed = Path(__file__).parents[2] / "cuda"
    return installed if installed.is_dir() else installed.parents[1] / "cuda"


def options(macros: "tuple[tuple[str, str | int], ...]") -> tuple[str, ...]:
    r"""What the compiler is told beside the source."""
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in macros))


@cache
def load(operation: str, macros: "tuple[tuple[str, str | int], ...]") -> "CompiledSource":
    r"""A file with given macros, compiled when a kernel of it first runs on a device."""
    return CompiledSource(operation, macros)


class CompiledSource:
    r"""One CUDA source with given macros; CuPy compiles it once for every device."""

    def __init__(self, operation: str, macros: "tuple[tuple[str, str | int], ...]"):
        self._operation, self._macros = operation, macros
        self._functions: dict[str, Callable] = {}

    def launch(self, kernel: str, grid: int, words: tuple, block_size: int) -> None:
        if kernel not in self._functions:
            self._refuse_to_load_in_a_capture(kernel)
            self._functions[kernel] = self._module.get_function(kernel)
        self._functions[kernel]((grid,), (block_size,), words)

    def _refuse_to_load_in_a_capture(self, kernel: str) -> None:
        # CUDA cannot load code meanwhile: it would spoil the whole graph with an error of its own.
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"the kernel {kernel} of {self._operation} has not been loaded yet, which cannot "
                "be done while a CUDA graph is captured. Call once before the capture, with "
                "tensors of the same dtypes, shapes and strides"
            )

    @cached_property
    def _module(self):
        return _cupy().RawModule(code=source(self._operation), options=options(self._macros))


def _device_of(arguments: tuple) -> torch.device:
    return next(value.device for value in arguments if isinstance(value, Tensor | Forest))


@contextmanager
def _entered(device: torch.device):
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.current_stream(device)
    with (
        _cupy().cuda.Device(stream.device_index),
        _external_stream(stream.cuda_stream),
    ):
        yield


@cache
def _cupy():
    r"""CuPy, once its CUDA is known to fit the driver."""
    import cupy

    runtime = cupy.cuda.runtime.runtimeGetVersion()
    driver = cupy.cuda.runtime.driverGetVersion()
    check_versions(cupy.__version__, runtime // 1000, driver // 1000)
    return cupy


def check_versions(cupy_version: str, runtime: int, driver: int) -> None:
    r"""CuPy's CUDA and the driver's, by major version: the driver runs its own and older ones."""
    if runtime > driver:
        raise RuntimeError(
            f"CuPy {cupy_version} is built for CUDA {runtime}, and the driver runs at most CUDA "
            f"{driver}. Install the CuPy that fits: pip install 'groot-graph[cuda{driver}]' (and "
            f"pip uninstall cupy-cuda{runtime}x), or update the driver"
        )


@cache
def _external_stream(stream: int):
    return _cupy().cuda.Stream.from_external(_PyTorchStream(stream))


class _PyTorchStream:
    r"""A stream of PyTorch in the way in which CUDA libraries of Python hand one to each other."""

    def __init__(self, address: int):
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        r"""The version of the protocol, and the address."""
        return 0, self._address
