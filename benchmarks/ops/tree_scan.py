"""``tree_scan`` against one elementwise pass, the least that any pass over x and a costs."""

from collections.abc import Callable

import torch

import groot_graph
from benchmarks.harness import gpu
from benchmarks.harness.graphs import grids, spanning_forest
from benchmarks.harness.registry import Goal, Measurement, cost, row
from benchmarks.harness.timing import check_close, in_turns, per_node
from groot_graph.ops.tree_scan.reference import tree_scan_reference

TITLE = "{graphs}x{side}x{side} nodes, {channels} channels, "
FULL = {"graphs": 8, "side": 56, "channels": 160}
SMOKE = {"graphs": 2, "side": 7, "channels": 5}
ON_CUDA = {"full": FULL | {"graphs": 128}, "smoke": SMOKE, "device": "cuda"}
CHECKED_NODES = 10**5


def scan_row(title: str, goal: Goal, direction: str):
    return row(
        TITLE + title, goal, FULL | {"direction": direction}, SMOKE | {"direction": direction}
    )


@scan_row("{direction}, forward", cost(), "down")
@scan_row("{direction}, forward", cost(), "up")
@scan_row("{direction}, forward", cost(goal=4), "both")
def forward(repeats: int, graphs: int, side: int, channels: int, direction: str):
    forest = spanning_forest(grids(graphs, side, side))
    x, transition, _ = _operands(forest.num_nodes, channels)
    _check_forward(x, transition, forest, direction)
    calls = {
        "ours": lambda: groot_graph.tree_scan(x, transition, forest, direction),
        "torch.addcmul": lambda: torch.addcmul(x, transition, x),
    }
    return in_turns(calls, repeats)


@scan_row("{direction}, forward and backward", cost(goal=12), "both")
def forward_and_backward(repeats: int, graphs: int, side: int, channels: int, direction: str):
    forest = spanning_forest(grids(graphs, side, side))
    x, transition, grad = _operands(forest.num_nodes, channels)
    leaves = (x.clone().requires_grad_(), transition.clone().requires_grad_())

    def gradients(scan: Callable) -> tuple[torch.Tensor, ...]:
        for leaf in leaves:
            leaf.grad = None
        scan(*leaves, forest, direction).backward(grad)
        return tuple(leaf.grad for leaf in leaves)

    expected = gradients(tree_scan_reference)
    found = gradients(groot_graph.tree_scan)
    for name, ours, reference in zip(("x", "transition"), found, expected, strict=True):
        check_close(f"gradient of {name}, ours and the reference", ours, reference, 1e-4)
    calls = {
        "ours": lambda: gradients(groot_graph.tree_scan),
        "torch.addcmul": lambda: torch.addcmul(x, transition, x),
    }
    return in_turns(calls, repeats)


@scan_row("{direction}, forward, the reference in PyTorch", cost(), "both")
def reference(repeats: int, graphs: int, side: int, channels: int, direction: str):
    forest = spanning_forest(grids(graphs, side, side))
    x, transition, _ = _operands(forest.num_nodes, channels)
    calls = {
        "ours": lambda: tree_scan_reference(x, transition, forest, direction),
        "torch.addcmul": lambda: torch.addcmul(x, transition, x),
    }
    return in_turns(calls, repeats)


# 16 float32 channels are one cache line: fewer would pay for bytes that no channel uses.
@row(
    "cost against size, {channels} channels, both, forward",
    cost(1.5),
    full={"sizes": (10**3, 10**4, 10**5, 10**6, 10**7), "base": 10**5, "channels": 16},
    smoke={"sizes": (64, 144, 256), "base": 144, "channels": 16},
    plotted=True,
)
def against_size(repeats: int, sizes: tuple[int, ...], base: int, channels: int):
    nodes, calls = {}, {}
    for size in sizes:
        side = round(size**0.5)
        forest = spanning_forest(grids(1, side, side))
        x, transition, _ = _operands(forest.num_nodes, channels)
        if size <= CHECKED_NODES:
            _check_forward(x, transition, forest, "both")
        nodes[size] = forest.num_nodes
        calls[size] = _scan(x, transition, forest)
    return per_node(calls, nodes, base, repeats)


@row(TITLE + "both, forward", cost(goal=1.5), **ON_CUDA)
@torch.no_grad()
def forward_on_cuda(repeats: int, graphs: int, side: int, channels: int) -> list[Measurement]:
    forest, x, transition, _ = _on_cuda(graphs, side, channels)
    ours = _scan(x, transition, forest)
    expected = groot_graph.tree_scan(x.cpu(), transition.cpu(), forest.to("cpu"))
    check_close("tree_scan, on the GPU and on the CPU", ours().cpu(), expected, 1e-4)
    h = torch.empty_like(x)
    # Reads both and writes one, as the scan has to.
    return gpu.measure([ours], repeats, {"torch.add": lambda: torch.add(x, transition, out=h)})


@row(TITLE + "both, forward and backward", cost(goal=3), **ON_CUDA)
def forward_and_backward_on_cuda(repeats: int, graphs: int, side: int, channels: int):
    forest, x, transition, grad = _on_cuda(graphs, side, channels)
    leaves = [x.clone().requires_grad_(), transition.clone().requires_grad_()]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(groot_graph.tree_scan(*leaves, forest), leaves, grad)

    on_cpu = [leaf.detach().cpu().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(
        groot_graph.tree_scan(*on_cpu, forest.to("cpu")), on_cpu, grad.cpu()
    )
    for name, found, right in zip(("x", "transition"), gradients(), expected, strict=True):
        check_close(f"gradient of {name}, on the GPU and on the CPU", found.cpu(), right, 1e-4)
    return gpu.measure([gradients], repeats, {"ours, forward": _scan(x, transition, forest)})


def _on_cuda(graphs: int, side: int, channels: int) -> tuple:
    """Forest, x, transition and the gradient of h; each of the last three outgrows any cache."""
    forest = spanning_forest(grids(graphs, side, side)).to(gpu.DEVICE)
    operands = _operands(forest.num_nodes, channels)
    return forest, *(operand.to(gpu.DEVICE) for operand in operands)


def _scan(x: torch.Tensor, transition: torch.Tensor, forest: groot_graph.Forest) -> Callable:
    return lambda: groot_graph.tree_scan(x, transition, forest)


def _operands(num_nodes: int, channels: int) -> tuple[torch.Tensor, ...]:
    """x and the gradient of h normal, transitions uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_nodes, channels)
    x = torch.randn(shape, generator=generator)
    transition = torch.rand(shape, generator=generator)
    return x, transition, torch.randn(shape, generator=generator)


def _check_forward(x, transition, forest: groot_graph.Forest, direction: str) -> None:
    ours = groot_graph.tree_scan(x, transition, forest, direction)
    expected = tree_scan_reference(x, transition, forest, direction)
    check_close(f"tree_scan {direction!r}, ours and the reference", ours, expected, 1e-5)
