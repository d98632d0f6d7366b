r"""The scan along segments, as CUDA kernels that make inputs and transitions on the way."""

import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.checks import computing_dtype
from groot_graph.ops.kernels import C_TYPES, on_current_stream
from groot_graph.ops.walks import MOST_WALKING_THREADS, Walks

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
) -> Tensor:
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
) -> tuple[Tensor, ...]:
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
