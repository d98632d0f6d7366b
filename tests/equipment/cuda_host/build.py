"""Compiles CUDA sources for the CPU with g++, and keeps what it has built."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
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


def compiler() -> str:
    """The path of g++; where there is none, the test that asks is skipped."""
    path = shutil.which("g++") if sys.platform == "linux" else None
    if path is None:
        pytest.skip("running CUDA kernels on the CPU needs g++ and Linux")
    return path


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
    runtime = _compiled(
        ".o", (FOLDER / "runtime.cpp").read_text(), (*COMMON_FLAGS, *sanitize_flags, "-c")
    )
    header = (FOLDER / "cuda_host.h").read_text()
    kernel = _compiled(
        ".o",
        f'{header}\n#line 1 "{name}"\n{text}',
        (*KERNEL_FLAGS, *instrumentation, *(f"-D{key}={value}" for key, value in macros), "-c"),
    )
    return _linked(kernel, runtime, sanitize_flags)


def _compiled(suffix: str, text: str, flags: tuple) -> Path:
    path = _cache_folder() / f"{_key(text, flags)}{suffix}"
    if not path.exists():
        source = path.with_suffix(".cpp")
        _write(source, text)
        _run_compiler(path, (*flags, str(source)))
    return path


def _linked(kernel: Path, runtime: Path, flags: tuple) -> Path:
    path = _cache_folder() / f"{_key(kernel.stem + runtime.stem, flags)}.so"
    if not path.exists():
        _run_compiler(path, ("-shared", *flags, str(kernel), str(runtime)))
    return path


def _key(text: str, flags: tuple) -> str:
    parts = (text, *flags, _compiler_version())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@cache
def _compiler_version() -> str:
    return subprocess.check_output([compiler(), "--version"], text=True)


@cache
def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"groot_graph_cuda_host_{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to someone else")
    return folder


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _run_compiler(path: Path, arguments: tuple) -> None:
    """Under its name there is never half a file: other processes build the same."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        result = Path(folder, path.name)
        done = subprocess.run(
            [compiler(), *arguments, "-o", str(result)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"g++ failed:\n{done.stderr}")
        os.replace(result, path)
