r"""Spreads Numba kernels that release the GIL over a pool of threads of the library's own.

Numba's parallel back ends are each unsafe in one place where PyG users run things: in forked
workers, or when called from several Python threads at once. A pool of plain threads is safe in
both.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Enough that uneven chunks level out, few enough that their hand-over costs nothing.
CHUNKS_PER_THREAD = 4

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


def _forget_pool() -> None:
    global _pool
    _pool = None


# A forked child inherits the pool object but none of its threads. Windows knows no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
