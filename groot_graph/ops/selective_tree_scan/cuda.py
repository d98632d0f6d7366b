r"""The scan along segments, as CUDA kernels that make inputs and transitions on the way."""

import torch
import torch.nn.functional as F
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cuda.launch import C_TYPES, on_current_stream
from groot_graph.ops.cuda.scan import MOST_WALKING_THREADS, Walks
from groot_graph.ops.dtypes import computing_dtype
from groot_graph.ops.tree_scan.cuda import tree_scan_backward_cuda, tree_scan_cuda

# Channels whose gradients of B and C a warp adds up.
LARGEST_GROUP = 32
# States of a channel that a walk in one direction carries in registers.
MOST_STATES = 8


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
    inputs = _inputs(u, delta, A, B, C, D, transition_delta, grad=None)
    dtype = computing_dtype(u)
    y = torch.empty_like(inputs[0], dtype=dtype)
    if A.size(1) == 0:
        return (y.zero_() if D is None else u * D).to(u.dtype)
    # A walk in both directions leaves one state of every node behind, another array of u's shape.
    states_per_walk = 1 if direction == "both" else min(_power_of_two(A.size(1)), MOST_STATES)
    xi = torch.empty_like(y) if direction == "both" else None
    macros = {
        "STATES_PER_WALK": states_per_walk,
        "HAS_CHUNKS": int(_has_chunks(inputs[3], inputs[4], states_per_walk)),
        "GROUP_SIZE": 1,
    }
    walks = _walks(u, A, forest, direction, is_backward=False, macros=macros)
    walks.run(inputs, (y, xi, *[None] * 7))
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
        operands = u, delta, A, B, C, forest, D, direction, transition_delta, state_norm_eps
        return _normalized_backward(grad, *operands)
    inputs = _inputs(u, delta, A, B, C, D, transition_delta, grad)
    dtype, (num_nodes, num_channels), num_states = computing_dtype(u), u.shape, A.size(1)
    group_size = min(_power_of_two(num_channels), LARGEST_GROUP)
    macros = {"STATES_PER_WALK": 1, "HAS_CHUNKS": 0, "GROUP_SIZE": group_size}
    walks = _walks(u, A, forest, direction, is_backward=True, macros=macros)

    def nodes():
        return u.new_empty(num_nodes, num_channels, dtype=dtype)

    xi = nodes() if direction != "down" else None
    gamma = nodes() if direction != "up" else None
    grad_u, grad_delta, grad_step = (
        values if num_states else values.zero_() for values in (nodes(), nodes(), nodes())
    )
    if D is not None and num_states == 0:
        grad_u = grad * D
    num_groups = walks.width // group_size
    partial_A = A.new_zeros(walks.num_walks, num_channels, num_states)
    partial_B, partial_C = (A.new_empty(num_groups, num_nodes, num_states) for _ in range(2))
    walks.run(
        inputs,
        (None, xi, gamma, grad_u, grad_delta, grad_step, partial_A, partial_B, partial_C),
    )
    grad_A = partial_A.sum(0)
    grad_B, grad_C = partial_B.sum(0), partial_C.sum(0)
    grad_D = A.new_zeros(num_channels)
    if D is not None:
        grad_D = (grad.to(dtype) * u.to(dtype)).sum(0)
    return (
        grad_u.to(u.dtype),
        grad_delta.to(u.dtype),
        grad_A,
        grad_B.to(u.dtype),
        grad_C.to(u.dtype),
        grad_D,
        grad_step.to(u.dtype),
    )


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


def _inputs(u, delta, A, B, C, D, transition_delta, grad) -> tuple:
    r"""What the kernels read, in the sequence in which they take it."""
    operands = (u, delta, transition_delta, B, C, grad, A, D)
    tensors = tuple(value if value is None else value.contiguous() for value in operands)
    return (*tensors, *A.shape)


def _has_chunks(B: Tensor, C: Tensor, states_per_walk: int) -> bool:
    r"""Whether a walk's states in every row of B and C are whole and aligned runs of 16 bytes."""
    size = states_per_walk * B.element_size()
    is_whole = size % 16 == 0 and B.size(1) % states_per_walk == 0
    return is_whole and B.data_ptr() % 16 == C.data_ptr() % 16 == 0


def _walks(u, A, forest, direction, is_backward, macros) -> Walks:
    num_nodes, num_channels = u.shape
    num_groups = -(-num_channels // macros["GROUP_SIZE"])
    return Walks(
        "selective_tree_scan",
        forest,
        width=num_groups * macros["GROUP_SIZE"],
        num_columns=num_channels * A.size(1),
        dtype=computing_dtype(u),
        direction=direction,
        is_backward=is_backward,
        # Every walk adds up gradients of A of its own, which stay smaller than those of u.
        most_walks=max(1, num_nodes // max(A.size(1), 1)) if is_backward else MOST_WALKING_THREADS,
        INPUT=C_TYPES[u.dtype],
        **macros,
    )


def _power_of_two(size: int) -> int:
    r"""The least power of two that is no smaller."""
    return 1 << max(size - 1, 0).bit_length()
