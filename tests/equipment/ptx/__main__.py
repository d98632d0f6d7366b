"""Prints how many PTX instructions the CUDA kernels execute."""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

from groot_graph import (
    Forest,
    minimum_spanning_forest,
    root_forest,
    selective_tree_scan,
    tree_scan,
)
from groot_graph.graphs import grid_edge_index
from tests.equipment.on_host import cuda_kernels
from tests.equipment.ptx.run import Launch, ptx_on_host
from tests.equipment.scans import DIRECTIONS, FLOATS, REQUIRED, scan_operands, selective_operands

SIDE = 18
NUM_NODES = SIDE * SIDE
HEADING = """\
Instructions per node of an image of {side} by {side} pixels; of scans per node and channel, and of
selective scans per node, channel and state; {channels} channels, {states} states, {dtype}.
"""
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
# The columns, and the classes of instructions in each.
COLUMNS = {
    "loads": ("global load",),
    "stores": ("global store",),
    "local": ("local load", "local store"),
    "shared": ("shared load", "shared store"),
    "barriers": ("barrier",),
    "atomics": ("atomic",),
    "shuffles": ("shuffle",),
    "special": ("special function",),
    "float": ("floating point",),
    "integer": ("integer",),
    "division": ("integer division",),
    "branches": ("branch",),
    "moves": ("move", "parameter"),
}


def main(arguments: "list[str] | None" = None) -> None:
    parser = argparse.ArgumentParser("python -m tests.equipment.ptx", description=__doc__)
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--states", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    print(HEADING.format(side=SIDE, **vars(options)))
    print(f"{'':36}", *(f"{name:>8}" for name in ("launches", "all", *COLUMNS)))
    with cuda_kernels(launcher=ptx_on_host()) as launches:
        forest = count_forest(launches)
        for direction in options.direction:
            count_scans(launches, forest, direction, options)


def count_forest(launches: list[Launch]) -> Forest:
    edge_index = grid_edge_index(SIDE, SIDE)
    edge_weight = torch.rand(edge_index.size(1))
    span = partial(minimum_spanning_forest, edge_index, edge_weight, NUM_NODES)
    edge_mask = counted("minimum_spanning_forest", launches, NUM_NODES, span)
    root = partial(root_forest, edge_index, edge_mask, NUM_NODES)
    return counted("root_forest", launches, NUM_NODES, root)


def count_scans(
    launches: list[Launch], forest: Forest, direction: str, options: argparse.Namespace
) -> None:
    dtype = DTYPES[options.dtype]
    operands = scan_operands(NUM_NODES, options.channels, dtype)
    drawn = selective_operands(NUM_NODES, options.channels, options.states, dtype)
    selective = {name: drawn[name] for name in REQUIRED}
    size = NUM_NODES * options.channels
    along = {"forest": forest, "direction": direction}
    count_scan(launches, size, tree_scan, operands, along)
    count_scan(launches, size * options.states, selective_tree_scan, selective, along)


def count_scan(launches, size: int, scan: Callable, operands: dict, along: dict) -> None:
    name = f"{scan.__name__}, {along['direction']}"
    leaves = {name: operand.requires_grad_() for name, operand in operands.items()}
    output = counted(name, launches, size, partial(scan, **leaves, **along))
    counted(f"{name}, gradients", launches, size, output.sum().backward)


def counted(name: str, launches: list[Launch], size: int, call: Callable):
    """What a call returns; prints the row of its launches."""
    launches.clear()
    result = call()
    total = sum((launch.instructions for launch in launches), Counter())
    columns = (sum(total[kind] for kind in kinds) for kinds in COLUMNS.values())
    shares = (f"{number / size:8.1f}" for number in (total.total(), *columns))
    print(f"{name:36} {len(launches):8}", *shares)
    return result


if __name__ == "__main__":
    main()
