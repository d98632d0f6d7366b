"""Launches CUDA kernels that are compiled for the CPU."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple
from unittest.mock import patch

from groot_graph.ops.cuda import launch
from groot_graph.ops.cuda.launch import Kernels
from tests.equipment.cuda_host.build import is_sanitized, library
from tests.equipment.gxx import compiler


class HostSource:
    """One CUDA source with given macros, compiled for the CPU; launched as a
    :class:`~groot_graph.ops.cuda.launch.CompiledSource` is.

    Args:
        text (str): The CUDA source.
        macros (tuple, optional): Pairs of a name and a value. (default: :obj:`()`)
        seed (int, optional): Draws the order of blocks and threads. (default: :obj:`0`)
        preempt (bool, optional): Interrupts threads at accesses to memory.
            (default: :obj:`False`)
        name (str, optional): What the compiler's messages call the source.
            (default: :obj:`"kernel.cu"`)
    """

    def __init__(
        self,
        text: str,
        macros: "tuple[tuple[str, str | int], ...]" = (),
        seed: int = 0,
        preempt: bool = False,
        name: str = "kernel.cu",
    ):
        self.seed = seed
        self.preempt = preempt
        self.num_launches = 0
        self._library = library(text, macros, preempt, is_sanitized(), name)

    def launch(
        self, kernel: str, grid: int, words: tuple, block_size: int = launch.THREADS_PER_BLOCK
    ) -> None:
        arguments = (ctypes.c_ulonglong * len(words))(*(int(word) % 2**64 for word in words))
        message = self._library.cuda_host_run(
            ctypes.cast(getattr(self._library, kernel), ctypes.c_void_p),
            kernel.encode(),
            ctypes.c_longlong(grid),
            ctypes.c_longlong(block_size),
            arguments,
            len(words),
            # Every launch draws orders of its own.
            ctypes.c_ulonglong((self.seed * 1_000_003 + self.num_launches) % 2**64),
            self.preempt,
        )
        self.num_launches += 1
        if message is not None:
            raise RuntimeError(message.decode())


@contextmanager
def cuda_on_host(seed: int = 0, preempt: bool = False) -> Iterator[None]:
    """Meanwhile kernels are launched on the CPU, on CPU tensors."""
    compiler()

    @cache
    def load(operation, macros):
        text = launch.source(operation)
        return HostSource(text, macros, seed, preempt, name=f"{operation}.cu")

    with patch.object(launch, "load", load):
        yield


class Launch(NamedTuple):
    """One launch: the kernel's name, the number of threads, and its arguments before they are made
    words.
    """

    kernel: str
    num_threads: int
    arguments: tuple


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Every launch meanwhile; their tensors live until the last of them is looked at."""
    launched = []
    run = Kernels._launch

    def record(kernels, kernel, num_threads, block_size, arguments):
        launched.append(Launch(kernel, num_threads, arguments))
        run(kernels, kernel, num_threads, block_size, arguments)

    with patch.object(Kernels, "_launch", record):
        yield launched
