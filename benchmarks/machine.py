"""The machine and the versions that a table of times belongs to."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

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
    """CPU, cores, threads, load and versions, as strings and numbers for table and JSON."""
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
    }


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
