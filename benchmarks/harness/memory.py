"""Memory, measured in processes that have done nothing else."""

import ctypes
import gc
import multiprocessing
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.harness.registry import Measurement, NotMeasuredError


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


class Taken(NamedTuple):
    """What one call takes: its time, what it adds at its peak, and the process as a whole."""

    seconds: float
    extra_bytes: int
    whole_bytes: int

    def measurements(self) -> list[Measurement]:
        return [
            Measurement([self.seconds], {}),
            Measurement([self.extra_bytes], {}, "B", "memory it adds"),
            Measurement([self.whole_bytes], {}, "B", "memory of the whole process"),
        ]


def taken(make: Callable[..., Callable[[], torch.Tensor]], sizes: tuple, small: tuple) -> Taken:
    """What the call that `make` returns for the sizes takes, after one for small ones, which
    compiles.
    """
    make(*small)()
    call, seconds = make(*sizes), []

    def timed() -> torch.Tensor:
        start = time.perf_counter()
        output = call()
        seconds.append(time.perf_counter() - start)
        return output

    extra = peak_extra_memory(timed)
    whole = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Taken(seconds[0], extra, whole)


def taken_alone(make: Callable, sizes: tuple, small: tuple) -> Taken:
    """The same in a fresh process of as many threads as this one."""
    return in_fresh_process(taken_by, torch.get_num_threads(), make, sizes, small)


def taken_by(num_threads: int, make: Callable, sizes: tuple, small: tuple) -> Taken:
    """The same by so many threads, from here on."""
    torch.set_num_threads(num_threads)
    return taken(make, sizes, small)
