r"""Picks an operation's implementation by its tensors' device: the one place that knows them."""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch


def implementation(operation: str, device: torch.device, step: str = "") -> Callable:
    r"""The function that computes an operation on a device: Numba's on the CPU, the reference
    elsewhere.

    Args:
        operation (str): The operation's name, such as :obj:`"tree_scan"`.
        device (torch.device): Where its tensors are.
        step (str, optional): What follows the operation's name in the function's:
            :obj:`"_backward"` for its gradient. (default: :obj:`""`)
    """
    backend = "cpu" if device.type == "cpu" else "reference"
    if backend == "reference":
        _warn_once(device.type)
    module = import_module(f"groot_graph.ops.{operation}.{backend}")
    return getattr(module, f"{operation}{step}_{backend}")


@cache
def _warn_once(device_type: str) -> None:
    warnings.warn(
        f"groot_graph has no compiled kernels for '{device_type}' tensors in this version: the "
        "plain PyTorch reference computes there, correctly but slowly. On the CPU the kernels are "
        "compiled.",
        stacklevel=2,
    )
