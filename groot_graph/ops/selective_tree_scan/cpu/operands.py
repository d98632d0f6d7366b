r"""What the kernels read and what the gradients are summed in: flat arrays, by name."""

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from groot_graph.ops.cpu.simd import all_flat, exponential, load, multiply


class Operands(NamedTuple):
    r"""The operands of a scan as flat arrays, and the sizes of their shapes.

    Attributes:
        u: Of [num_nodes, channels], as are delta and transition_delta.
        delta: The step Δ.
        transition_delta: The step Δ', which is Δ where none is given.
        A: Of [state_size, channels], so that one state's channels lie together.
        B: Of [num_nodes, state_size], as is C.
        C: The output matrix.
        D: Of [channels], zeros where none is given.
        channels: The number of channels.
        state_size: The number of states of each channel.
    """

    u: np.ndarray
    delta: np.ndarray
    transition_delta: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    channels: int
    state_size: int


class Grads(NamedTuple):
    r"""Sums of gradients as flat arrays, one for each operand.

    Attributes:
        u: Of [num_nodes, channels], as are those of delta and transition_delta.
        delta: What Δ gets, without what it gets as Δ'.
        transition_delta: What Δ' gets.
        A: Of [num_bundles, state_size, channels]: each bundle adds up its own nodes.
        B: Of [num_blocks, num_nodes, state_size], as is that of C: each block of channels adds up
            its own.
        C: What C gets.
        D: Of [num_bundles, channels].
    """

    u: np.ndarray
    delta: np.ndarray
    transition_delta: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray


def flat_operands(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    transition_delta: Tensor | None,
) -> Operands:
    step = delta if transition_delta is None else transition_delta
    D = torch.zeros(u.size(1), dtype=u.dtype) if D is None else D
    return Operands._make((*all_flat(u, delta, step, A.t(), B, C, D), *A.shape))


@njit(forceinline=True)
def form_transition(operands, step, s, channel, count):
    r"""exp(Δ' A) of a vector of channels, for one of the states."""
    A = load(operands.A, s * operands.channels + channel, count)
    return exponential(multiply(step, A))
