r"""The scan over the trees of one unit, whose inputs and transitions are held as rows.

Each kernel turns rows of one quantity into those of another where they stand.
"""

from numba import njit

from groot_graph.checks import DIRECTIONS
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.cpu.order import ROOT
from groot_graph.ops.cpu.simd import (
    lanes,
    load_whole,
    multiply,
    multiply_add,
    store_whole,
    subtract_product,
    zeros,
)
from groot_graph.ops.selective_tree_scan.cpu.units import CHANNELS_PER_BLOCK

# What a kernel is told of the direction: its number among DIRECTIONS.
BOTH, UP, DOWN = map(DIRECTIONS.index, ("both", "up", "down"))


@compiled
def scan_rows(placed, unit, direction, transition, rows):
    r"""From x to h."""
    if direction == DOWN:
        _sum_ancestors(placed, unit, transition, rows)
        return
    _sum_subtrees(placed, unit, transition, rows)
    if direction == BOTH:
        _add_rest_of_tree(placed, unit, transition, rows)


@compiled
def scan_rows_backward(placed, unit, direction, transition, rows, grad_rows):
    r"""From x and h̄ to h and x̄; leaves a ā, the gradient of log(a), where the transitions stood."""
    if direction == UP:
        _sum_subtrees(placed, unit, transition, rows)
        _sum_ancestors(placed, unit, transition, grad_rows)
        _to_slopes(placed, unit, transition, rows, grad_rows)
    elif direction == DOWN:
        _sum_ancestors(placed, unit, transition, rows)
        _sum_subtrees(placed, unit, transition, grad_rows)
        _to_slopes(placed, unit, transition, grad_rows, rows)
    else:
        _sum_subtrees(placed, unit, transition, rows)
        _sum_subtrees(placed, unit, transition, grad_rows)
        _add_rest_of_tree_backward(placed, unit, transition, rows, grad_rows)


@njit(forceinline=True)
def _own_and_above(placed, unit, place):
    r"""Where the rows of a place and of its parent's begin."""
    above = placed.above[place] - unit.start
    return (place - unit.start) * CHANNELS_PER_BLOCK, above * CHANNELS_PER_BLOCK


@compiled
def _sum_subtrees(placed, unit, transition, rows):
    r"""ξ_p += a_i ξ_i."""
    for place in range(unit.stop - 1, unit.start - 1, -1):
        if placed.flags[place] & ROOT:
            continue
        own, above = _own_and_above(placed, unit, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            a, value = load_whole(transition, own + column), load_whole(rows, own + column)
            others = load_whole(rows, above + column)
            store_whole(rows, above + column, multiply_add(a, value, others))


@compiled
def _sum_ancestors(placed, unit, transition, rows):
    r"""h_i = x_i + a_i h_p."""
    for place in range(unit.start, unit.stop):
        if placed.flags[place] & ROOT:
            continue
        own, above = _own_and_above(placed, unit, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            a, value = load_whole(transition, own + column), load_whole(rows, own + column)
            h = multiply_add(a, load_whole(rows, above + column), value)
            store_whole(rows, own + column, h)


@compiled
def _add_rest_of_tree(placed, unit, transition, rows):
    r"""h_i = ξ_i + a_i (h_p − a_i ξ_i), from sums over subtrees to sums over trees."""
    for place in range(unit.start, unit.stop):
        if placed.flags[place] & ROOT:
            continue
        own, above = _own_and_above(placed, unit, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            a, xi = load_whole(transition, own + column), load_whole(rows, own + column)
            outside = subtract_product(load_whole(rows, above + column), a, xi)
            store_whole(rows, own + column, multiply_add(a, outside, xi))


@compiled
def _add_rest_of_tree_backward(placed, unit, transition, rows, grad_rows):
    r"""From ξ to h and from γ to Γ, sums over trees, and from a_i to
    a_i ā_i = a_i (γ_i (h_p − a_i ξ_i) + ξ_i (Γ_p − a_i γ_i)).
    """
    for place in range(unit.start, unit.stop):
        if placed.flags[place] & ROOT:
            _clear(transition, unit, place)
            continue
        own, above = _own_and_above(placed, unit, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            a = load_whole(transition, own + column)
            xi, gamma = load_whole(rows, own + column), load_whole(grad_rows, own + column)
            outside = subtract_product(load_whole(rows, above + column), a, xi)
            grad_outside = subtract_product(load_whole(grad_rows, above + column), a, gamma)
            grad_a = multiply_add(gamma, outside, multiply(xi, grad_outside))
            store_whole(rows, own + column, multiply_add(a, outside, xi))
            store_whole(grad_rows, own + column, multiply_add(a, grad_outside, gamma))
            store_whole(transition, own + column, multiply(a, grad_a))


@compiled
def _to_slopes(placed, unit, transition, passed_up, passed_down):
    r"""a_i ā_i = a_i ξ_i h_p, of what is passed up from a node and down from its parent."""
    for place in range(unit.start, unit.stop):
        if placed.flags[place] & ROOT:
            _clear(transition, unit, place)
            continue
        own, above = _own_and_above(placed, unit, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(transition)):
            from_node = load_whole(passed_up, own + column)
            grad_a = multiply(from_node, load_whole(passed_down, above + column))
            slope = multiply(load_whole(transition, own + column), grad_a)
            store_whole(transition, own + column, slope)


@njit(forceinline=True)
def _clear(rows, unit, place):
    own = (place - unit.start) * CHANNELS_PER_BLOCK
    for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
        store_whole(rows, own + column, zeros(rows))
