r"""The scan whose states are normalized over the channels before they are read.

A state's mean and deviation have to be known before it is read, so one state at a time is held for
all channels: those of one bundle after the other, whose rows stay in the cache from one state to
the next. Only where there are too few bundles for the threads do all of them work on one of the
states at a time, of all nodes.
"""

from typing import NamedTuple

import numpy as np
import torch

from groot_graph.checks import DIRECTIONS
from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.cpu.order import PlacedForest
from groot_graph.ops.cpu.simd import (
    add,
    lanes,
    load,
    load_whole,
    multiply,
    multiply_add,
    splat,
    store,
    store_whole,
    subtract,
    subtract_product,
    sum_of_lanes,
    zeros,
)
from groot_graph.ops.cpu.threads import run_in_chunks
from groot_graph.ops.selective_tree_scan.cpu.blocks import (
    add_product,
    discretise,
    discretise_backward,
    skip,
    skip_backward,
)
from groot_graph.ops.selective_tree_scan.cpu.operands import Grads, Operands
from groot_graph.ops.selective_tree_scan.cpu.passes import scan_rows, scan_rows_backward
from groot_graph.ops.selective_tree_scan.cpu.units import (
    in_rows,
    num_blocks,
    num_units,
    rows_of,
    unit_of,
)


class Norm(NamedTuple):
    r"""What a norm over the channels computes with, in the dtype of the states.

    Attributes:
        share: The share of one channel in a mean.
        eps: What is added to the variance.
    """

    share: np.floating
    eps: np.floating


def scan(
    placed: PlacedForest, direction: str, operands: Operands, eps: float, y: np.ndarray
) -> None:
    norm, h, number = _norm(operands, eps), np.empty_like(y), DIRECTIONS.index(direction)
    if _bundles_occupy_threads(placed):
        task = placed, number, operands, norm, h, y
        run_in_chunks(_scan_bundles, placed.num_bundles, *task)
        return
    units, num_nodes = num_units(placed, operands.channels), len(placed.order)
    run_in_chunks(_skip, units, placed, operands, y)
    for s in range(operands.state_size):
        run_in_chunks(_find_states, units, placed, number, s, operands, h)
        run_in_chunks(_read, num_nodes, placed, s, operands, norm, h, y)


def scan_backward(
    placed: PlacedForest,
    direction: str,
    operands: Operands,
    eps: float,
    grad: np.ndarray,
    grads: Grads,
) -> None:
    norm, h, number = _norm(operands, eps), np.empty_like(grad), DIRECTIONS.index(direction)
    if _bundles_occupy_threads(placed):
        task = placed, number, operands, norm, h, grad, grads
        run_in_chunks(_scan_bundles_backward, placed.num_bundles, *task)
        return
    units, num_nodes = num_units(placed, operands.channels), len(placed.order)
    run_in_chunks(_skip_backward, units, placed, operands, grad, grads)
    for s in range(operands.state_size):
        run_in_chunks(_find_states, units, placed, number, s, operands, h)
        run_in_chunks(_read_backward, num_nodes, placed, s, operands, norm, h, grad, grads)
        run_in_chunks(_find_states_backward, units, placed, number, s, operands, h, grads)


def _bundles_occupy_threads(placed: PlacedForest) -> bool:
    r"""Whether no bundle is larger than a thread's share of the nodes and half of it."""
    largest = int(np.diff(placed.bundles).max(initial=0))
    return 2 * largest * torch.get_num_threads() <= 3 * len(placed.order)


def _norm(operands: Operands, eps: float) -> Norm:
    scalar = operands.u.dtype.type
    return Norm(scalar(1 / max(1, operands.channels)), scalar(eps))


@compiled
def _scan_bundles(first_bundle, last_bundle, placed, direction, operands, norm, h, y):
    blocks = num_blocks(operands.channels)
    for bundle in range(first_bundle, last_bundle):
        start, stop = placed.bundles[bundle], placed.bundles[bundle + 1]
        first, last = bundle * blocks, (bundle + 1) * blocks
        _skip(first, last, placed, operands, y)
        for s in range(operands.state_size):
            _find_states(first, last, placed, direction, s, operands, h)
            _read(start, stop, placed, s, operands, norm, h, y)


@compiled
def _scan_bundles_backward(
    first_bundle, last_bundle, placed, direction, operands, norm, h, grad, grads
):
    blocks = num_blocks(operands.channels)
    for bundle in range(first_bundle, last_bundle):
        start, stop = placed.bundles[bundle], placed.bundles[bundle + 1]
        first, last = bundle * blocks, (bundle + 1) * blocks
        _skip_backward(first, last, placed, operands, grad, grads)
        for s in range(operands.state_size):
            _find_states(first, last, placed, direction, s, operands, h)
            _read_backward(start, stop, placed, s, operands, norm, h, grad, grads)
            _find_states_backward(first, last, placed, direction, s, operands, h, grads)


@compiled
def _skip(first_unit, last_unit, placed, operands, y):
    r"""y_i = D u_i."""
    for number in range(first_unit, last_unit):
        skip(placed, unit_of(number, placed, operands.channels), operands, y)


@compiled
def _skip_backward(first_unit, last_unit, placed, operands, grad, grads):
    r"""ū_i = D ȳ_i,  D̄ = Σ ȳ_i u_i."""
    for number in range(first_unit, last_unit):
        skip_backward(placed, unit_of(number, placed, operands.channels), operands, grad, grads)


@compiled
def _find_states(first_unit, last_unit, placed, direction, s, operands, h):
    r"""One of the states, as rows of all channels by place."""
    for number in range(first_unit, last_unit):
        unit = unit_of(number, placed, operands.channels)
        state, transition = rows_of(unit, h), rows_of(unit, h)
        discretise(placed, unit, s, operands, state, transition)
        scan_rows(placed, unit, direction, transition, state)
        for place in range(unit.start, unit.stop):
            row = place * operands.channels
            for channel in range(unit.first, unit.last, lanes(h)):
                value = load_whole(state, in_rows(unit, place, channel))
                store(h, row + channel, unit.last - channel, value)


@compiled
def _find_states_backward(first_unit, last_unit, placed, direction, s, operands, grad_h, grads):
    r"""What h̄ of one of the states gives to the operands."""
    for number in range(first_unit, last_unit):
        unit = unit_of(number, placed, operands.channels)
        state, transition = rows_of(unit, grad_h), rows_of(unit, grad_h)
        grad_x = rows_of(unit, grad_h)
        discretise(placed, unit, s, operands, state, transition)
        for place in range(unit.start, unit.stop):
            row = place * operands.channels
            for channel in range(unit.first, unit.last, lanes(grad_h)):
                value = load(grad_h, row + channel, unit.last - channel)
                store_whole(grad_x, in_rows(unit, place, channel), value)
        scan_rows_backward(placed, unit, direction, transition, state, grad_x)
        slope = transition
        discretise_backward(placed, unit, s, operands, grad_x, slope, grads)


@compiled
def _read(first_place, last_place, placed, s, operands, norm, h, y):
    r"""y_i += C_i ĥ_i."""
    channels, C = operands.channels, operands.C
    for place in range(first_place, last_place):
        node, own = placed.order[place], place * channels
        deviation = _center(h, own, channels, norm)
        weight = splat(C[node * operands.state_size + s] / deviation)
        for channel in range(0, channels, lanes(h)):
            row, count = node * channels + channel, channels - channel
            add_product(y, row, count, weight, load(h, own + channel, count))


@compiled
def _read_backward(first_place, last_place, placed, s, operands, norm, h, grad, grads):
    r"""C̄ = Σ ȳ ĥ, and h̄ = C (ȳ − mean(ȳ) − ĥ mean(ȳ ĥ)) / deviation, in the place of h."""
    channels, C, grad_C = operands.channels, operands.C, grads.C
    for place in range(first_place, last_place):
        node, own = placed.order[place], place * channels
        row, entry = node * channels, node * operands.state_size + s
        deviation = _center(h, own, channels, norm)
        total, along = zeros(h), zeros(h)
        for channel in range(0, channels, lanes(h)):
            count = channels - channel
            grad_y = load(grad, row + channel, count)
            total = add(total, grad_y)
            along = multiply_add(grad_y, load(h, own + channel, count), along)
        grad_C[entry] = sum_of_lanes(along) / deviation
        weight = splat(C[entry] / deviation)
        mean = splat(sum_of_lanes(total) * norm.share)
        slope = splat(grad_C[entry] * norm.share / deviation)
        for channel in range(0, channels, lanes(h)):
            count = channels - channel
            rest = subtract(load(grad, row + channel, count), mean)
            rest = subtract_product(rest, slope, load(h, own + channel, count))
            store(h, own + channel, count, multiply(weight, rest))


@compiled
def _center(h, row, channels, norm):
    r"""Takes the mean off a row; returns its deviation, the root of variance and eps."""
    total = zeros(h)
    for channel in range(0, channels, lanes(h)):
        total = add(total, load(h, row + channel, channels - channel))
    mean = splat(sum_of_lanes(total) * norm.share)
    for channel in range(0, channels, lanes(h)):
        count = channels - channel
        store(h, row + channel, count, subtract(load(h, row + channel, count), mean))
    squares = zeros(h)
    for channel in range(0, channels, lanes(h)):
        value = load(h, row + channel, channels - channel)
        squares = multiply_add(value, value, squares)
    return np.sqrt(sum_of_lanes(squares) * norm.share + norm.eps)
