"""Launches the PTX of CUDA kernels on the CPU."""

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from groot_graph.ops.cuda import launch
from tests.equipment.gxx import compiled, compiler
from tests.equipment.ptx.compile import nvrtc, ptx_of
from tests.equipment.ptx.translate import translate

FOLDER = Path(__file__).parent
RUNTIME = FOLDER.with_name("half.h"), FOLDER / "runtime.h"
# No warnings: most kernels leave labels and registers unused.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fwrapv", "-ffp-contract=off", "-w")


class Launch(NamedTuple):
    """One launch, and how many instructions of each class its threads executed together."""

    operation: str
    kernel: str
    instructions: Counter


class PtxSource:
    """One CUDA source with given macros, whose PTX runs on the CPU; launched as a
    :class:`~groot_graph.ops.cuda.launch.CompiledSource` is.

    Args:
        text (str): The CUDA source.
        macros (tuple, optional): Pairs of a name and a value. (default: :obj:`()`)
        name (str, optional): What launches and the compiler's messages call the source.
            (default: :obj:`"kernel"`)
    """

    def __init__(
        self, text: str, macros: "tuple[tuple[str, str | int], ...]" = (), name: str = "kernel"
    ):
        self.name = name
        self.launches: list[Launch] = []
        translation = translate(ptx_of(text, macros, f"{name}.cu"))
        self._blocks = translation.blocks
        text = "\n".join([*(file.read_text() for file in RUNTIME), translation.text])
        # Holds the interpreter's lock: all launches share the lanes of one warp.
        self._library = ctypes.PyDLL(str(compiled(".so", text, FLAGS)))

    def launch(
        self, kernel: str, grid: int, words: tuple, block_size: int = launch.THREADS_PER_BLOCK
    ) -> None:
        run = getattr(self._library, f"launch_{kernel}")
        run.restype = ctypes.c_char_p
        executed = self._executed(kernel)
        ctypes.memset(executed, 0, ctypes.sizeof(executed))
        arguments = (ctypes.c_uint64 * len(words))(*(int(word) % 2**64 for word in words))
        message = run(arguments, ctypes.c_uint32(grid), ctypes.c_uint32(block_size))
        if message is not None:
            raise RuntimeError(f"{kernel}: {message.decode()}")
        instructions = self._instructions(kernel, executed)
        self.launches.append(Launch(self.name, kernel, instructions))

    def _executed(self, kernel: str) -> ctypes.Array:
        """How often every block of instructions was executed."""
        type = ctypes.c_uint64 * len(self._blocks[kernel])
        return type.in_dll(self._library, f"executed_{kernel}")

    def _instructions(self, kernel: str, executed: ctypes.Array) -> Counter:
        total = Counter()
        for block, times in zip(self._blocks[kernel], executed, strict=True):
            total.update({kind: number * times for kind, number in block.items() if times})
        return total


@cache
def _built(operation: str, macros: tuple) -> PtxSource:
    return PtxSource(launch.source(operation), macros, operation)


@contextmanager
def ptx_on_host() -> Iterator[list[Launch]]:
    """Meanwhile the PTX of kernels is launched on the CPU, on CPU tensors; lists the launches."""
    compiler()
    nvrtc()
    launches: list[Launch] = []

    def load(operation, macros):
        source = _built(operation, macros)
        source.launches = launches
        return source

    with patch.object(launch, "load", load):
        yield launches
