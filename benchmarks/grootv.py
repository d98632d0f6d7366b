"""``python -m benchmarks.grootv``: throughput, memory and a profile of the GrootV networks."""

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cuda
from benchmarks.machine import describe
from benchmarks.measure import in_fresh_process, interleave, peak_extra_memory, wall_seconds
from benchmarks.report import machine_lines
from benchmarks.units import quantity
from groot_graph.models import grootv_base, grootv_small, grootv_tiny

NETWORKS = {"tiny": grootv_tiny, "small": grootv_small, "base": grootv_base}
MODES = ("inference", "training")
BATCH_SIZES = {"cpu": 8, "cuda": 64}
# What a network of scans is made of; nothing else should take much of the time on a GPU.
CORE = ("groot_graph::", "conv", "mm", "gemm", "cutlass", "reduce_level", "finish_level")


def make_step(
    name: str, mode: str, args: argparse.Namespace, is_compiled: bool = False
) -> Callable[[], Tensor]:
    """One forward pass, or one with backward, on a batch of noise."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(args.device)
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    if is_compiled:
        model = torch.compile(model, fullgraph=True)
    context = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")
    if mode == "inference":
        model.eval()

        def infer() -> Tensor:
            with torch.no_grad(), context:
                return model(images)

        return infer

    def train() -> Tensor:
        model.zero_grad()
        with context:
            loss = model(images).float().square().mean()
        loss.backward()
        return loss.detach()

    return train


def measure(name: str, mode: str, args: argparse.Namespace) -> dict:
    """Seconds per step, memory and the dearest parts, as plain values."""
    step = make_step(name, mode, args)
    steps = {"eager": step}
    if args.compile:
        steps["compiled"] = make_step(name, mode, args, is_compiled=True)
    seconds = cuda.event_seconds if args.device == "cuda" else wall_seconds
    samples = interleave(steps, args.repeats, seconds)
    return {
        "model": name,
        "mode": mode,
        "samples": samples,
        "images_per_second": {
            form: args.batch / statistics.median(times) for form, times in samples.items()
        },
        "peak_memory": peak_memory(name, mode, args),
        "parts": parts(step, args.device),
    }


def peak_memory(name: str, mode: str, args: argparse.Namespace) -> int:
    """Bytes beyond the network, its images and, in training, its gradients."""
    if args.device == "cpu":
        return in_fresh_process(_peak_memory_of_cpu, name, mode, args)
    step = make_step(name, mode, args)
    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def _peak_memory_of_cpu(name: str, mode: str, args: argparse.Namespace) -> int:
    step = make_step(name, mode, args)
    step()
    return peak_extra_memory(step)


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


def giga_flops(name: str, size: int) -> float:
    """As papers count: a multiplication with an addition is one."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        NETWORKS[name]().eval()(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def report(machine: dict, args: argparse.Namespace, results: list[dict]) -> str:
    lines = [
        *machine_lines(machine),
        f"batches of {args.batch} images of {args.size} x {args.size}, {args.dtype}, "
        f"median of {args.repeats}; memory and parts are those without torch.compile",
        "",
        "| network | parameters | GFLOPs | mode | images/s | compiled | peak extra memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        cells = (
            f"GrootV-{result['model']}",
            f"{result['num_parameters']:,}",
            f"{result['giga_flops']:.2f}",
            result["mode"],
            f"{result['images_per_second']['eager']:.3g}",
            f"{result['images_per_second'].get('compiled', math.nan):.3g}",
            quantity(result["peak_memory"], "B"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *map(profile_line, results)])


def profile_line(result: dict) -> str:
    dearest = list(result["parts"].items())[:5]
    named = ", ".join(f"{name} {share:.0%}" for name, share in dearest)
    other, share = max(
        ((name, share) for name, share in result["parts"].items() if not is_core(name)),
        key=lambda part: part[1],
    )
    return (
        f"GrootV-{result['model']}, {result['mode']}: {named}; dearest beside scan, convolution "
        f"and matrix product: {other} {share:.0%}"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grootv", description=__doc__)
    parser.add_argument("--model", action="append", choices=NETWORKS, help="only this one")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this one")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, help=f"images per step (default: {BATCH_SIZES})")
    parser.add_argument("--size", type=int, default=224, help="side of an image (224)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--compile", action="store_true", help="also through torch.compile, in turns"
    )
    parser.add_argument("--repeats", type=int, default=5, help="steps timed (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    args = parser.parse_args(argv)
    args.batch = BATCH_SIZES[args.device] if args.batch is None else args.batch
    if args.device == "cuda" and (missing := cuda.missing()):
        parser.error(f"--device cuda needs {missing}")
    if min(args.batch, args.repeats) < 1 or args.size < 32:
        parser.error("--batch and --repeats must be at least 1, --size at least 32")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"{args.json.absolute().parent} is not a directory")
    return args


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse(argv)
    machine = describe(args.device)
    results = []
    for name in args.model or NETWORKS:
        size = {
            "num_parameters": sum(weight.numel() for weight in NETWORKS[name]().parameters()),
            "giga_flops": giga_flops(name, args.size),
        }
        results += [{**size, **measure(name, mode, args)} for mode in args.mode or MODES]
    print(report(machine, args, results))
    if args.json:
        settings = {key: getattr(args, key) for key in ("batch", "size", "dtype", "compile")}
        content = {"machine": machine, "settings": settings, "results": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
