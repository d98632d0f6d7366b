r"""The scan over segments, as CUDA kernels that make inputs and transitions on the way."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cuda.launch import on_current_stream
from groot_graph.ops.cuda.scan import (
    SegmentScan,
    most_segments,
    power_of_two,
    segments_at_once,
)
from groot_graph.ops.dtypes import computing_dtype
from groot_graph.ops.tree_scan.cuda import tree_scan_backward_cuda, tree_scan_cuda

# Channels whose gradients of B and C a warp adds up.
LARGEST_GROUP = 32
# So few threads that the rows that they pass are still in the cache when they pass them again. The
# same on every GPU, so that sums come out the same.
MOST_INPUT_THREADS = 2**16
# States of a channel that a scan in one direction carries in registers.
MOST_STATES = 8


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
    r"""What the kernels write, in the sequence in which they take it: `y` forward, gradients
    backward. `xi` and `gamma` hold one state of every node and channel.
    """

    y: Tensor | None = None
    xi: Tensor | None = None
    gamma: Tensor | None = None
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
    y = _empty_like(operands.u)
    if A.size(1) == 0:
        return (y.zero_() if D is None else u * D).to(u.dtype)
    # Both directions leave one state of every node behind, in another array of u's shape.
    xi = torch.empty_like(y) if direction == "both" else None
    _forward_scan(operands, forest, direction).run(operands, Results(y=y, xi=xi))
    return y.to(u.dtype)


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


def _forward_scan(operands: Operands, forest: Forest, direction: str) -> SegmentScan:
    num_states = operands.num_states
    # In both directions one state after another, because each is kept between the two passes.
    states_at_once = 1 if direction == "both" else min(power_of_two(num_states), MOST_STATES)
    return SegmentScan(
        "selective_tree_scan",
        operands.u,
        forest,
        direction,
        is_backward=False,
        num_threads_across=operands.num_channels,
        at_once=_segments_at_once(operands.u, operands.num_channels),
        num_states=num_states,
        STATES_AT_ONCE=states_at_once,
        HAS_CHUNKS=int(_has_chunks(operands.B, operands.C, states_at_once)),
        GROUP_SIZE=1,
    )


def _gradients(operands: Operands, forest: Forest, direction: str) -> Gradients:
    u, A = operands.u, operands.A
    (num_nodes, num_channels), num_states = u.shape, operands.num_states
    group_size = min(power_of_two(num_channels), LARGEST_GROUP)
    num_groups = -(-num_channels // group_size)
    num_threads_across = num_groups * group_size
    # Segments at once have gradients of A of their own, which stay smaller than those of u.
    at_once = min(_segments_at_once(u, num_threads_across), max(1, num_nodes // num_states))
    scan = SegmentScan(
        "selective_tree_scan",
        u,
        forest,
        direction,
        is_backward=True,
        num_threads_across=num_threads_across,
        at_once=at_once,
        num_states=num_states,
        STATES_AT_ONCE=1,
        HAS_CHUNKS=0,
        GROUP_SIZE=group_size,
    )
    parts = Gradients(
        u=_empty_like(u),
        delta=_empty_like(u),
        step=_empty_like(u),
        A=A.new_zeros(at_once, num_channels, num_states),
        B=A.new_empty(num_groups, num_nodes, num_states),
        C=A.new_empty(num_groups, num_nodes, num_states),
    )
    xi = None if direction == "down" else _empty_like(u)
    gamma = None if direction == "up" else _empty_like(u)
    scan.run(operands, Results(None, xi, gamma, *parts))
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


def _segments_at_once(u: Tensor, num_threads_across: int) -> int:
    return segments_at_once(most_segments(u.size(0)), num_threads_across, MOST_INPUT_THREADS)


def _has_chunks(B: Tensor, C: Tensor, states_at_once: int) -> bool:
    r"""Whether the states at once in every row of B and C are whole, aligned runs of 16 bytes."""
    size = states_at_once * B.element_size()
    is_whole = size % 16 == 0 and B.size(1) % states_at_once == 0
    return is_whole and B.data_ptr() % 16 == C.data_ptr() % 16 == 0


def _empty_like(u: Tensor) -> Tensor:
    r"""Room for u in the dtype that is computed in."""
    return torch.empty_like(u, dtype=computing_dtype(u))
