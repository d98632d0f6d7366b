"""A whole :class:`groot_graph.nn.TreeSSMConv`, the tree grown from the features of every call."""

from collections.abc import Callable

import torch

from benchmarks.harness import gpu
from benchmarks.harness.graphs import grids
from benchmarks.harness.registry import Measurement, at_most, cost, row
from benchmarks.harness.timing import interleave
from groot_graph.nn import TreeSSMConv


@row(
    "TreeSSMConv({channels}, {channels}), {graphs} images of {side}x{side}, forward and backward",
    at_most(),
    full={"channels": 96, "graphs": 128, "side": 56},
    smoke={"channels": 5, "graphs": 2, "side": 7},
    device="cuda",
)
def forward_and_backward(repeats: int, channels: int, graphs: int, side: int) -> list[Measurement]:
    torch.manual_seed(0)
    graph = grids(graphs, side, side)
    # Both directions, as PyG holds undirected graphs.
    edge_index = torch.cat([graph.edge_index, graph.edge_index.flip(0)], dim=1).to(gpu.DEVICE)
    conv = TreeSSMConv(channels, channels).to(gpu.DEVICE)
    x, grad = (torch.randn(graph.num_nodes, channels, device=gpu.DEVICE) for _ in range(2))
    leaves = [x.requires_grad_(), *conv.parameters()]

    def gradients():
        return torch.autograd.grad(conv(x, edge_index), leaves, grad)

    return gpu.measure([gradients], repeats)


@row(
    "TreeSSMConv({channels}, {channels}, edge_steps=True), {graphs} images of {side}x{side}",
    cost(1.15),
    full={"channels": 96, "graphs": 8, "side": 56},
    smoke={"channels": 5, "graphs": 2, "side": 7},
)
def edge_steps(repeats: int, channels: int, graphs: int, side: int) -> list[Measurement]:
    """Forward and backward, beside the published layer."""
    graph = grids(graphs, side, side)
    edge_index = torch.cat([graph.edge_index, graph.edge_index.flip(0)], dim=1)
    x, grad = (torch.randn(graph.num_nodes, channels) for _ in range(2))

    def step_of(conv: TreeSSMConv) -> Callable[[], tuple]:
        leaves = [x.requires_grad_(), *conv.parameters()]
        return lambda: torch.autograd.grad(conv(x, edge_index), leaves, grad)

    steps = {
        "ours": step_of(TreeSSMConv(channels, channels, edge_steps=True)),
        "without edge steps": step_of(TreeSSMConv(channels, channels)),
    }
    samples = interleave(steps, repeats)
    return [Measurement(samples.pop("ours"), samples, num_nodes=graph.num_nodes)]
