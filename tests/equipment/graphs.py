"""Graphs and forests that the tests share."""

import math
import random

import torch

from groot_graph import Forest, root_forest

FOREST_KINDS = (
    "chain",
    "star",
    "spider",
    "caterpillar",
    "binary",
    "random",
    "several",
    "isolated",
)


def forest_parents(kind: str, num_nodes: int, seed: int = 0) -> list[int]:
    """The parent of every node, -1 at a root; a parent has a lower number than its children."""
    draw = random.Random(seed)
    leg = math.isqrt(num_nodes)
    parent_of = {
        "chain": lambda i: i - 1,
        "star": lambda i: 0,
        "spider": lambda i: i - 1 if i % leg != 1 % leg else 0,
        "caterpillar": lambda i: i - 1 if i % 2 else i - 2,
        "binary": lambda i: (i - 1) // 2,
        "random": lambda i: draw.randrange(i),
        "several": lambda i: draw.randrange(i) if draw.random() < 0.8 else -1,
        "isolated": lambda i: -1,
    }[kind]
    return [parent_of(i) if i > 0 else -1 for i in range(num_nodes)]


def forest_edges(kind: str, num_nodes: int, seed: int = 0) -> torch.Tensor:
    """The edges of a forest with shuffled node numbers, edge numbers and edge directions."""
    edges = [(p, i) for i, p in enumerate(forest_parents(kind, num_nodes, seed)) if p >= 0]
    return shuffle_edges(edges, num_nodes, random.Random(seed + 1))


def shuffle_edges(edges: list, num_nodes: int, draw: random.Random) -> torch.Tensor:
    label = draw.sample(range(num_nodes), num_nodes)
    edges = [draw.sample([label[i], label[j]], 2) for i, j in edges]
    draw.shuffle(edges)
    return to_edge_index(edges)


def to_edge_index(edges: list) -> torch.Tensor:
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t().contiguous()


def make_forest(kind: str, num_nodes: int, seed: int = 0, root="first") -> Forest:
    return root_forest(forest_edges(kind, num_nodes, seed), num_nodes=num_nodes, root=root)


def random_graph(num_nodes: int, num_edges: int, seed: int = 0) -> torch.Tensor:
    """Edges drawn with replacement: self-loops and parallel edges included."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_nodes, (2, num_edges), generator=generator)


def pairing_weights(num_edges: int) -> torch.Tensor:
    """Along a chain, every round joins two trees at a time by these."""
    place = torch.arange(1, num_edges + 1)
    return torch.log2((place & -place).float())
