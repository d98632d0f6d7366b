"""What the rows on a GPU share: CUDA events, inputs in turn, CUDA graphs, the kernels' shares."""

import itertools
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities
from torch_geometric.data import Data

from benchmarks.harness.memory import taken_alone
from benchmarks.harness.registry import Measurement
from benchmarks.harness.timing import interleave, wall_seconds
from benchmarks.harness.units import quantity
from groot_graph.ops.cuda import launch

DEVICE = torch.device("cuda")
# One after another between two events, so that the CPU launches ahead as it does in a network.
CALLS_PER_SAMPLE = 10
# More than the last cache of any GPU holds.
CACHE_BYTES = 2**28
MOST_SETS = 20
COPY_BYTES = 2**30
# About a tenth of a second, and fewer launches than a stream holds.
BUSY_CYCLES = 200_000_000
CALLS_WHILE_BUSY = 5
REPLAY = "replayed as a CUDA graph"


def missing() -> str | None:
    """What keeps the rows of the GPU from running."""
    if not torch.cuda.is_available():
        return "a GPU that PyTorch can use: torch.cuda.is_available() is False"
    if find_spec("cupy") is None:
        return "CuPy: pip install 'groot-graph[cuda12]' or 'groot-graph[cuda13]'"
    return None


def event_seconds(call: Callable) -> float:
    """Seconds of one call on the GPU's clock, the mean over :obj:`CALLS_PER_SAMPLE` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(CALLS_PER_SAMPLE):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / CALLS_PER_SAMPLE


def clock(device: str) -> Callable[[Callable], float]:
    """What tells the seconds of a call there."""
    return event_seconds if device == "cuda" else wall_seconds


def peak_memory(device: str, make: Callable[..., Callable], sizes: tuple, small: tuple) -> int:
    """Bytes that the call which `make` returns for the sizes adds at its peak, after one for small
    ones.
    """
    if device == "cpu":
        return taken_alone(make, sizes, small).extra_bytes
    make(*small)()
    call = make(*sizes)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def input_sets(draw: Callable[[int], Data]) -> list[Data]:
    """Graphs of seeds 0, 1, ..., on the CPU, so many that a cache does not hold them all."""
    first = draw(0)
    wanted = -(-CACHE_BYTES // num_bytes(first.edge_index, first.edge_weight))
    return [first, *(draw(seed) for seed in range(1, min(wanted, MOST_SETS)))]


def num_bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def in_turn(calls: list[Callable]) -> Callable:
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def captured(call: Callable) -> Callable:
    """The call as a CUDA graph: replays it and returns the tensors that it filled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay():
        graph.replay()
        return outputs

    return replay


def measure(
    calls: list[Callable], repeats: int, peers: dict[str, Callable] | None = None
) -> list[Measurement]:
    """Ours as it is called, which is judged, and replayed as CUDA graphs, without the launches.

    The calls are the same work on different inputs, taken in turn.
    """
    replays = [captured(call) for call in calls]
    timed = {"ours": in_turn(calls), REPLAY: in_turn(replays), **(peers or {})}
    seconds = interleave(timed, repeats, event_seconds)
    called, replayed = seconds.pop("ours"), seconds.pop(REPLAY)
    found = profiled(calls[0])
    return [
        Measurement(called, seconds, note=told(found), details=found),
        Measurement(replayed, seconds, work=REPLAY, judged=False),
    ]


def copy_bandwidth() -> float:
    """Bytes per second that a copy reads and writes, together."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    samples = interleave({"copy": lambda: target.copy_(source)}, 5, event_seconds)["copy"]
    return 2 * COPY_BYTES / statistics.median(samples)


def copy_of(total_bytes: int) -> Callable:
    """A copy that reads and writes so many bytes, together."""
    source = torch.ones(total_bytes // 2, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def profiled(call: Callable) -> dict:
    """Where the time of a call goes: what it costs the CPU alone, and each kernel of the GPU with
    its launches and seconds, those that take the most first.
    """
    return {"host_seconds": host_seconds(call), "kernels": kernels_of(call)}


def host_seconds(call: Callable) -> float:
    """Seconds that a call keeps the CPU, while the GPU is busy with something else."""
    call()
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    start = time.perf_counter()
    for _ in range(CALLS_WHILE_BUSY):
        call()
    seconds = (time.perf_counter() - start) / CALLS_WHILE_BUSY
    torch.cuda.synchronize()
    return seconds


def kernels_of(call: Callable) -> list[dict]:
    """The kernels of a call, by PyTorch's profiler."""
    if ProfilerActivity.CUDA not in supported_activities():
        return []
    # The call that `ncu --profile-from-start off` looks at.
    with torch.cuda.profiler.profile():
        call()
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS_PER_SAMPLE):
            call()
        torch.cuda.synchronize()
    launches, seconds = Counter(), Counter()
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            launches[event.name] += 1 / CALLS_PER_SAMPLE
            seconds[event.name] += event.time_range.elapsed_us() / 1e6 / CALLS_PER_SAMPLE
    return [
        {"name": name, "launches": launches[name], "seconds": taken}
        for name, taken in seconds.most_common()
    ]


def told(found: dict) -> str:
    """A profile in words."""
    host = f"the CPU alone takes {quantity(found['host_seconds'], 's')}"
    kernels = found["kernels"]
    if not kernels:
        return f"{host}; PyTorch's profiler saw no kernel"
    total = sum(kernel["seconds"] for kernel in kernels)
    launches = sum(kernel["launches"] for kernel in kernels)
    names = our_kernels()
    outside = sum(kernel["seconds"] for kernel in kernels if kernel["name"] not in names)
    most = ", ".join(
        f"{kernel['name'][:40]} {quantity(kernel['seconds'], 's')}" for kernel in kernels[:3]
    )
    return (
        f"{host}, the kernels {quantity(total, 's')} in {launches:.0f} launches, "
        f"{outside / total:.0%} of it outside ours (PyTorch's sorts and running sums count as "
        f"outside); most: {most}"
    )


def our_kernels() -> set[str]:
    """The names of the kernels of ``cuda/*.cu``."""
    kernel = re.compile(
        r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\('
    )
    sources = (path for path in launch.source_folder().iterdir() if ".cu" in path.name)
    return {name for path in sources for name in kernel.findall(path.read_text())}
