r"""The scan over segments, as CUDA kernels."""

import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cuda.launch import on_current_stream
from groot_graph.ops.cuda.scan import SegmentScan
from groot_graph.ops.dtypes import computing_dtype


@on_current_stream
def tree_scan_cuda(x: Tensor, transition: Tensor, forest: Forest, direction: str) -> Tensor:
    x, transition = x.contiguous(), transition.contiguous()
    h = torch.empty_like(x, dtype=computing_dtype(x))
    scan = SegmentScan("tree_scan", x, forest, direction, is_backward=False)
    scan.run((x, transition, None, x.size(1)), (h, None, None))
    return h.to(x.dtype)


@on_current_stream
def tree_scan_backward_cuda(
    grad: Tensor, x: Tensor, transition: Tensor, h: Tensor, forest: Forest, direction: str
) -> tuple[Tensor, Tensor]:
    r"""The gradients of x and transition; `h` is not read."""
    grad, x, transition = grad.contiguous(), x.contiguous(), transition.contiguous()
    grad_x, grad_transition = (torch.empty_like(x, dtype=computing_dtype(x)) for _ in range(2))
    scan = SegmentScan("tree_scan", x, forest, direction, is_backward=True)
    scan.run((x, transition, grad, x.size(1)), (None, grad_x, grad_transition))
    return grad_x.to(x.dtype), grad_transition.to(x.dtype)
