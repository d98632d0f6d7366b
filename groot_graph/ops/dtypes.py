r"""In which dtype an operation computes, and in which it takes its tensors."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from groot_graph.ops.dispatch import has_cuda_kernels


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    r"""The dtype that an operation computes in: float64 where any operand has it, else float32."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def operand_dtype(*tensors: Tensor) -> torch.dtype:
    r"""The dtype in which an operation takes its tensors: the half type that all share, where CUDA
    kernels read it, else the dtype that is computed in.
    """
    shared = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != shared:
            return computing_dtype(*tensors)
    if shared in (torch.float32, torch.float64) or has_cuda_kernels(tensors[0].device):
        return shared
    return torch.float32


def autocast_off(device: torch.device) -> AbstractContextManager:
    r"""Keeps the dtypes of what is computed inside, on devices without autocast too."""
    has_autocast = torch.amp.is_autocast_available(device.type)
    # Not entered in vain, because torch.export cannot read back one that it saved within no_grad.
    if not has_autocast or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
