r"""Spreads Numba kernels that release the GIL over threads.

On Linux these are PyTorch's own, those of its OpenMP team: after an operator of PyTorch they spin
for milliseconds, and any other threads would share the cores with them. Elsewhere, and in forked
children, which inherit no threads, they are a pool of the library's own.

Numba's parallel back ends are each unsafe in one place where PyG users run things: in forked
workers, or when called from several Python threads at once. Both of these are safe in both.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Enough that uneven chunks level out, few enough that their hand-over costs nothing.
CHUNKS_PER_THREAD = 4

Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _find_team() -> Callable | None:
    r"""The function of PyTorch's OpenMP that calls another on each thread of the team."""
    if sys.platform != "linux":
        return None
    # PyTorch makes the symbols of the libraries it depends on visible to all.
    team = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if team is not None:
        team.argtypes = [Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        team.restype = None
    return team


_team = _find_team()
_pool: "ThreadPoolExecutor | None" = None


def run_in_chunks(kernel: Callable, num_units: int, *arguments) -> None:
    r"""Calls `kernel(first, last, *arguments)` over consecutive ranges that cover `num_units` units
    of work.

    At most :func:`torch.get_num_threads` ranges run at once, the calling thread among them. The
    kernel must give each unit the same result whatever range it falls in.
    """
    num_threads = min(torch.get_num_threads(), num_units)
    if num_threads <= 1:
        kernel(0, num_units, *arguments)
        return
    num_chunks = min(num_units, CHUNKS_PER_THREAD * num_threads)
    bounds = [num_units * chunk // num_chunks for chunk in range(num_chunks + 1)]
    chunks = iter(list(zip(bounds[:-1], bounds[1:], strict=True)))

    def work() -> None:
        # next() on a list's iterator is atomic under the GIL, so every chunk is taken once.
        for first, last in chunks:
            kernel(first, last, *arguments)

    if _team is None:
        _work_in_pool(work, num_threads)
    else:
        _work_in_team(_team, work, num_threads)


def _work_in_team(team: Callable, work: Callable[[], None], num_threads: int) -> None:
    errors: list[BaseException] = []

    def region(_) -> None:
        # An exception must not leave a function that is called from C.
        try:
            work()
        except BaseException as error:
            errors.append(error)

    team(Region(region), None, num_threads, 0)
    if errors:
        raise errors[0]
    # The chunks of a thread that an interrupt kept from its work.
    work()


def _work_in_pool(work: Callable[[], None], num_threads: int) -> None:
    futures = [_workers().submit(work) for _ in range(num_threads - 1)]
    try:
        work()
    finally:
        for future in futures:
            future.result()


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="groot_graph")
    return _pool


def _forget_threads() -> None:
    global _team, _pool
    _team = _pool = None


# A forked child inherits team and pool but none of their threads. Windows knows no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
