"""What the tests on a GPU share. Inputs are drawn on the CPU, the same on every machine."""

from functools import cache

import torch

from benchmarks.harness.graphs import grids, spanning_forest
from groot_graph import (
    Forest,
    minimum_spanning_forest,
    root_forest,
    selective_tree_scan,
    tree_scan,
)
from groot_graph.nn import TreeSSMConv
from tests.equipment.graphs import forest_edges, random_graph
from tests.equipment.modules import perturbed
from tests.equipment.scans import scan_operands, selective_operands, with_gradients

# The odd sizes at which kernels go wrong.
SIZES = (0, 1, 2, 63, 257, 3001)


@cache
def cached_forest_edges(kind: str, num_nodes: int) -> torch.Tensor:
    return forest_edges(kind, num_nodes)


def chains(num_chains: int, length: int) -> torch.Tensor:
    """The edges of disjoint chains with shuffled node numbers."""
    generator = torch.Generator().manual_seed(0)
    node = torch.randperm(num_chains * length, generator=generator).view(num_chains, length)
    return torch.stack([node[:, :-1].flatten(), node[:, 1:].flatten()])


def star(num_leaves: int) -> torch.Tensor:
    leaf = torch.arange(1, num_leaves + 1)
    return torch.stack([torch.zeros_like(leaf), leaf])


def trees_of_grids(num_grids: int, side: int) -> torch.Tensor:
    """The edges of the spanning trees of grids."""
    forest = spanning_forest(grids(num_grids, side, side))
    child = (forest.parent != torch.arange(forest.num_nodes)).nonzero().flatten()
    return torch.stack([forest.parent[child], child])


# Edges, number of nodes, number of channels.
LARGE_FORESTS = {
    "star of 100,000 leaves": lambda: (star(10**5), 10**5 + 1, 8),
    "8 chains of 8,192 nodes": lambda: (chains(8, 8192), 8 * 8192, 8),
    "128 grids of 56x56 nodes": lambda: (trees_of_grids(128, 56), 128 * 56 * 56, 8),
    "chain of 1,000,000 nodes": lambda: (chains(1, 10**6), 10**6, 2),
}


@cache
def large_forest(name: str) -> tuple[torch.Tensor, int, int]:
    return LARGE_FORESTS[name]()


def moved(tensors: dict, target: torch.device | torch.dtype) -> dict:
    return {name: tensor.to(target) for name, tensor in tensors.items()}


def chain_operands(num_nodes: int, num_channels=5, state_size=3, dtype=torch.float32) -> dict:
    """What :func:`whole_chain` takes."""
    edge_index = random_graph(num_nodes, 2 * num_nodes)
    return {
        "edge_index": edge_index,
        "edge_weight": torch.rand(edge_index.size(1)),
        "weight": torch.randn(num_nodes, num_channels, dtype=torch.float64).to(dtype),
        **scan_operands(num_nodes, num_channels, dtype),
        **selective_operands(num_nodes, num_channels, state_size, dtype),
    }


def whole_chain(operands: dict, direction: str = "both", forest: Forest | None = None) -> dict:
    """Every operation once, and every gradient, by name; on a given forest only the scans."""
    operands = dict(operands)
    edge_index, edge_weight = operands.pop("edge_index"), operands.pop("edge_weight")
    weight, num_nodes = operands.pop("weight"), operands["x"].size(0)
    results = {}
    if forest is None:
        results["edge_mask"] = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
        forest = root_forest(edge_index, results["edge_mask"], num_nodes, "last")
        results |= {"order": forest.order, "parent": forest.parent}
    of_tree_scan = {name: operands.pop(name) for name in ("x", "transition")}
    for scan, scanned in ((tree_scan, of_tree_scan), (selective_tree_scan, operands)):
        found = with_gradients(scan, scanned, weight, forest=forest, direction=direction)
        results |= {f"{scan.__name__} {name}": value for name, value in found.items()}
    return results


class Layer:
    """A :class:`TreeSSMConv` on fixed inputs, forward and backward.

    Args:
        edge_index (LongTensor): The edges.
        num_nodes (int): The number of nodes.
        device (torch.device): Where everything lies.
        dtype (torch.dtype, optional): Of features and parameters. (default: float32)
        **kwargs: Settings of the layer.
    """

    def __init__(self, edge_index, num_nodes, device, dtype=torch.float32, **kwargs):
        self.conv = perturbed(TreeSSMConv(6, 7, **kwargs)).to(device, dtype)
        self.edge_index = edge_index.to(device)
        self.x = torch.randn(num_nodes, 6).to(device, dtype).requires_grad_()
        self.weight = torch.randn(num_nodes, 7).to(device, dtype)

    def run(self, x=None, edge_weight=None) -> dict:
        """Output and gradients by name."""
        x = self.x if x is None else x.detach().requires_grad_()
        y = self.conv(x, self.edge_index, edge_weight)
        leaves = {"x": x, **dict(self.conv.named_parameters())}
        grads = torch.autograd.grad(y, list(leaves.values()), self.weight)
        return {"output": y.detach(), **dict(zip(leaves, grads, strict=True))}


def rings(sizes: range) -> tuple[torch.Tensor, int]:
    """Disjoint rings, each edge in both directions, and their number of nodes.

    A node adds up two neighbours, whose sum is the same in any sequence: PyG's own additions are
    atomic, and with more neighbours they would round in another way on every run.
    """
    edges, begin = [], 0
    for size in sizes:
        node = torch.arange(size)
        edges.append(torch.stack([node, (node + 1) % size]) + begin)
        begin += size
    edge_index = torch.cat(edges, dim=1)
    return torch.cat([edge_index, edge_index.flip(0)], dim=1), begin


def assert_same_bits(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value.cpu(), expected[name].cpu()), f"{name} differs"
