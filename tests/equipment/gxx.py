"""Compiles C++ with g++ while tests run, and keeps what it has built."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest


def compiler() -> str:
    """The path of g++; where there is none, the test that asks is skipped."""
    path = shutil.which("g++") if sys.platform == "linux" else None
    if path is None:
        pytest.skip("running CUDA kernels on the CPU needs g++ and Linux")
    return path


def compiled(suffix: str, text: str, flags: tuple) -> Path:
    """What g++ makes of a text; the suffix is the file's."""
    path = cached(suffix, text, flags)
    if not path.exists():
        source = path.with_suffix(".cpp")
        _write(source, text)
        run_compiler(path, (*flags, str(source)))
    return path


def cached(suffix: str, text: str, flags: tuple) -> Path:
    """Where a build of these is kept."""
    parts = (text, *flags, _compiler_version())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return _cache_folder() / f"{key}{suffix}"


def run_compiler(path: Path, arguments: tuple) -> None:
    """Under its name there is never half a file: other processes build the same."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        result = Path(folder, path.name)
        done = subprocess.run(
            [compiler(), *arguments, "-o", str(result)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"g++ failed:\n{done.stderr}")
        os.replace(result, path)


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
