"""GrootV-T, -S and -B: a pass on a batch of noise, its memory, its FLOPs and its dearest parts."""

from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import gpu
from benchmarks.harness.registry import Measurement, row, speedup
from benchmarks.harness.timing import interleave
from groot_graph.models import grootv_base, grootv_small, grootv_tiny

NETWORKS = {"tiny": grootv_tiny, "small": grootv_small, "base": grootv_base}
MODES = ("inference", "training")
BATCH_SIZES = {"cpu": 8, "cuda": 64}
# What a network of scans is made of; nothing else should take much of the time on a GPU.
CORE = ("groot_graph::", "conv", "mm", "gemm", "cutlass", "reduce_level", "finish_level")


def every_row(function: Callable) -> Callable:
    for device, batch in BATCH_SIZES.items():
        for model in NETWORKS:
            for mode in MODES:
                kind = {"model": model, "mode": mode, "device": device}
                kind |= {"bfloat16": False, "compiled": False}
                function = row(
                    "GrootV-{model}, {mode}, batches of {batch} images of {size}x{size}",
                    speedup(),
                    full=kind | {"batch": batch, "size": 224},
                    smoke=kind | {"batch": 2, "size": 32},
                    device=device,
                    least={"size": 32},
                )(function)
    return function


class Setting(NamedTuple):
    model: str
    mode: str
    device: str
    bfloat16: bool
    batch: int
    size: int


@every_row
def throughput(repeats: int, compiled: bool, **setting) -> list[Measurement]:
    """Time per image; with `compiled` beside the same through `torch.compile`, in turns."""
    of = Setting(**setting)
    step = make_step(of)
    steps = {"ours": step}
    if compiled:
        steps["torch.compile"] = make_step(of, is_compiled=True)
    samples = interleave(steps, repeats, gpu.clock(of.device))
    samples = {name: [time / of.batch for time in times] for name, times in samples.items()}
    speeds = [f"{1 / median(times):.3g} images/s, {name}" for name, times in samples.items()]
    num_parameters = sum(weight.numel() for weight in NETWORKS[of.model]().parameters())
    flops, shares = giga_flops(of.model, of.size), parts(step, of.device)
    size = f"{num_parameters:,} parameters", f"{flops:.2f} GFLOPs"
    peak = gpu.peak_memory(of.device, make_warm_step, (of,), (of._replace(size=64),))
    return [
        Measurement(
            samples.pop("ours"),
            samples,
            unit="s/image",
            note="; ".join([*speeds, *size, dearest(shares)]),
            details={"num_parameters": num_parameters, "giga_flops": flops, "parts": shares},
        ),
        Measurement([peak], {}, "B", work="peak extra memory"),
    ]


def make_step(of: Setting, is_compiled: bool = False) -> Callable[[], Tensor]:
    """One forward pass, or one with backward, on a batch of noise."""
    torch.manual_seed(0)
    network = NETWORKS[of.model]().to(of.device)
    images = torch.randn(of.batch, 3, of.size, of.size, device=of.device)
    if is_compiled:
        network = torch.compile(network, fullgraph=True)
    context = torch.autocast(of.device, torch.bfloat16, enabled=of.bfloat16)
    if of.mode == "inference":
        network.eval()

        def infer() -> Tensor:
            with torch.no_grad(), context:
                return network(images)

        return infer

    def train() -> Tensor:
        network.zero_grad()
        with context:
            loss = network(images).float().square().mean()
        loss.backward()
        return loss.detach()

    return train


def make_warm_step(of: Setting) -> Callable[[], Tensor]:
    """One that has gradients already, which do not count."""
    step = make_step(of)
    step()
    return step


def parts(step: Callable, device: str) -> dict[str, float]:
    """The share of the time of every operation, or on a GPU of every kernel, dearest first."""
    step()
    with profile() as profiler:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    time = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    total = Counter()
    for event in profiler.key_averages():
        total[event.key] += getattr(event, time)
    whole = sum(total.values())
    return {name: spent / whole for name, spent in total.most_common() if spent}


def is_core(part: str) -> bool:
    return any(word in part for word in CORE)


def dearest(shares: dict[str, float]) -> str:
    """Of a dictionary that begins with the dearest, in words."""
    named = ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:5])
    other, share = next((part, share) for part, share in shares.items() if not is_core(part))
    return f"{named}; dearest beside scan, convolution and matrix product: {other} {share:.0%}"


def giga_flops(model: str, size: int) -> float:
    """As papers count: a multiplication with an addition is one."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        NETWORKS[model]().eval()(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9
