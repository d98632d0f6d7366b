r"""The selective scan as Numba kernels that form transitions and states on the fly, a block of
channels at a time.

Upward and downward, a node's state lives in a slot only until the last of its children is done with
it: in the order of :func:`groot_graph.root_forest` that is O(log num_nodes) slots, and one for a
chain. In both directions, and for the gradients, the states of one segment of trees are held for
one block of channels and one of the `state_size` states at a time.

States that are normalized are held one at a time for all channels, since their mean and deviation
have to be known before any of them is read: those of one segment of trees after the other, whose
rows stay in the cache from one state to the next. Only where there are too few segments for the
threads do all of them work on one of the states at a time, of all nodes.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.cpu.order import LAST_CHILD, LEAF, ROOT, PlacedForest, placed
from groot_graph.ops.cpu.simd import (
    exponential,
    flat,
    lanes,
    load,
    load_whole,
    multiply,
    multiply_add,
    prefetch,
    splat,
    store,
    store_whole,
    subtract_product,
    sum_of_lanes,
    zeros,
)
from groot_graph.ops.cpu.threads import run_in_chunks

# One vector in float32, two in float64.
CHANNELS_PER_BLOCK = 32

# A node's rows are asked for while the rows this many places before it are worked on: nodes follow
# one another in no pattern that a processor foresees.
PREFETCH_DISTANCE = 2

UP, DOWN, BOTH = range(3)
DIRECTIONS = {"up": UP, "down": DOWN, "both": BOTH}


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
    walked = placed(forest)
    operands = _flat_operands(u, delta, A, B, C, D, transition_delta)
    sizes = u.size(1), A.size(1)
    y = torch.empty(u.shape, dtype=u.dtype)
    num_units = walked.num_bundles * _num_blocks(u.size(1))
    if state_norm_eps is not None:
        task = walked, DIRECTIONS[direction], sizes, operands
        _normalized(*task, flat(y), _norm_scale(y, state_norm_eps))
    elif direction == "both":
        run_in_chunks(_both, num_units, walked, sizes, operands, flat(y))
    else:
        kernel = _up if direction == "up" else _down
        slots = np.full(u.size(0), -1, walked.above.dtype)
        num_slots = _assign_slots(walked, slots)
        run_in_chunks(kernel, num_units, walked, slots, num_slots, sizes, operands, flat(y))
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
    walked = placed(forest)
    operands = _flat_operands(u, delta, A, B, C, D, transition_delta)
    (num_nodes, channels), state_size = u.shape, A.size(1)
    num_blocks = _num_blocks(channels)
    grad_u, grad_delta, grad_step = (torch.zeros(u.shape, dtype=u.dtype) for _ in range(3))
    # Sums over nodes are taken per segment and sums over channels per block, then added up in a
    # fixed sequence.
    grad_A = torch.zeros(walked.num_bundles, state_size, channels, dtype=u.dtype)
    grad_D = torch.zeros(walked.num_bundles, channels, dtype=u.dtype)
    grad_B, grad_C = (
        torch.zeros(max(1, num_blocks), num_nodes, state_size, dtype=u.dtype) for _ in range(2)
    )
    grads = (grad_u, grad_delta, grad_step, grad_A, grad_B, grad_C, grad_D)
    task = walked, DIRECTIONS[direction], (channels, state_size), operands
    results = flat(grad), tuple(flat(tensor) for tensor in grads)
    if state_norm_eps is None:
        run_in_chunks(_backward, walked.num_bundles * num_blocks, *task, *results)
    else:
        _normalized_backward(*task, *results, _norm_scale(u, state_norm_eps))
    if transition_delta is None:
        grad_delta += grad_step
    grad_A, grad_B, grad_C, grad_D = (
        torch.from_numpy(tensor.numpy().sum(axis=0)) for tensor in (grad_A, grad_B, grad_C, grad_D)
    )
    return grad_u, grad_delta, grad_A.t().contiguous(), grad_B, grad_C, grad_D, grad_step


def _normalized(walked, direction, sizes, operands, y, scale) -> None:
    h, num_nodes = np.empty_like(y), len(walked.order)
    if _occupies_threads(walked):
        whole = walked, direction, sizes, operands, h, scale, y
        run_in_chunks(_normalized_segments, walked.num_bundles, *whole)
        return
    num_units = walked.num_bundles * _num_blocks(sizes[0])
    run_in_chunks(_skips, num_units, walked, sizes, operands, y)
    for s in range(sizes[1]):
        task = sizes, operands, s, h
        run_in_chunks(_states, num_units, walked, direction, *task)
        run_in_chunks(_read_normalized, num_nodes, walked, *task, scale, y)


def _normalized_backward(walked, direction, sizes, operands, grad, grads, scale) -> None:
    h, num_nodes = np.empty_like(grad), len(walked.order)
    if _occupies_threads(walked):
        whole = walked, direction, sizes, operands, h, scale, grad, grads
        run_in_chunks(_normalized_segments_backward, walked.num_bundles, *whole)
        return
    num_units = walked.num_bundles * _num_blocks(sizes[0])
    run_in_chunks(_skips_backward, num_units, walked, sizes, operands, grad, grads)
    for s in range(sizes[1]):
        task = sizes, operands, s, h
        run_in_chunks(_states, num_units, walked, direction, *task)
        run_in_chunks(_read_normalized_backward, num_nodes, walked, *task, scale, grad, grads)
        run_in_chunks(_states_backward, num_units, walked, direction, *task, grads)


def _occupies_threads(walked: PlacedForest) -> bool:
    r"""Whether no segment is larger than a thread's share of the nodes and half of it."""
    largest = int(np.diff(walked.bundles).max(initial=0))
    return 2 * largest * torch.get_num_threads() <= 3 * len(walked.order)


def _norm_scale(x: Tensor, eps: float) -> np.ndarray:
    r"""A one, the share of a channel in a mean, and the `eps`, in the dtype of `x`."""
    return np.array([1, 1 / max(1, x.size(1)), eps], flat(x).dtype)


@njit(cache=True, nogil=True)
def _num_blocks(channels):
    return -(-channels // CHANNELS_PER_BLOCK)


def _flat_operands(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    transition_delta: Tensor | None,
) -> tuple[np.ndarray, ...]:
    step = delta if transition_delta is None else transition_delta
    D = torch.zeros(u.size(1), dtype=u.dtype) if D is None else D
    return tuple(flat(operand) for operand in (u, delta, step, A.t(), B, C, D))


@njit(cache=True, nogil=True)
def _assign_slots(forest, slots):
    r"""Gives every parent a slot from its own place to its last child's; returns how many."""
    free = np.empty(len(slots), slots.dtype)
    num_free = num_slots = 0
    for place in range(len(slots) - 1, -1, -1):
        if not forest.flags[place] & LEAF:
            free[num_free] = slots[place]
            num_free += 1
        if forest.flags[place] & LAST_CHILD:
            if num_free > 0:
                num_free -= 1
                slots[forest.above[place]] = free[num_free]
            else:
                slots[forest.above[place]] = num_slots
                num_slots += 1
    return num_slots


@njit(forceinline=True)
def _unit(forest, channels, unit):
    r"""The ranges of places and of channels, the segment and the block of one unit of work."""
    num_blocks = _num_blocks(channels)
    segment, block = unit // num_blocks, unit % num_blocks
    first = block * CHANNELS_PER_BLOCK
    last = min(first + CHANNELS_PER_BLOCK, channels)
    return forest.bundles[segment], forest.bundles[segment + 1], first, last, segment, block


@njit(forceinline=True)
def _prefetch_rows(forest, place, first, channels, u, delta, step, y):
    row = forest.order[place] * channels + first
    for channel in range(0, CHANNELS_PER_BLOCK, lanes(u)):
        prefetch(u, row + channel)
        prefetch(delta, row + channel)
        prefetch(step, row + channel)
        prefetch(y, row + channel)


@njit(cache=True, nogil=True)
def _up(first_unit, last_unit, forest, slots, num_slots, sizes, operands, y):
    channels, state_size = sizes
    u, delta, step, A, B, C, D = operands
    state = np.empty(num_slots * state_size * CHANNELS_PER_BLOCK, u.dtype)
    for unit in range(first_unit, last_unit):
        start, stop, first, last, _, _ = _unit(forest, channels, unit)
        for place in range(stop - 1, start - 1, -1):
            node, flag = forest.order[place], forest.flags[place]
            ahead = max(place - PREFETCH_DISTANCE, start)
            _prefetch_rows(forest, ahead, first, channels, u, delta, step, y)
            own = slots[place] * state_size * CHANNELS_PER_BLOCK
            above = slots[forest.above[place]] * state_size * CHANNELS_PER_BLOCK
            for channel in range(first, last, lanes(u)):
                count, row = last - channel, node * channels + channel
                value = load(u, row, count)
                scaled = multiply(load(delta, row, count), value)
                span = load(step, row, count)
                out = multiply(load(D, channel, count), value)
                column = channel - first
                for s in range(state_size):
                    offset = s * CHANNELS_PER_BLOCK + column
                    xi = zeros(state) if flag & LEAF else load_whole(state, own + offset)
                    xi = multiply_add(scaled, splat(B[node * state_size + s]), xi)
                    out = multiply_add(splat(C[node * state_size + s]), xi, out)
                    if flag & ROOT:
                        continue
                    a = exponential(multiply(span, load(A, s * channels + channel, count)))
                    others = (
                        zeros(state) if flag & LAST_CHILD else load_whole(state, above + offset)
                    )
                    store_whole(state, above + offset, multiply_add(a, xi, others))
                store(y, row, count, out)


@njit(cache=True, nogil=True)
def _down(first_unit, last_unit, forest, slots, num_slots, sizes, operands, y):
    channels, state_size = sizes
    u, delta, step, A, B, C, D = operands
    state = np.empty(num_slots * state_size * CHANNELS_PER_BLOCK, u.dtype)
    for unit in range(first_unit, last_unit):
        start, stop, first, last, _, _ = _unit(forest, channels, unit)
        for place in range(start, stop):
            node, flag = forest.order[place], forest.flags[place]
            ahead = min(place + PREFETCH_DISTANCE, stop - 1)
            _prefetch_rows(forest, ahead, first, channels, u, delta, step, y)
            own = slots[place] * state_size * CHANNELS_PER_BLOCK
            above = slots[forest.above[place]] * state_size * CHANNELS_PER_BLOCK
            for channel in range(first, last, lanes(u)):
                count, row = last - channel, node * channels + channel
                value = load(u, row, count)
                scaled = multiply(load(delta, row, count), value)
                span = load(step, row, count)
                out = multiply(load(D, channel, count), value)
                column = channel - first
                for s in range(state_size):
                    offset = s * CHANNELS_PER_BLOCK + column
                    h = multiply(scaled, splat(B[node * state_size + s]))
                    if not flag & ROOT:
                        a = exponential(multiply(span, load(A, s * channels + channel, count)))
                        h = multiply_add(a, load_whole(state, above + offset), h)
                    out = multiply_add(splat(C[node * state_size + s]), h, out)
                    if not flag & LEAF:
                        store_whole(state, own + offset, h)
                store(y, row, count, out)


@njit(cache=True, nogil=True)
def _both(first_unit, last_unit, forest, sizes, operands, y):
    channels, state_size = sizes
    u, C = operands[0], operands[5]
    for unit in range(first_unit, last_unit):
        start, stop, first, last, _, _ = _unit(forest, channels, unit)
        state = np.empty((stop - start) * CHANNELS_PER_BLOCK, u.dtype)
        transition = np.empty_like(state)
        _skip(forest, start, stop, first, last, channels, operands, y)
        for s in range(state_size):
            _discretise(forest, start, stop, first, last, sizes, operands, s, state, transition)
            _scan_rows(forest, start, stop, BOTH, transition, state)
            for place in range(start, stop):
                node, own = forest.order[place], (place - start) * CHANNELS_PER_BLOCK - first
                for channel in range(first, last, lanes(u)):
                    h, weight = load_whole(state, own + channel), splat(C[node * state_size + s])
                    _add_product(y, node * channels + channel, last - channel, weight, h)


@njit(cache=True, nogil=True)
def _backward(first_unit, last_unit, forest, direction, sizes, operands, grad, grads):
    channels, state_size = sizes
    u, C = operands[0], operands[5]
    grad_B, grad_C = grads[4], grads[5]
    for unit in range(first_unit, last_unit):
        start, stop, first, last, segment, block = _unit(forest, channels, unit)
        state = np.empty((stop - start) * CHANNELS_PER_BLOCK, u.dtype)
        transition, grad_x = np.empty_like(state), np.empty_like(state)
        _skip_backward(forest, start, stop, first, last, segment, channels, operands, grad, grads)
        for s in range(state_size):
            _discretise(forest, start, stop, first, last, sizes, operands, s, state, transition)
            for place in range(start, stop):
                node, own = forest.order[place], (place - start) * CHANNELS_PER_BLOCK - first
                for channel in range(first, last, lanes(u)):
                    grad_y = load(grad, node * channels + channel, last - channel)
                    grad_h = multiply(grad_y, splat(C[node * state_size + s]))
                    store_whole(grad_x, own + channel, grad_h)
            _scan_rows_backward(forest, start, stop, direction, transition, state, grad_x)
            slope = transition
            for place in range(start, stop):
                node, own = forest.order[place], (place - start) * CHANNELS_PER_BLOCK - first
                through_C = zeros(u)
                for channel in range(first, last, lanes(u)):
                    grad_y = load(grad, node * channels + channel, last - channel)
                    through_C = multiply_add(grad_y, load_whole(state, own + channel), through_C)
                entry = (block * len(forest.order) + node) * state_size + s
                grad_C[entry] = sum_of_lanes(through_C)
                grad_B[entry] = _gather_row(
                    node, s, own, first, last, segment, sizes, operands, grads, grad_x, slope
                )


@njit(cache=True, nogil=True)
def _normalized_segments(
    first_segment, last_segment, forest, direction, sizes, operands, h, scale, y
):
    num_blocks = _num_blocks(sizes[0])
    for segment in range(first_segment, last_segment):
        start, stop = forest.bundles[segment], forest.bundles[segment + 1]
        first, last = segment * num_blocks, (segment + 1) * num_blocks
        _skips(first, last, forest, sizes, operands, y)
        for s in range(sizes[1]):
            _states(first, last, forest, direction, sizes, operands, s, h)
            _read_normalized(start, stop, forest, sizes, operands, s, h, scale, y)


@njit(cache=True, nogil=True)
def _normalized_segments_backward(
    first_segment, last_segment, forest, direction, sizes, operands, h, scale, grad, grads
):
    num_blocks = _num_blocks(sizes[0])
    for segment in range(first_segment, last_segment):
        start, stop = forest.bundles[segment], forest.bundles[segment + 1]
        first, last = segment * num_blocks, (segment + 1) * num_blocks
        _skips_backward(first, last, forest, sizes, operands, grad, grads)
        for s in range(sizes[1]):
            _states(first, last, forest, direction, sizes, operands, s, h)
            _read_normalized_backward(
                start, stop, forest, sizes, operands, s, h, scale, grad, grads
            )
            _states_backward(first, last, forest, direction, sizes, operands, s, h, grads)


@njit(cache=True, nogil=True)
def _states(first_unit, last_unit, forest, direction, sizes, operands, s, h):
    r"""One of the states, of every place and channel."""
    channels = sizes[0]
    for unit in range(first_unit, last_unit):
        start, stop, first, last, _, _ = _unit(forest, channels, unit)
        state = np.empty((stop - start) * CHANNELS_PER_BLOCK, h.dtype)
        transition = np.empty_like(state)
        _discretise(forest, start, stop, first, last, sizes, operands, s, state, transition)
        _scan_rows(forest, start, stop, direction, transition, state)
        for place in range(start, stop):
            row, own = place * channels, (place - start) * CHANNELS_PER_BLOCK - first
            for channel in range(first, last, lanes(h)):
                store(h, row + channel, last - channel, load_whole(state, own + channel))


@njit(cache=True, nogil=True)
def _skip(forest, start, stop, first, last, channels, operands, y):
    r"""Begins y with D u."""
    u, D = operands[0], operands[6]
    for place in range(start, stop):
        row = forest.order[place] * channels
        for channel in range(first, last, lanes(u)):
            count = last - channel
            value = load(u, row + channel, count)
            store(y, row + channel, count, multiply(load(D, channel, count), value))


@njit(cache=True, nogil=True)
def _skips(first_unit, last_unit, forest, sizes, operands, y):
    r"""That of every unit."""
    channels = sizes[0]
    for unit in range(first_unit, last_unit):
        start, stop, first, last, _, _ = _unit(forest, channels, unit)
        _skip(forest, start, stop, first, last, channels, operands, y)


@njit(cache=True, nogil=True)
def _read_normalized(first_place, last_place, forest, sizes, operands, s, h, scale, y):
    r"""Adds C ĥ."""
    channels, state_size = sizes
    C = operands[5]
    for place in range(first_place, last_place):
        node, own = forest.order[place], place * channels
        row = node * channels
        deviation = _center(h, own, channels, scale)
        weight = splat(C[node * state_size + s] / deviation)
        for channel in range(0, channels, lanes(h)):
            count = channels - channel
            _add_product(y, row + channel, count, weight, load(h, own + channel, count))


@njit(cache=True, nogil=True)
def _read_normalized_backward(
    first_place, last_place, forest, sizes, operands, s, h, scale, grad, grads
):
    r"""C̄ = Σ ȳ ĥ, and h̄ = C (ȳ − mean(ȳ) − ĥ mean(ȳ ĥ)) / deviation, in the place of h."""
    channels, state_size = sizes
    C, grad_C = operands[5], grads[5]
    for place in range(first_place, last_place):
        node, own = forest.order[place], place * channels
        row = node * channels
        deviation = _center(h, own, channels, scale)
        total, along = zeros(h), zeros(h)
        for channel in range(0, channels, lanes(h)):
            grad_y = load(grad, row + channel, channels - channel)
            total = multiply_add(grad_y, splat(scale[0]), total)
            along = multiply_add(grad_y, load(h, own + channel, channels - channel), along)
        through_C = sum_of_lanes(along) / deviation
        grad_C[node * state_size + s] = through_C
        weight = splat(C[node * state_size + s] / deviation)
        mean = splat(sum_of_lanes(total) * scale[1])
        slope = splat(through_C * scale[1] / deviation)
        for channel in range(0, channels, lanes(h)):
            count = channels - channel
            rest = subtract_product(load(grad, row + channel, count), mean, splat(scale[0]))
            rest = subtract_product(rest, slope, load(h, own + channel, count))
            store(h, own + channel, count, multiply(weight, rest))


@njit(cache=True, nogil=True)
def _center(h, row, channels, scale):
    r"""Takes the mean off a row; returns its deviation, the root of variance and eps."""
    one, share, eps = splat(scale[0]), scale[1], scale[2]
    total = zeros(h)
    for channel in range(0, channels, lanes(h)):
        total = multiply_add(load(h, row + channel, channels - channel), one, total)
    mean = splat(sum_of_lanes(total) * share)
    for channel in range(0, channels, lanes(h)):
        count = channels - channel
        centered = subtract_product(load(h, row + channel, count), mean, one)
        store(h, row + channel, count, centered)
    squares = zeros(h)
    for channel in range(0, channels, lanes(h)):
        value = load(h, row + channel, channels - channel)
        squares = multiply_add(value, value, squares)
    return np.sqrt(sum_of_lanes(squares) * share + eps)


@njit(cache=True, nogil=True)
def _states_backward(first_unit, last_unit, forest, direction, sizes, operands, s, grad_h, grads):
    r"""What h̄ of one of the states gives to the operands."""
    channels, state_size = sizes
    grad_B = grads[4]
    for unit in range(first_unit, last_unit):
        start, stop, first, last, segment, block = _unit(forest, channels, unit)
        state = np.empty((stop - start) * CHANNELS_PER_BLOCK, grad_h.dtype)
        transition, grad_x = np.empty_like(state), np.empty_like(state)
        _discretise(forest, start, stop, first, last, sizes, operands, s, state, transition)
        for place in range(start, stop):
            row, own = place * channels, (place - start) * CHANNELS_PER_BLOCK - first
            for channel in range(first, last, lanes(grad_h)):
                value = load(grad_h, row + channel, last - channel)
                store_whole(grad_x, own + channel, value)
        _scan_rows_backward(forest, start, stop, direction, transition, state, grad_x)
        slope = transition
        for place in range(start, stop):
            node, own = forest.order[place], (place - start) * CHANNELS_PER_BLOCK - first
            entry = (block * len(forest.order) + node) * state_size + s
            grad_B[entry] = _gather_row(
                node, s, own, first, last, segment, sizes, operands, grads, grad_x, slope
            )


@njit(forceinline=True)
def _add_product(target, offset, count, left, right):
    store(target, offset, count, multiply_add(left, right, load(target, offset, count)))


@njit(cache=True, nogil=True)
def _discretise(forest, start, stop, first, last, sizes, operands, s, state, transition):
    r"""Rows of state inputs Δ B u and of transitions exp(Δ' A), for one of the states."""
    channels, state_size = sizes
    u, delta, step, A, B, _, _ = operands
    for place in range(start, stop):
        node, own = forest.order[place], (place - start) * CHANNELS_PER_BLOCK - first
        for channel in range(first, last, lanes(u)):
            row, count = node * channels + channel, last - channel
            scaled = multiply(load(delta, row, count), load(u, row, count))
            store_whole(state, own + channel, multiply(scaled, splat(B[node * state_size + s])))
            exponent = multiply(load(step, row, count), load(A, s * channels + channel, count))
            store_whole(transition, own + channel, exponential(exponent))


@njit(forceinline=True)
def _own_and_above(forest, start, place):
    r"""Where the rows of a place and of that above it begin."""
    above = forest.above[place] - start
    return (place - start) * CHANNELS_PER_BLOCK, above * CHANNELS_PER_BLOCK


@njit(cache=True, nogil=True)
def _walk_up(forest, start, stop, transition, rows):
    r"""ξ_p += a_i ξ_i."""
    for place in range(stop - 1, start - 1, -1):
        if forest.flags[place] & ROOT:
            continue
        own, above = _own_and_above(forest, start, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            a, value = load_whole(transition, own + column), load_whole(rows, own + column)
            others = load_whole(rows, above + column)
            store_whole(rows, above + column, multiply_add(a, value, others))


@njit(cache=True, nogil=True)
def _walk_down(forest, start, stop, transition, rows):
    r"""h_i = x_i + a_i h_p."""
    for place in range(start, stop):
        if forest.flags[place] & ROOT:
            continue
        own, above = _own_and_above(forest, start, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            a, value = load_whole(transition, own + column), load_whole(rows, own + column)
            h = multiply_add(a, load_whole(rows, above + column), value)
            store_whole(rows, own + column, h)


@njit(cache=True, nogil=True)
def _walk_down_again(forest, start, stop, transition, rows):
    r"""h_i = ξ_i + a_i (h_p − a_i ξ_i)."""
    for place in range(start, stop):
        if forest.flags[place] & ROOT:
            continue
        own, above = _own_and_above(forest, start, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            a, xi = load_whole(transition, own + column), load_whole(rows, own + column)
            outside = subtract_product(load_whole(rows, above + column), a, xi)
            store_whole(rows, own + column, multiply_add(a, outside, xi))


@njit(cache=True, nogil=True)
def _walk_down_again_backward(forest, start, stop, transition, rows, grad_rows, slope):
    r"""The same walk for ξ and γ; slope = a_i (γ_i (h_p − a_i ξ_i) + ξ_i (Γ_p − a_i γ_i))."""
    for place in range(start, stop):
        own, above = _own_and_above(forest, start, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            if forest.flags[place] & ROOT:
                store_whole(slope, own + column, zeros(rows))
                continue
            a = load_whole(transition, own + column)
            xi, gamma = load_whole(rows, own + column), load_whole(grad_rows, own + column)
            outside = subtract_product(load_whole(rows, above + column), a, xi)
            grad_outside = subtract_product(load_whole(grad_rows, above + column), a, gamma)
            grad_a = multiply_add(gamma, outside, multiply(xi, grad_outside))
            store_whole(rows, own + column, multiply_add(a, outside, xi))
            store_whole(grad_rows, own + column, multiply_add(a, grad_outside, gamma))
            store_whole(slope, own + column, multiply(a, grad_a))


@njit(cache=True, nogil=True)
def _scan_rows(forest, start, stop, direction, transition, rows):
    r"""From x to h."""
    if direction == DOWN:
        _walk_down(forest, start, stop, transition, rows)
        return
    _walk_up(forest, start, stop, transition, rows)
    if direction == BOTH:
        _walk_down_again(forest, start, stop, transition, rows)


@njit(cache=True, nogil=True)
def _scan_rows_backward(forest, start, stop, direction, transition, rows, grad_rows):
    r"""From x and h̄ to h and x̄; leaves the slopes a ā where the transitions stood."""
    slope = transition
    if direction == UP:
        _walk_up(forest, start, stop, transition, rows)
        _walk_down(forest, start, stop, transition, grad_rows)
        _slopes(forest, start, stop, transition, rows, 0, grad_rows, 1, slope)
    elif direction == DOWN:
        _walk_down(forest, start, stop, transition, rows)
        _walk_up(forest, start, stop, transition, grad_rows)
        _slopes(forest, start, stop, transition, rows, 1, grad_rows, 0, slope)
    else:
        _walk_up(forest, start, stop, transition, rows)
        _walk_up(forest, start, stop, transition, grad_rows)
        _walk_down_again_backward(forest, start, stop, transition, rows, grad_rows, slope)


@njit(cache=True, nogil=True)
def _slopes(forest, start, stop, transition, rows, rows_above, grad_rows, grad_above, slope):
    r"""a_i ā_i = a_i h x̄, where one of h and x̄ is taken at the node and the other at its parent."""
    for place in range(start, stop):
        own, above = _own_and_above(forest, start, place)
        for column in range(0, CHANNELS_PER_BLOCK, lanes(rows)):
            if forest.flags[place] & ROOT:
                store_whole(slope, own + column, zeros(rows))
                continue
            h = load_whole(rows, (above if rows_above else own) + column)
            passed_on = load_whole(grad_rows, (above if grad_above else own) + column)
            grad_a = multiply(h, passed_on)
            store_whole(slope, own + column, multiply(load_whole(transition, own + column), grad_a))


@njit(cache=True, nogil=True)
def _skip_backward(forest, start, stop, first, last, segment, channels, operands, grad, grads):
    r"""Begins ū with D ȳ, and sums D̄ = Σ ȳ u."""
    u, D = operands[0], operands[6]
    grad_u, grad_D = grads[0], grads[6]
    for place in range(start, stop):
        row = forest.order[place] * channels
        for channel in range(first, last, lanes(u)):
            count = last - channel
            grad_y = load(grad, row + channel, count)
            store(grad_u, row + channel, count, multiply(load(D, channel, count), grad_y))
            value = load(u, row + channel, count)
            _add_product(grad_D, segment * channels + channel, count, grad_y, value)


@njit(cache=True, nogil=True)
def _skips_backward(first_unit, last_unit, forest, sizes, operands, grad, grads):
    r"""That of every unit."""
    channels = sizes[0]
    for unit in range(first_unit, last_unit):
        start, stop, first, last, segment, _ = _unit(forest, channels, unit)
        _skip_backward(forest, start, stop, first, last, segment, channels, operands, grad, grads)


@njit(forceinline=True)
def _gather_row(node, s, own, first, last, segment, sizes, operands, grads, grad_x, slope):
    r"""Adds what x̄ and a ā of a node give to u, Δ, Δ' and A; returns what they give to B."""
    through_B = zeros(grad_x)
    for channel in range(first, last, lanes(grad_x)):
        value = load_whole(grad_x, own + channel)
        own_slope = load_whole(slope, own + channel)
        scaled = _gather(
            node, s, channel, last - channel, segment, sizes, operands, grads, value, own_slope
        )
        through_B = multiply_add(value, scaled, through_B)
    return sum_of_lanes(through_B)


@njit(forceinline=True)
def _gather(node, s, channel, count, segment, sizes, operands, grads, grad_x, slope):
    r"""Adds what x̄ and a ā give to u, Δ, Δ' and A; returns Δ u."""
    channels, state_size = sizes
    u, delta, step, A, B, _, _ = operands
    grad_u, grad_delta, grad_step, grad_A = grads[:4]
    row, column = node * channels + channel, s * channels + channel
    value, span = load(u, row, count), load(delta, row, count)
    through_B = multiply(grad_x, splat(B[node * state_size + s]))
    _add_product(grad_u, row, count, through_B, span)
    _add_product(grad_delta, row, count, through_B, value)
    _add_product(grad_step, row, count, slope, load(A, column, count))
    of_segment = segment * state_size * channels + column
    _add_product(grad_A, of_segment, count, slope, load(step, row, count))
    return multiply(span, value)
