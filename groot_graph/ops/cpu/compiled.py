r"""How kernels are compiled by Numba, and what becomes of its cache where that is of no use."""

import hashlib
import logging
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache

_logger = logging.getLogger("groot_graph")


def compiled(function: Callable) -> Callable:
    r"""Decorates a kernel: compiled for the types of its first call, without Python's lock, and
    remembered on disk where that can be written.
    """
    kernel = njit(nogil=True)(function)
    try:
        kernel._cache = _Cache(function)
    except RuntimeError:
        _warn_once()
    return kernel


class _Cache(FunctionCache):
    r"""Numba's cache, of which nothing that is damaged or out of date is used."""

    def _index_key(self, sig, codegen):
        # Numba looks at a kernel's own file alone, and not at those of what it calls.
        return (*super()._index_key(sig, codegen), _digest_of_sources())

    def load_overload(self, sig, target_context):
        try:
            kernel = super().load_overload(sig, target_context)
        except Exception:  # whatever unpickling a damaged file leads to
            kernel = None
        if kernel is None:
            _tell_once()
        return kernel

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception:
            self._begin_anew(sig, data)

    def _begin_anew(self, sig, data) -> None:
        try:
            self.flush()
            super().save_overload(sig, data)
        except Exception:  # such as a full disk; the next process compiles again
            _warn_once()


@cache
def _digest_of_sources() -> str:
    r"""Of all files that a kernel may be compiled from."""
    digest, package = hashlib.sha256(), Path(__file__).parents[2]
    for path in sorted([*package.rglob("cpu.py"), *package.rglob("cpu/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _tell_once() -> None:
    r"""To who waits at a terminal; elsewhere to the log, where it is silent unless asked for."""
    message = (
        "groot_graph compiles its CPU kernels, which takes seconds at the first call of each; they "
        "are kept for later processes"
    )
    if sys.stderr is not None and sys.stderr.isatty():
        print(message, file=sys.stderr)
    else:
        _logger.info(message)


@cache
def _warn_once() -> None:
    warnings.warn(
        "groot_graph compiles its kernels anew in every process, which takes seconds, because no "
        "folder for Numba's cache can be written: set NUMBA_CACHE_DIR to one that can",
        RuntimeWarning,
        stacklevel=3,
    )
