"""Time, measured so that ours and its peers meet the same machine."""

import gc
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks.harness.registry import Measurement, ResultsDifferError

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


def in_turns(
    calls: dict[str, Callable], repeats: int, seconds: Callable = wall_seconds, **more
) -> list[Measurement]:
    """The measurement of the call named ours, with the others as its peers."""
    samples = interleave(calls, repeats, seconds)
    return [Measurement(samples.pop("ours"), samples, **more)]


def per_node(
    calls: dict[int, Callable], nodes: dict[int, int], base: int, repeats: int
) -> list[Measurement]:
    """Seconds per node at every size against those at the base size; larger ones are judged."""
    seconds = interleave(calls, repeats)
    samples = {size: [time / nodes[size] for time in seconds[size]] for size in seconds}
    return [
        Measurement(
            ours=samples[size],
            peers={f"ours, {nodes[base]:,} nodes": samples[base]},
            unit="s/node",
            work=f"{nodes[size]:,} nodes",
            judged=size > base,
            num_nodes=nodes[size],
        )
        for size in samples
    ]


@contextmanager
def num_threads(number: int):
    """PyTorch computes with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
