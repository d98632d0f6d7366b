r"""The two passes over a tree as Numba kernels: rows of channels as SIMD vectors, trees and
channels in parallel.

Rows are held in node order. A pass backwards through the forest's order meets children before their
parents, a pass forwards parents before their children; a row that a pass writes is still in the
cache when it is read again.
"""

import torch
from numba import njit
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.cpu.order import LAST_CHILD, LEAF, ROOT, PlacedForest, placed
from groot_graph.ops.cpu.simd import (
    all_flat,
    lanes,
    load,
    multiply,
    multiply_add,
    store,
    subtract_product,
)
from groot_graph.ops.cpu.threads import run_in_chunks

# Channels that one unit of work takes: whole vectors, and whole cache lines, in float32 and
# float64.
CHANNELS_PER_BLOCK = 256


def tree_scan_cpu(x: Tensor, transition: Tensor, forest: Forest, direction: str) -> Tensor:
    h = torch.empty(x.shape, dtype=x.dtype)
    kernel = {"both": _both, "up": _up, "down": _down}[direction]
    _run(kernel, placed(forest), x, transition, h)
    return h


def tree_scan_backward_cpu(
    grad: Tensor, x: Tensor, transition: Tensor, h: Tensor, forest: Forest, direction: str
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_transition = torch.empty(x.shape, dtype=x.dtype)
    if direction == "both":
        _run(_both_backward, placed(forest), grad, x, transition, h, grad_x, grad_transition)
    else:
        kernel = {"up": _up_backward, "down": _down_backward}[direction]
        _run(kernel, placed(forest), grad, transition, h, grad_x, grad_transition)
    return grad_x, grad_transition


def _run(kernel, placed: PlacedForest, *rows: Tensor) -> None:
    r"""Runs a kernel on every pair of a bundle of trees and a block of channels."""
    channels, num_bundles = rows[0].size(1), len(placed.bundles) - 1
    # One block while there are bundles enough to share out: rows are then read in one piece.
    has_enough_bundles = num_bundles >= 2 * torch.get_num_threads()
    width = CHANNELS_PER_BLOCK if has_enough_bundles else CHANNELS_PER_BLOCK // 4
    num_units = num_bundles * -(-channels // width)
    run_in_chunks(kernel, num_units, placed, channels, width, *all_flat(*rows))


@njit(forceinline=True)
def _unit(placed, channels, width, unit):
    r"""The range of places and the range of channels of one unit of work."""
    num_blocks = -(-channels // width)
    bundle, first = unit // num_blocks, unit % num_blocks * width
    start, stop = placed.bundles[bundle], placed.bundles[bundle + 1]
    return start, stop, first, min(first + width, channels)


@njit(forceinline=True)
def _after_whole_vectors(rows, first, last):
    r"""The channel after the last whole vector: only what follows needs a mask."""
    return last - (last - first) % lanes(rows)


@njit(forceinline=True)
def _copy(source, target, row, first, last):
    def at(channel, count):
        store(target, row + channel, count, load(source, row + channel, count))

    tail = _after_whole_vectors(target, first, last)
    for channel in range(first, tail, lanes(target)):
        at(channel, lanes(target))
    if tail < last:
        at(tail, last - tail)


@njit(forceinline=True)
def _clear(target, row, first, last):
    for channel in range(first, last):
        target[row + channel] = 0


@njit(forceinline=True)
def _add_to_parent(transition, child, base, target, row, above, first, last):
    r"""target_p = base_p + a_i child_i."""

    def at(channel, count):
        own, parent = row + channel, above + channel
        a, value = load(transition, own, count), load(child, own, count)
        store(target, parent, count, multiply_add(a, value, load(base, parent, count)))

    tail = _after_whole_vectors(target, first, last)
    for channel in range(first, tail, lanes(target)):
        at(channel, lanes(target))
    if tail < last:
        at(tail, last - tail)


@njit(forceinline=True)
def _pass_up(flag, x, transition, xi, row, above, first, last):
    r"""ξ_p += a_i ξ_i, where a leaf's ξ is its x, and a parent's begins as its x."""
    if flag & LEAF:
        if flag & LAST_CHILD:
            _add_to_parent(transition, x, x, xi, row, above, first, last)
        else:
            _add_to_parent(transition, x, xi, xi, row, above, first, last)
    elif flag & LAST_CHILD:
        _add_to_parent(transition, xi, x, xi, row, above, first, last)
    else:
        _add_to_parent(transition, xi, xi, xi, row, above, first, last)


@njit(forceinline=True)
def _take_from_parent(xi, transition, h, row, above, first, last):
    r"""h_i = ξ_i + a_i (h_p − a_i ξ_i)."""

    def at(channel, count):
        own, parent = row + channel, above + channel
        a, value = load(transition, own, count), load(xi, own, count)
        outside = subtract_product(load(h, parent, count), a, value)
        store(h, own, count, multiply_add(a, outside, value))

    tail = _after_whole_vectors(h, first, last)
    for channel in range(first, tail, lanes(h)):
        at(channel, lanes(h))
    if tail < last:
        at(tail, last - tail)


@compiled
def _both(first_unit, last_unit, placed, channels, width, x, transition, h):
    order, places_above, flags, _ = placed
    for unit in range(first_unit, last_unit):
        start, stop, first, last = _unit(placed, channels, width, unit)
        for place in range(stop - 1, start - 1, -1):
            node, flag = order[place], flags[place]
            if not flag & ROOT:
                row, above = node * channels, order[places_above[place]] * channels
                _pass_up(flag, x, transition, h, row, above, first, last)
        for place in range(start, stop):
            node, flag = order[place], flags[place]
            row, above = node * channels, order[places_above[place]] * channels
            if flag & ROOT:
                if flag & LEAF:
                    _copy(x, h, row, first, last)
            elif flag & LEAF:
                _take_from_parent(x, transition, h, row, above, first, last)
            else:
                _take_from_parent(h, transition, h, row, above, first, last)


@compiled
def _up(first_unit, last_unit, placed, channels, width, x, transition, xi):
    order, places_above, flags, _ = placed
    for unit in range(first_unit, last_unit):
        start, stop, first, last = _unit(placed, channels, width, unit)
        for place in range(stop - 1, start - 1, -1):
            node, flag = order[place], flags[place]
            row, above = node * channels, order[places_above[place]] * channels
            if flag & LEAF:
                _copy(x, xi, row, first, last)
            if not flag & ROOT:
                _pass_up(flag, x, transition, xi, row, above, first, last)


@compiled
def _down(first_unit, last_unit, placed, channels, width, x, transition, h):
    order, places_above, flags, _ = placed
    for unit in range(first_unit, last_unit):
        start, stop, first, last = _unit(placed, channels, width, unit)
        for place in range(start, stop):
            node = order[place]
            row, above = node * channels, order[places_above[place]] * channels
            if flags[place] & ROOT:
                _copy(x, h, row, first, last)
            else:
                _add_from_parent(x, transition, h, row, above, first, last)


@njit(forceinline=True)
def _add_from_parent(x, transition, h, row, above, first, last):
    r"""h_i = x_i + a_i h_p."""

    def at(channel, count):
        own, parent = row + channel, above + channel
        a, value = load(transition, own, count), load(x, own, count)
        store(h, own, count, multiply_add(a, load(h, parent, count), value))

    tail = _after_whole_vectors(h, first, last)
    for channel in range(first, tail, lanes(h)):
        at(channel, lanes(h))
    if tail < last:
        at(tail, last - tail)


@njit(forceinline=True)
def _multiply_rows(left, left_row, right, right_row, target, row, first, last):
    def at(channel, count):
        left_value = load(left, left_row + channel, count)
        right_value = load(right, right_row + channel, count)
        store(target, row + channel, count, multiply(left_value, right_value))

    tail = _after_whole_vectors(target, first, last)
    for channel in range(first, tail, lanes(target)):
        at(channel, lanes(target))
    if tail < last:
        at(tail, last - tail)


@compiled
def _up_backward(
    first_unit, last_unit, placed, channels, width, grad, transition, xi, grad_x, grad_transition
):
    r"""x̄_i = ḡ_i + a_i x̄_p,  ā_i = x̄_p ξ_i."""
    order, places_above, flags, _ = placed
    for unit in range(first_unit, last_unit):
        start, stop, first, last = _unit(placed, channels, width, unit)
        for place in range(start, stop):
            node = order[place]
            row, above = node * channels, order[places_above[place]] * channels
            if flags[place] & ROOT:
                _copy(grad, grad_x, row, first, last)
                _clear(grad_transition, row, first, last)
            else:
                _add_from_parent(grad, transition, grad_x, row, above, first, last)
                _multiply_rows(grad_x, above, xi, row, grad_transition, row, first, last)


@compiled
def _down_backward(
    first_unit, last_unit, placed, channels, width, grad, transition, h, grad_x, grad_transition
):
    r"""x̄_i = ḡ_i + Σ a_c x̄_c,  ā_i = x̄_i h_p."""
    order, places_above, flags, _ = placed
    for unit in range(first_unit, last_unit):
        start, stop, first, last = _unit(placed, channels, width, unit)
        for place in range(stop - 1, start - 1, -1):
            node, flag = order[place], flags[place]
            row, above = node * channels, order[places_above[place]] * channels
            if flag & LEAF:
                _copy(grad, grad_x, row, first, last)
            if flag & ROOT:
                _clear(grad_transition, row, first, last)
            else:
                _pass_up(flag, grad, transition, grad_x, row, above, first, last)
                _multiply_rows(grad_x, row, h, above, grad_transition, row, first, last)


@compiled
def _both_backward(
    first_unit,
    last_unit,
    placed,
    channels,
    width,
    grad,
    x,
    transition,
    h,
    grad_x,
    grad_transition,
):
    r"""γ = up(ḡ) and ξ = up(x), held in the outputs until the pass down turns them into Γ and ā."""
    gamma, xi = grad_x, grad_transition
    order, places_above, flags, _ = placed
    for unit in range(first_unit, last_unit):
        start, stop, first, last = _unit(placed, channels, width, unit)
        for place in range(stop - 1, start - 1, -1):
            node, flag = order[place], flags[place]
            if not flag & ROOT:
                row, above = node * channels, order[places_above[place]] * channels
                _pass_both_up(flag, x, xi, grad, gamma, transition, row, above, first, last)
        for place in range(start, stop):
            node, flag = order[place], flags[place]
            row, above = node * channels, order[places_above[place]] * channels
            if flag & ROOT:
                if flag & LEAF:
                    _copy(grad, grad_x, row, first, last)
                _clear(grad_transition, row, first, last)
            elif flag & LEAF:
                _take_gradients(
                    x, grad, transition, h, grad_x, grad_transition, row, above, first, last
                )
            else:
                _take_gradients(
                    xi, gamma, transition, h, grad_x, grad_transition, row, above, first, last
                )


@njit(forceinline=True)
def _pass_both_up(flag, x, xi, grad, gamma, transition, row, above, first, last):
    r"""ξ_p += a_i ξ_i and γ_p += a_i γ_i, where a leaf's are its x and ḡ."""
    if flag & LEAF:
        if flag & LAST_CHILD:
            _add_both(transition, x, grad, x, grad, xi, gamma, row, above, first, last)
        else:
            _add_both(transition, x, grad, xi, gamma, xi, gamma, row, above, first, last)
    elif flag & LAST_CHILD:
        _add_both(transition, xi, gamma, x, grad, xi, gamma, row, above, first, last)
    else:
        _add_both(transition, xi, gamma, xi, gamma, xi, gamma, row, above, first, last)


@njit(forceinline=True)
def _add_both(transition, child, grad_child, base, grad_base, xi, gamma, row, above, first, last):
    def at(channel, count):
        own, parent = row + channel, above + channel
        a = load(transition, own, count)
        value = multiply_add(a, load(child, own, count), load(base, parent, count))
        grad_value = multiply_add(a, load(grad_child, own, count), load(grad_base, parent, count))
        store(xi, parent, count, value)
        store(gamma, parent, count, grad_value)

    tail = _after_whole_vectors(xi, first, last)
    for channel in range(first, tail, lanes(xi)):
        at(channel, lanes(xi))
    if tail < last:
        at(tail, last - tail)


@njit(forceinline=True)
def _take_gradients(xi, gamma, transition, h, grad_x, grad_transition, row, above, first, last):
    r"""ā_i = γ_i (h_p − a_i ξ_i) + ξ_i (Γ_p − a_i γ_i),  Γ_i = γ_i + a_i (Γ_p − a_i γ_i)."""

    def at(channel, count):
        own, parent = row + channel, above + channel
        a = load(transition, own, count)
        value, grad_value = load(xi, own, count), load(gamma, own, count)
        outside = subtract_product(load(h, parent, count), a, value)
        grad_outside = subtract_product(load(grad_x, parent, count), a, grad_value)
        slope = multiply_add(grad_value, outside, multiply(value, grad_outside))
        store(grad_transition, own, count, slope)
        store(grad_x, own, count, multiply_add(a, grad_outside, grad_value))

    tail = _after_whole_vectors(grad_x, first, last)
    for channel in range(first, tail, lanes(grad_x)):
        at(channel, lanes(grad_x))
    if tail < last:
        at(tail, last - tail)
