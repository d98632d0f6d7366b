r"""The selective scan as Numba kernels that form transitions and states on the fly, a block of
channels at a time.

Upward and downward, states live in slots, only as long as somebody needs them (`slots`). In both
directions, and for the gradients, one state of a block is held for all places of a bundle
(`blocks`); where states are normalized, one state of all channels (`normalized`).
"""

import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cpu.order import placed
from groot_graph.ops.cpu.simd import all_flat, flat
from groot_graph.ops.selective_tree_scan.cpu import blocks, normalized, slots
from groot_graph.ops.selective_tree_scan.cpu.operands import Grads, flat_operands
from groot_graph.ops.selective_tree_scan.cpu.units import num_blocks


def selective_tree_scan_cpu(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    forest: Forest,
    D: Tensor | None,
    direction: str,
    transition_delta: Tensor | None,
    state_norm_eps: float | None,
) -> Tensor:
    operands = flat_operands(u, delta, A, B, C, D, transition_delta)
    y = torch.empty(u.shape, dtype=u.dtype)
    if state_norm_eps is not None:
        normalized.scan(placed(forest), direction, operands, state_norm_eps, flat(y))
    elif direction == "both":
        blocks.scan(placed(forest), operands, flat(y))
    else:
        slots.scan(placed(forest), direction, operands, flat(y))
    return y


def selective_tree_scan_backward_cpu(
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
    state_norm_eps: float | None,
) -> tuple[Tensor, ...]:
    operands = flat_operands(u, delta, A, B, C, D, transition_delta)
    places = placed(forest)
    (num_nodes, channels), state_size = u.shape, A.size(1)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=u.dtype)

    # Sums over nodes are taken per bundle and sums over channels per block, then added up in a
    # fixed sequence.
    grad_u, grad_delta, grad_step = (zeros(num_nodes, channels) for _ in range(3))
    grad_A = zeros(places.num_bundles, state_size, channels)
    grad_B, grad_C = (zeros(max(1, num_blocks(channels)), num_nodes, state_size) for _ in range(2))
    grad_D = zeros(places.num_bundles, channels)
    grads = Grads(*all_flat(grad_u, grad_delta, grad_step, grad_A, grad_B, grad_C, grad_D))
    if state_norm_eps is None:
        blocks.scan_backward(places, direction, operands, flat(grad), grads)
    else:
        normalized.scan_backward(places, direction, operands, state_norm_eps, flat(grad), grads)
    if transition_delta is None:
        grad_delta += grad_step
    grad_A, grad_B, grad_C, grad_D = (
        torch.from_numpy(parts.numpy().sum(axis=0)) for parts in (grad_A, grad_B, grad_C, grad_D)
    )
    return grad_u, grad_delta, grad_A.t().contiguous(), grad_B, grad_C, grad_D, grad_step
