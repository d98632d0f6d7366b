r"""The scan over segments, as CUDA kernels."""

import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cuda.launch import on_current_stream
from groot_graph.ops.cuda.scan import SegmentScan, most_segments, power_of_two

# Neighbouring channels that the threads of a warp read together; a thread has several, this far
# apart, and makes the same way through the forest for all of them.
MOST_LANES, FEWEST_LANES = 32, 8
# Channels of a thread: as many as its registers hold.
MOST_PER_LANE = 5


@on_current_stream
def tree_scan_cuda(x: Tensor, transition: Tensor, forest: Forest, direction: str) -> Tensor:
    x, transition = x.contiguous(), transition.contiguous()
    h = torch.empty_like(x)
    scan = _segment_scan(x, forest, direction, is_backward=False)
    scan.run((x, transition, None, x.size(1)), (h, None, None))
    return h


@on_current_stream
def tree_scan_backward_cuda(
    grad: Tensor, x: Tensor, transition: Tensor, h: Tensor, forest: Forest, direction: str
) -> tuple[Tensor, Tensor]:
    r"""The gradients of x and transition; `h` is not read."""
    grad, x, transition = grad.contiguous(), x.contiguous(), transition.contiguous()
    grad_x, grad_transition = torch.empty_like(x), torch.empty_like(x)
    scan = _segment_scan(x, forest, direction, is_backward=True)
    scan.run((x, transition, grad, x.size(1)), (None, grad_x, grad_transition))
    return grad_x, grad_transition


def _segment_scan(x: Tensor, forest: Forest, direction: str, is_backward: bool) -> SegmentScan:
    num_nodes, num_channels = x.shape
    # A few channels for each lane, unless so few lanes read less than memory hands out at once.
    wanted = max(-(-num_channels // 4), min(num_channels, FEWEST_LANES))
    lanes = min(power_of_two(wanted), MOST_LANES)
    in_all = -(-num_channels // lanes)
    groups = -(-in_all // MOST_PER_LANE)
    per_lane = -(-in_all // max(groups, 1))
    return SegmentScan(
        "tree_scan",
        x,
        forest,
        direction,
        is_backward,
        num_threads_across=groups * lanes,
        at_once=most_segments(num_nodes),
        LANES=lanes,
        PER_LANE=max(per_lane, 1),
        HAS_REST=int(groups * lanes * per_lane != num_channels),
    )
