r"""Picks an operation's implementation by its tensors' device, and by whether CuPy is installed."""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch


@cache
def implementation(operation: str, device: torch.device, step: str = "") -> Callable:
    r"""The function that computes an operation on a device.

    Args:
        operation (str): The operation's name, such as :obj:`"tree_scan"`.
        device (torch.device): Where its tensors are.
        step (str, optional): What follows the operation's name in the function's:
            :obj:`"_backward"` for its gradient. (default: :obj:`""`)
    """
    name = backend(device)
    # Tensors of the device "meta" have nothing to compute.
    if name == "reference" and device.type != "meta":
        _warn_once(device.type)
    module = import_module(f"groot_graph.ops.{operation}.{name}")
    return getattr(module, f"{operation}{step}_{name}")


def backend(device: torch.device) -> str:
    r"""Numba's kernels on the CPU, CUDA kernels where CuPy can compile them, the reference
    elsewhere.
    """
    if device.type == "cpu":
        return "cpu"
    return "cuda" if device.type == "cuda" and _has_cupy() else "reference"


def has_cuda_kernels(device: torch.device) -> bool:
    r"""Whether CUDA kernels compute on a device."""
    return backend(device) == "cuda"


@torch.compiler.assume_constant_result
@cache
def _has_cupy() -> bool:
    return torch.version.cuda is not None and find_spec("cupy") is not None


@cache
def _warn_once(device_type: str) -> None:
    reason, remedy = f"has no compiled kernels for '{device_type}' tensors", ""
    if device_type == "cuda" and torch.version.cuda is not None:
        extra = f"cuda{torch.version.cuda.partition('.')[0]}"
        reason = "needs CuPy to compile its CUDA kernels, and CuPy is not installed"
        remedy = f" For the kernels: pip install 'groot-graph[{extra}]'."
    warnings.warn(
        f"groot_graph {reason}: the plain PyTorch reference computes there, correctly but slowly."
        f"{remedy}",
        stacklevel=2,
    )
