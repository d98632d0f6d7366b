r"""The scan over segments, as CUDA kernels that make inputs and transitions on the way."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cuda.launch import on_current_stream
from groot_graph.ops.cuda.scan import (
    SegmentScan,
    longest_segment,
    most_segments,
    power_of_two,
    segments_at_once,
)
from groot_graph.ops.dtypes import computing_dtype
from groot_graph.ops.tree_scan.cuda import tree_scan_backward_cuda, tree_scan_cuda

# Channels whose gradients of B and C a warp adds up.
LARGEST_GROUP = 32
# Bytes of the states of a channel that a thread carries in registers, for each recurrence.
MOST_STATE_BYTES = 32
# So few threads that the rows that they pass are still in the cache when they pass them again; and
# fewer where they keep the states of all nodes of a segment, so that these are few of all. The same
# on every GPU, so that sums come out the same.
MOST_INPUT_THREADS, MOST_KEEPING_THREADS = 2**16, 2**15


class Operands(NamedTuple):
    r"""What the kernels read, in the sequence in which they take it."""

    u: Tensor
    delta: Tensor
    step: Tensor | None
    B: Tensor
    C: Tensor
    grad: Tensor | None
    A: Tensor
    D: Tensor | None
    num_channels: int
    num_states: int


class Gradients(NamedTuple):
    r"""Those of what has them, in the sequence in which the kernels take them."""

    u: Tensor
    delta: Tensor
    step: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


class Results(NamedTuple):
    r"""What the kernels keep and write, in the sequence in which they take it: `y` forward,
    gradients backward.
    """

    kept: Tensor | None
    kept_sums: Tensor | None
    longest: int
    y: Tensor | None = None
    grad_u: Tensor | None = None
    grad_delta: Tensor | None = None
    grad_step: Tensor | None = None
    grad_A: Tensor | None = None
    grad_B: Tensor | None = None
    grad_C: Tensor | None = None


@on_current_stream
def selective_tree_scan_cuda(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    forest: Forest,
    D: Tensor | None = None,
    direction: str = "both",
    transition_delta: Tensor | None = None,
    state_norm_eps: float | None = None,
) -> Tensor:
    if state_norm_eps is not None:
        return _normalized(
            u, delta, A, B, C, forest, D, direction, transition_delta, state_norm_eps
        )
    operands = _operands(u, delta, A, B, C, D, transition_delta)
    if A.size(1) == 0:
        return torch.zeros_like(u) if D is None else (u * D).to(u.dtype)
    y = torch.empty_like(operands.u)
    scan, kept = _segment_scan(operands, forest, direction, is_backward=False)
    scan.run(operands, Results(*kept, y))
    return y


@on_current_stream
def selective_tree_scan_backward_cuda(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    forest: Forest,
    D: Tensor | None,
    direction: str,
    transition_delta: Tensor | None,
    state_norm_eps: float | None = None,
) -> tuple[Tensor, ...]:
    if state_norm_eps is not None:
        return _normalized_backward(
            grad, u, delta, A, B, C, forest, D, direction, transition_delta, state_norm_eps
        )
    dtype = computing_dtype(u)
    grad_D = A.new_zeros(u.size(1)) if D is None else (grad.to(dtype) * u.to(dtype)).sum(0)
    operands = _operands(u, delta, A, B, C, D, transition_delta, grad)
    if A.size(1) == 0:
        grads = _gradients_without_states(grad, operands)
    else:
        grads = _gradients(operands, forest, direction)
    through_nodes = grads.u, grads.delta, grads.B, grads.C, grads.step
    grad_u, grad_delta, grad_B, grad_C, grad_step = (value.to(u.dtype) for value in through_nodes)
    return grad_u, grad_delta, grads.A, grad_B, grad_C, grad_D, grad_step


def _segment_scan(
    operands: Operands, forest: Forest, direction: str, is_backward: bool
) -> tuple[SegmentScan, tuple[Tensor | None, Tensor | None, int]]:
    r"""The scan, and the room for what it keeps."""
    u, num_channels, num_states = operands.u, operands.num_channels, operands.num_states
    num_kept = _num_kept(direction, is_backward)
    dtype = computing_dtype(u)
    states_at_once = min(power_of_two(num_states), MOST_STATE_BYTES // dtype.itemsize)
    num_sums = (2 if is_backward else 1) if num_states > states_at_once else 0
    group_size = min(power_of_two(num_channels), LARGEST_GROUP) if is_backward else 1
    num_threads_across = -(-num_channels // group_size) * group_size
    most_threads = MOST_KEEPING_THREADS if num_kept else MOST_INPUT_THREADS
    at_once = segments_at_once(most_segments(u.size(0)), num_threads_across, most_threads)
    if is_backward:
        # Segments at once have gradients of A of their own, which stay smaller than those of u.
        at_once = min(at_once, max(1, u.size(0) // num_states))
    longest = longest_segment(u.size(0))
    scan = SegmentScan(
        "selective_tree_scan",
        u,
        forest,
        direction,
        is_backward,
        num_threads_across,
        at_once,
        num_states,
        STATES_AT_ONCE=states_at_once,
        CHUNK_SIZE=_chunk_size(operands.B, operands.C, states_at_once),
        HAS_SUMS=int(num_sums > 0),
        NUM_KEPT=num_kept,
        GROUP_SIZE=group_size,
        HAS_STEP=int(operands.step is not None),
        HAS_PADDING=int(num_channels % group_size > 0),
    )
    num_rows = min(u.size(0), at_once * longest)
    kept, kept_sums = (
        u.new_empty(num_rows, number, num_channels, dtype=dtype) if number else None
        for number in (num_kept * states_at_once, num_sums)
    )
    return scan, (kept, kept_sums, longest)


def _num_kept(direction: str, is_backward: bool) -> int:
    r"""Of how many recurrences the sums of the pass up are needed in the pass down."""
    if is_backward:
        return 2 if direction == "both" else 1
    return int(direction == "both")


def _gradients(operands: Operands, forest: Forest, direction: str) -> Gradients:
    u, A = operands.u, operands.A
    (num_nodes, num_channels), num_states = u.shape, operands.num_states
    scan, kept = _segment_scan(operands, forest, direction, is_backward=True)
    num_groups = -(-num_channels // LARGEST_GROUP)
    parts = Gradients(
        u=torch.empty_like(u),
        delta=torch.empty_like(u),
        step=torch.empty_like(u),
        A=A.new_zeros(scan.at_once, num_channels, num_states),
        B=A.new_empty(num_groups, num_nodes, num_states),
        C=A.new_empty(num_groups, num_nodes, num_states),
    )
    scan.run(operands, Results(*kept, None, *parts))
    return parts._replace(A=parts.A.sum(0), B=parts.B.sum(0), C=parts.C.sum(0))


def _gradients_without_states(grad: Tensor, operands: Operands) -> Gradients:
    like = operands.u, operands.delta, operands.delta, operands.A, operands.B, operands.C
    grads = Gradients(*map(torch.zeros_like, like))
    return grads if operands.D is None else grads._replace(u=grad * operands.D)


def _normalized(u, delta, A, B, C, forest, D, direction, transition_delta, eps) -> Tensor:
    r"""One state after the other, each held for all nodes and channels: their mean and deviation
    have to be known before any of them is read.
    """
    dtype = computing_dtype(u)
    y = torch.zeros_like(u, dtype=dtype) if D is None else D * u
    for s in range(A.size(1)):
        x, transition = _discretise(u, delta, A, B, transition_delta, s)
        h = tree_scan_cuda(x, transition, forest, direction)
        y += C[:, s, None] * F.layer_norm(h, h.shape[1:], eps=eps)
    return y.to(u.dtype)


def _normalized_backward(
    grad, u, delta, A, B, C, forest, D, direction, transition_delta, eps
) -> tuple[Tensor, ...]:
    dtype = computing_dtype(u)
    step = delta if transition_delta is None else transition_delta
    grad, scaled = grad.to(dtype), delta.to(dtype) * u
    grad_scaled, grad_step = (torch.zeros_like(scaled) for _ in range(2))
    grad_A, grad_B, grad_C = (torch.zeros_like(value, dtype=dtype) for value in (A, B, C))
    for s in range(A.size(1)):
        x, transition = _discretise(u, delta, A, B, transition_delta, s)
        h = tree_scan_cuda(x, transition, forest, direction)
        normalized, mean, scale = torch.native_layer_norm(h, h.shape[1:], None, None, eps)
        grad_C[:, s] = (grad * normalized).sum(1)
        grad_h, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad * C[:, s, None], h, h.shape[1:], mean, scale, None, None, [True, False, False]
        )
        grad_x, grad_transition = tree_scan_backward_cuda(
            grad_h, x, transition, h, forest, direction
        )
        grad_exponent = grad_transition * transition
        grad_scaled += grad_x * B[:, s, None]
        grad_step += grad_exponent * A[:, s]
        grad_A[:, s] = (grad_exponent * step).sum(0)
        grad_B[:, s] = (grad_x * scaled).sum(1)
    grad_u, grad_delta = grad_scaled * delta, grad_scaled * u
    grad_D = (grad * u).sum(0)
    if D is not None:
        grad_u += grad * D
    if transition_delta is None:
        grad_delta += grad_step
    half = (value.to(u.dtype) for value in (grad_u, grad_delta, grad_B, grad_C, grad_step))
    grad_u, grad_delta, grad_B, grad_C, grad_step = half
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_step


def _discretise(u, delta, A, B, transition_delta, s) -> tuple[Tensor, Tensor]:
    r"""Inputs Δ B u and transitions exp(Δ' A) of one of the states."""
    dtype = computing_dtype(u)
    step = delta if transition_delta is None else transition_delta
    return delta.to(dtype) * u * B[:, s, None], (step.to(dtype) * A[:, s]).exp()


def _operands(u, delta, A, B, C, D, transition_delta, grad=None) -> Operands:
    tensors = u, delta, transition_delta, B, C, grad, A, D
    contiguous = [value if value is None else value.contiguous() for value in tensors]
    return Operands._make([*contiguous, *A.shape])


def _chunk_size(B: Tensor, C: Tensor, states_at_once: int) -> int:
    r"""How many bytes of the states at once, in every row of B and C, one access may read."""
    size = min(states_at_once * B.element_size(), 16)
    is_whole = B.size(1) % states_at_once == 0
    is_aligned = B.data_ptr() % size == C.data_ptr() % size == 0
    return size if is_whole and is_aligned else B.element_size()
