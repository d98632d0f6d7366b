"""Compiles CUDA sources for the CPU with g++."""

import ctypes
import os
from functools import cache
from pathlib import Path

from tests.equipment.gxx import cached, compiled, run_compiler

FOLDER = Path(__file__).parent
HEADERS = FOLDER.with_name("half.h"), FOLDER / "cuda_host.h"
COMMON_FLAGS = (
    *("-std=c++17", "-O1", "-g", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off"),
    # Libraries with variables of the same name would share them.
    *("-fvisibility=hidden", "-fno-gnu-unique"),
)
KERNEL_FLAGS = (*COMMON_FLAGS, "-Wno-unknown-pragmas")
SANITIZE_FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
# ThreadSanitizer only for its calls before every access, which runtime.cpp answers.
PREEMPT_FLAGS = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0")
# Set in the processes that sanitize.py starts.
SANITIZE_VARIABLE = "GROOT_GRAPH_CUDA_HOST_SANITIZE"


def is_sanitized() -> bool:
    return os.environ.get(SANITIZE_VARIABLE) == "1"


@cache
def library(text, macros, preempt, sanitize, name):
    """What runs the kernels of a text, one launch at a time: it holds the interpreter's lock."""
    loaded = ctypes.PyDLL(str(_build(text, macros, preempt, sanitize, name)))
    loaded.cuda_host_run.restype = ctypes.c_char_p
    return loaded


def _build(text, macros, preempt, sanitize, name) -> Path:
    sanitize_flags = SANITIZE_FLAGS if sanitize else ()
    # The two sanitizers exclude each other: sanitized threads are pre-empted at atomics alone.
    instrumentation = sanitize_flags or (PREEMPT_FLAGS if preempt else ())
    runtime = compiled(
        ".o", (FOLDER / "runtime.cpp").read_text(), (*COMMON_FLAGS, *sanitize_flags, "-c")
    )
    header = "\n".join(file.read_text() for file in HEADERS)
    kernel = compiled(
        ".o",
        f'{header}\n#line 1 "{name}"\n{text}',
        (*KERNEL_FLAGS, *instrumentation, *(f"-D{key}={value}" for key, value in macros), "-c"),
    )
    return _linked(kernel, runtime, sanitize_flags)


def _linked(kernel: Path, runtime: Path, flags: tuple) -> Path:
    path = cached(".so", kernel.stem + runtime.stem, flags)
    if not path.exists():
        run_compiler(path, ("-shared", *flags, str(kernel), str(runtime)))
    return path
