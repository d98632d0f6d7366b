r"""The scan in both directions, and the gradients of every direction: one state of one block of
channels at a time, held for all places of a bundle.
"""

import numpy as np
from numba import njit

from groot_graph.checks import DIRECTIONS
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.cpu.order import PlacedForest
from groot_graph.ops.cpu.simd import (
    lanes,
    load,
    load_whole,
    multiply,
    multiply_add,
    splat,
    store,
    store_whole,
    sum_of_lanes,
    zeros,
)
from groot_graph.ops.cpu.threads import run_in_chunks
from groot_graph.ops.selective_tree_scan.cpu.operands import Grads, Operands, form_transition
from groot_graph.ops.selective_tree_scan.cpu.passes import BOTH, scan_rows, scan_rows_backward
from groot_graph.ops.selective_tree_scan.cpu.units import in_rows, num_units, rows_of, unit_of


def scan(placed: PlacedForest, operands: Operands, y: np.ndarray) -> None:
    run_in_chunks(_scan, num_units(placed, operands.channels), placed, operands, y)


def scan_backward(
    placed: PlacedForest, direction: str, operands: Operands, grad: np.ndarray, grads: Grads
) -> None:
    task = placed, DIRECTIONS.index(direction), operands, grad, grads
    run_in_chunks(_scan_backward, num_units(placed, operands.channels), *task)


@compiled
def _scan(first_unit, last_unit, placed, operands, y):
    for number in range(first_unit, last_unit):
        unit = unit_of(number, placed, operands.channels)
        state, transition = rows_of(unit, y), rows_of(unit, y)
        skip(placed, unit, operands, y)
        for s in range(operands.state_size):
            discretise(placed, unit, s, operands, state, transition)
            scan_rows(placed, unit, BOTH, transition, state)
            _read(placed, unit, s, operands, state, y)


@compiled
def _scan_backward(first_unit, last_unit, placed, direction, operands, grad, grads):
    for number in range(first_unit, last_unit):
        unit = unit_of(number, placed, operands.channels)
        state, transition, grad_x = rows_of(unit, grad), rows_of(unit, grad), rows_of(unit, grad)
        skip_backward(placed, unit, operands, grad, grads)
        for s in range(operands.state_size):
            discretise(placed, unit, s, operands, state, transition)
            _read_backward(placed, unit, s, operands, grad, grad_x)
            scan_rows_backward(placed, unit, direction, transition, state, grad_x)
            slope = transition
            _sum_grad_c(placed, unit, s, operands, grad, state, grads)
            discretise_backward(placed, unit, s, operands, grad_x, slope, grads)


@compiled
def skip(placed, unit, operands, y):
    r"""y_i = D u_i."""
    u, D = operands.u, operands.D
    for place in range(unit.start, unit.stop):
        row = placed.order[place] * operands.channels
        for channel in range(unit.first, unit.last, lanes(y)):
            count = unit.last - channel
            value = load(u, row + channel, count)
            store(y, row + channel, count, multiply(load(D, channel, count), value))


@compiled
def skip_backward(placed, unit, operands, grad, grads):
    r"""ū_i = D ȳ_i,  D̄ = Σ ȳ_i u_i."""
    u, D, grad_u, grad_D = operands.u, operands.D, grads.u, grads.D
    for place in range(unit.start, unit.stop):
        row = placed.order[place] * operands.channels
        for channel in range(unit.first, unit.last, lanes(grad)):
            count = unit.last - channel
            grad_y = load(grad, row + channel, count)
            store(grad_u, row + channel, count, multiply(load(D, channel, count), grad_y))
            value = load(u, row + channel, count)
            add_product(grad_D, unit.bundle * operands.channels + channel, count, grad_y, value)


@compiled
def discretise(placed, unit, s, operands, state, transition):
    r"""x_i = Δ_i B_i u_i and a_i = exp(Δ'_i A), for one of the states."""
    u, delta, step, B = operands.u, operands.delta, operands.transition_delta, operands.B
    for place in range(unit.start, unit.stop):
        node = placed.order[place]
        weight = splat(B[node * operands.state_size + s])
        for channel in range(unit.first, unit.last, lanes(state)):
            row, count = node * operands.channels + channel, unit.last - channel
            own = in_rows(unit, place, channel)
            scaled = multiply(load(delta, row, count), load(u, row, count))
            store_whole(state, own, multiply(scaled, weight))
            a = form_transition(operands, load(step, row, count), s, channel, count)
            store_whole(transition, own, a)


@compiled
def discretise_backward(placed, unit, s, operands, grad_x, slope, grads):
    r"""Adds what x̄ and the slopes a ā of one of the states give to u, Δ, Δ', A and B."""
    grad_B = grads.B
    for place in range(unit.start, unit.stop):
        node, through_B = placed.order[place], zeros(grad_x)
        for channel in range(unit.first, unit.last, lanes(grad_x)):
            own = in_rows(unit, place, channel)
            x_bar, log_a_bar = load_whole(grad_x, own), load_whole(slope, own)
            scaled = _add_to_grads(unit, node, channel, s, operands, x_bar, log_a_bar, grads)
            through_B = multiply_add(x_bar, scaled, through_B)
        grad_B[_entry_of_block(placed, unit, node, s, operands)] = sum_of_lanes(through_B)


@njit(forceinline=True)
def _add_to_grads(unit, node, channel, s, operands, x_bar, log_a_bar, grads):
    r"""Adds to the gradients of u, Δ, Δ' and A, for one vector of channels; returns Δ u."""
    count, column = unit.last - channel, s * operands.channels + channel
    row = node * operands.channels + channel
    u, delta = load(operands.u, row, count), load(operands.delta, row, count)
    through_B = multiply(x_bar, splat(operands.B[node * operands.state_size + s]))
    add_product(grads.u, row, count, through_B, delta)
    add_product(grads.delta, row, count, through_B, u)
    add_product(grads.transition_delta, row, count, log_a_bar, load(operands.A, column, count))
    of_bundle = unit.bundle * operands.state_size * operands.channels + column
    step = load(operands.transition_delta, row, count)
    add_product(grads.A, of_bundle, count, log_a_bar, step)
    return multiply(delta, u)


@njit(forceinline=True)
def add_product(target, offset, count, left, right):
    store(target, offset, count, multiply_add(left, right, load(target, offset, count)))


@njit(inline="always")
def _read(placed, unit, s, operands, state, y):
    r"""y_i += C_i h_i."""
    C = operands.C
    for place in range(unit.start, unit.stop):
        node = placed.order[place]
        weight = splat(C[node * operands.state_size + s])
        for channel in range(unit.first, unit.last, lanes(y)):
            h, row = load_whole(state, in_rows(unit, place, channel)), node * operands.channels
            add_product(y, row + channel, unit.last - channel, weight, h)


@njit(inline="always")
def _read_backward(placed, unit, s, operands, grad, grad_h):
    r"""h̄_i = C_i ȳ_i."""
    C = operands.C
    for place in range(unit.start, unit.stop):
        node = placed.order[place]
        weight = splat(C[node * operands.state_size + s])
        for channel in range(unit.first, unit.last, lanes(grad)):
            grad_y = load(grad, node * operands.channels + channel, unit.last - channel)
            store_whole(grad_h, in_rows(unit, place, channel), multiply(grad_y, weight))


@njit(inline="always")
def _sum_grad_c(placed, unit, s, operands, grad, state, grads):
    r"""C̄_i = Σ ȳ_i h_i over the channels of a block."""
    grad_C = grads.C
    for place in range(unit.start, unit.stop):
        node, through_C = placed.order[place], zeros(grad)
        for channel in range(unit.first, unit.last, lanes(grad)):
            grad_y = load(grad, node * operands.channels + channel, unit.last - channel)
            h = load_whole(state, in_rows(unit, place, channel))
            through_C = multiply_add(grad_y, h, through_C)
        grad_C[_entry_of_block(placed, unit, node, s, operands)] = sum_of_lanes(through_C)


@njit(forceinline=True)
def _entry_of_block(placed, unit, node, s, operands):
    r"""Where the gradients of B and C have what a block gives to one state of a node."""
    return (unit.block * len(placed.order) + node) * operands.state_size + s
