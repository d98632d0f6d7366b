"""Time and memory, measured so that ours and its peers meet the same machine."""

import ctypes
import gc
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks.registry import NotMeasuredError, ResultsDifferError

MIN_REPEATS = 3
SECONDS_PER_ROW = 30.0
# GNU OpenMP's threads, which are PyTorch's, spin for a while after their work before they sleep.
LEAD_IN_SECONDS = 0.03


def wall_seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    calls: dict[str, Callable], repeats: int, seconds: Callable = wall_seconds
) -> dict[str, list[float]]:
    """Seconds of every call, taken in turns: one round times each of them once.

    Untimed calls stand before every timed one, for :obj:`LEAD_IN_SECONDS` and at least one: they
    compile, bring back the caches that the neighbours have emptied, and outlast the neighbours'
    threads, which wait by spinning. Rounds stop after :obj:`repeats`, or as soon as the row has
    taken :obj:`SECONDS_PER_ROW` and has :obj:`MIN_REPEATS` of them. What :obj:`seconds` returns
    for a call is its time.
    """
    samples = {name: [] for name in calls}
    start = time.perf_counter()
    with _no_garbage_collection():
        for done in range(repeats):
            if done >= MIN_REPEATS and time.perf_counter() - start > SECONDS_PER_ROW:
                break
            for name, call in calls.items():
                # Timed too, and dropped: so that on a GPU they are done before the next begins.
                _lead_in(partial(seconds, call))
                samples[name].append(seconds(call))
    return samples


def _lead_in(call: Callable) -> None:
    start = time.perf_counter()
    call()
    while time.perf_counter() - start < LEAD_IN_SECONDS:
        call()


@contextmanager
def _no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def check_close(what: str, ours: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    """Refuses to go on where ours and the other differ by more than the tolerance.

    The tolerance is a fraction of the largest entry: single entries of a sum with cancellation
    have no relative accuracy of their own.
    """
    scale = float(other.abs().max()) if other.numel() else 0.0
    error = float((ours - other).abs().max()) if other.numel() else 0.0
    if not error <= tolerance * scale:
        raise ResultsDifferError(
            f"{what}: largest difference {error:.3g}, allowed {tolerance:g} of {scale:.3g}"
        )


def in_fresh_process(function: Callable, *args):
    """Result of a module-level function in a process that has done nothing else."""
    return in_fresh_processes(function, [args])[0]


def in_fresh_processes(function: Callable, arguments: list[tuple]) -> list:
    """Results of as many such processes, which run at once, as there are tuples of arguments."""
    # Not multiprocessing.Pool: it waits for ever where the process dies, as for lack of memory.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=len(arguments), mp_context=context) as executor:
        running = [executor.submit(function, *args) for args in arguments]
        return [process.result() for process in running]


def peak_extra_memory(call: Callable[[], torch.Tensor]) -> int:
    """Bytes that the process grows by at its peak during the call, without the call's output."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise NotMeasuredError("peak memory is read from /proc, which only Linux has")
    gc.collect()
    # Freed blocks that malloc keeps would hide what the call takes from them.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes(status, "VmRSS")
    output = call()
    peak = _status_bytes(status, "VmHWM")
    return peak - before - output.numel() * output.element_size()


def _status_bytes(status: Path, entry: str) -> int:
    return 1024 * int(re.search(rf"^{entry}:\s+(\d+) kB", status.read_text(), re.M).group(1))
