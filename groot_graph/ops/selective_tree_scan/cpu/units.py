r"""The units of work that the kernels share out: a bundle of trees, a block of channels."""

from typing import NamedTuple

import numpy as np
from numba import njit

from groot_graph.ops.cpu.compiled import compiled
from groot_graph.ops.cpu.order import PlacedForest

# One vector in float32, two in float64.
CHANNELS_PER_BLOCK = 32


class Unit(NamedTuple):
    r"""One bundle of trees in one block of channels.

    Attributes:
        start: The first place of the bundle.
        stop: The place after its last.
        first: The first channel of the block.
        last: The channel after its last.
        bundle: The number of the bundle.
        block: The number of the block.
    """

    start: int
    stop: int
    first: int
    last: int
    bundle: int
    block: int


@compiled
def num_blocks(channels):
    return -(-channels // CHANNELS_PER_BLOCK)


def num_units(placed: PlacedForest, channels: int) -> int:
    return placed.num_bundles * num_blocks(channels)


@njit(forceinline=True)
def unit_of(number, placed, channels):
    r"""The unit of a number: all blocks of the first bundle, then of the next."""
    bundle, block = number // num_blocks(channels), number % num_blocks(channels)
    first = block * CHANNELS_PER_BLOCK
    last = min(first + CHANNELS_PER_BLOCK, channels)
    return Unit(placed.bundles[bundle], placed.bundles[bundle + 1], first, last, bundle, block)


@njit(inline="always")
def rows_of(unit, like):
    r"""An array of one row of CHANNELS_PER_BLOCK values for every place of a unit."""
    return np.empty((unit.stop - unit.start) * CHANNELS_PER_BLOCK, like.dtype)


@njit(forceinline=True)
def in_rows(unit, place, channel):
    r"""Where a channel of a place stands in such an array."""
    return (place - unit.start) * CHANNELS_PER_BLOCK + channel - unit.first
