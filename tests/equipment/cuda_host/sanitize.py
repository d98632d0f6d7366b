"""Runs Python code whose CUDA kernels run on the CPU under AddressSanitizer and
UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.equipment.cuda_host.build import SANITIZE_VARIABLE
from tests.equipment.gxx import compiler

REPOSITORY = Path(__file__).parents[3]


def run_sanitized(script: str, *arguments: str) -> str:
    """What the code prints; the test fails where the code does or a sanitizer reports anything.

    Args:
        script (str): Python code, run in the repository's root; it uses
            :func:`tests.equipment.cuda_host.cuda_on_host` as any test does.
        *arguments (str): Its :obj:`sys.argv[1:]`.
    """
    done = _run(script, arguments)
    if done.returncode or _has_report(done.stderr):
        pytest.fail(f"sanitized run failed:\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


def _run(script: str, arguments: tuple) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        SANITIZE_VARIABLE: "1",
        # Python itself is not sanitized, so the library has to come before all others.
        "LD_PRELOAD": _library("libasan.so"),
        # Python and PyTorch keep memory on purpose, and throw exceptions that are caught.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
        ),
    }
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def _library(name: str) -> str:
    path = subprocess.check_output([compiler(), f"-print-file-name={name}"], text=True).strip()
    if not Path(path).is_absolute():
        pytest.skip(f"g++ comes without {name}")
    return str(Path(path).resolve())


def _has_report(stderr: str) -> bool:
    return "ERROR: AddressSanitizer" in stderr or "runtime error:" in stderr
