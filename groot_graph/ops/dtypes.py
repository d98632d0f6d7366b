r"""In which dtype an operation computes, and in which it takes its tensors."""

import torch
from torch import Tensor

from groot_graph.ops.dispatch import has_cuda_kernels


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    r"""The dtype that an operation computes in: float64 where any operand has it, else float32."""
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def operand_dtype(*tensors: Tensor) -> torch.dtype:
    r"""The dtype in which an operation takes its tensors: the half type that all share, where CUDA
    kernels read it, else the dtype that is computed in.
    """
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) == 1 and has_cuda_kernels(tensors[0].device):
        return dtypes.pop()
    return computing_dtype(*tensors)
