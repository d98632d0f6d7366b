"""What the rows on a GPU share: CUDA events, inputs in turn, CUDA graphs, the kernels' shares."""

import itertools
import re
import statistics
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
    return [
        Measurement(called, seconds),
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


def share_outside(call: Callable) -> str:
    """How much of the kernels' time is not spent in ours, in words, by PyTorch's profiler."""
    seconds = _kernel_seconds(call)
    total = sum(seconds.values())
    if not total:
        return "the share outside our kernels is unknown: PyTorch's profiler saw no kernel"
    names = our_kernels()
    outside = sum(time for kernel, time in seconds.items() if kernel not in names)
    return (
        f"kernels take {quantity(total, 's')}, {outside / total:.0%} of it outside ours "
        "(PyTorch's sorts and running sums count as outside)"
    )


def _kernel_seconds(call: Callable) -> Counter:
    if ProfilerActivity.CUDA not in supported_activities():
        return Counter()
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS_PER_SAMPLE):
            call()
        torch.cuda.synchronize()
    seconds = Counter()
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            seconds[event.name] += event.time_range.elapsed_us() / 1e6 / CALLS_PER_SAMPLE
    return seconds


def our_kernels() -> set[str]:
    """The names of the kernels of ``cuda/*.cu``."""
    kernel = re.compile(
        r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\('
    )
    sources = (path for path in launch.source_folder().iterdir() if ".cu" in path.name)
    return {name for path in sources for name in kernel.findall(path.read_text())}
