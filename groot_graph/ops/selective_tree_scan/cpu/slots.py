r"""The scan upwards or downwards, whose states live only as long as somebody needs them.

A node's states have a slot until the last of its children is done with them: in the order of
:func:`groot_graph.root_forest` that is O(log num_nodes) slots, and one for a chain. A unit takes
all states of a node in one visit.
"""

import numpy as np
from numba import njit

from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.cpu.order import LAST_CHILD, LEAF, ROOT, PlacedForest
from groot_graph.ops.cpu.simd import (
    lanes,
    load,
    load_whole,
    multiply,
    multiply_add,
    prefetch,
    splat,
    store,
    store_whole,
    zeros,
)
from groot_graph.ops.cpu.threads import run_in_chunks
from groot_graph.ops.selective_tree_scan.cpu.operands import Operands, form_transition
from groot_graph.ops.selective_tree_scan.cpu.units import CHANNELS_PER_BLOCK, num_units, unit_of

# A node's rows are asked for while the rows this many places before it are worked on: nodes follow
# one another in no pattern that a processor foresees.
PREFETCH_DISTANCE = 2


def scan(placed: PlacedForest, direction: str, operands: Operands, y: np.ndarray) -> None:
    kernel = {"up": _up, "down": _down}[direction]
    slots = np.full(len(placed.order), -1, placed.above.dtype)
    num_slots = _assign_slots(placed, slots)
    number = num_units(placed, operands.channels)
    run_in_chunks(kernel, number, placed, slots, num_slots, operands, y)


@compiled
def _assign_slots(placed, slots):
    r"""Gives every parent a slot from its own place to its last child's; returns how many."""
    free = np.empty(len(slots), slots.dtype)
    num_free = num_slots = 0
    for place in range(len(slots) - 1, -1, -1):
        if not placed.flags[place] & LEAF:
            free[num_free] = slots[place]
            num_free += 1
        if placed.flags[place] & LAST_CHILD:
            if num_free > 0:
                num_free -= 1
                slots[placed.above[place]] = free[num_free]
            else:
                slots[placed.above[place]] = num_slots
                num_slots += 1
    return num_slots


@compiled
def _up(first_unit, last_unit, placed, slots, num_slots, operands, y):
    state = np.empty(num_slots * operands.state_size * CHANNELS_PER_BLOCK, y.dtype)
    for number in range(first_unit, last_unit):
        unit = unit_of(number, placed, operands.channels)
        for place in range(unit.stop - 1, unit.start - 1, -1):
            _prefetch_rows(placed, unit, max(place - PREFETCH_DISTANCE, unit.start), operands, y)
            for channel in range(unit.first, unit.last, lanes(y)):
                _visit_up(placed, unit, place, channel, slots, operands, state, y)


@compiled
def _down(first_unit, last_unit, placed, slots, num_slots, operands, y):
    state = np.empty(num_slots * operands.state_size * CHANNELS_PER_BLOCK, y.dtype)
    for number in range(first_unit, last_unit):
        unit = unit_of(number, placed, operands.channels)
        for place in range(unit.start, unit.stop):
            _prefetch_rows(placed, unit, min(place + PREFETCH_DISTANCE, unit.stop - 1), operands, y)
            for channel in range(unit.first, unit.last, lanes(y)):
                _visit_down(placed, unit, place, channel, slots, operands, state, y)


@njit(forceinline=True)
def _prefetch_rows(placed, unit, place, operands, y):
    row = placed.order[place] * operands.channels + unit.first
    for channel in range(0, CHANNELS_PER_BLOCK, lanes(y)):
        prefetch(operands.u, row + channel)
        prefetch(operands.delta, row + channel)
        prefetch(operands.transition_delta, row + channel)
        prefetch(y, row + channel)


@njit(forceinline=True)
def _visit_up(placed, unit, place, channel, slots, operands, state, y):
    r"""ξ_i += x_i,  y_i = D u_i + C ξ_i,  ξ_p += a_i ξ_i, for one vector of channels."""
    node, flag, count = placed.order[place], placed.flags[place], unit.last - channel
    scaled, step, out = _load_inputs(operands, node, channel, count)
    own = _first_state(slots[place], operands, channel - unit.first)
    above = _first_state(slots[placed.above[place]], operands, channel - unit.first)
    for s in range(operands.state_size):
        entry, offset = node * operands.state_size + s, s * CHANNELS_PER_BLOCK
        xi = zeros(state) if flag & LEAF else load_whole(state, own + offset)
        xi = multiply_add(scaled, splat(operands.B[entry]), xi)
        out = multiply_add(splat(operands.C[entry]), xi, out)
        if not flag & ROOT:
            a = form_transition(operands, step, s, channel, count)
            others = zeros(state) if flag & LAST_CHILD else load_whole(state, above + offset)
            store_whole(state, above + offset, multiply_add(a, xi, others))
    store(y, node * operands.channels + channel, count, out)


@njit(forceinline=True)
def _visit_down(placed, unit, place, channel, slots, operands, state, y):
    r"""h_i = x_i + a_i h_p,  y_i = D u_i + C h_i, for one vector of channels."""
    node, flag, count = placed.order[place], placed.flags[place], unit.last - channel
    scaled, step, out = _load_inputs(operands, node, channel, count)
    own = _first_state(slots[place], operands, channel - unit.first)
    above = _first_state(slots[placed.above[place]], operands, channel - unit.first)
    for s in range(operands.state_size):
        entry, offset = node * operands.state_size + s, s * CHANNELS_PER_BLOCK
        h = multiply(scaled, splat(operands.B[entry]))
        if not flag & ROOT:
            a = form_transition(operands, step, s, channel, count)
            h = multiply_add(a, load_whole(state, above + offset), h)
        out = multiply_add(splat(operands.C[entry]), h, out)
        if not flag & LEAF:
            store_whole(state, own + offset, h)
    store(y, node * operands.channels + channel, count, out)


@njit(inline="always")
def _load_inputs(operands, node, channel, count):
    r"""Δ u and Δ', and D u, with which y begins."""
    row = node * operands.channels + channel
    u, step = load(operands.u, row, count), load(operands.transition_delta, row, count)
    scaled = multiply(load(operands.delta, row, count), u)
    return scaled, step, multiply(load(operands.D, channel, count), u)


@njit(inline="always")
def _first_state(slot, operands, column):
    r"""Where the first state of a column stands in a slot."""
    return slot * operands.state_size * CHANNELS_PER_BLOCK + column
