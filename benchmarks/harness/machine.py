"""The machine and the versions that a table of times belongs to."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.harness import gpu

PACKAGES = (
    "groot-graph",
    "torch",
    "torch-geometric",
    "numba",
    "numpy",
    "scipy",
    "rustworkx",
    "igraph",
    "transformers",
)


def describe(device: str) -> dict:
    """CPU, cores, threads, load and versions, as strings and numbers for table and JSON; for a GPU
    also what it is and the bandwidth of a copy on it, which is measured.
    """
    return {
        "device": device,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        **({"gpu": _gpu()} if device == "cuda" else {}),
    }


def _gpu() -> dict:
    import cupy

    properties = torch.cuda.get_device_properties(gpu.DEVICE)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cupy": cupy.__version__,
        "cupy_cuda": cupy.cuda.runtime.runtimeGetVersion(),
        "copy_bandwidth": gpu.copy_bandwidth(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return lines.partition("\n")[0].strip() or "unknown"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
