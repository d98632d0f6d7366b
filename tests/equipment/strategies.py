"""What hypothesis draws: any forest, any graph."""

import torch
from hypothesis import strategies as st

from tests.equipment.graphs import shuffle_edges


@st.composite
def forests(draw, max_nodes: int = 16) -> tuple[torch.Tensor, int]:
    """`(edge_index, num_nodes)` of any forest, no node and isolated nodes included."""
    num_nodes = draw(st.integers(0, max_nodes))
    parent = [draw(st.integers(-1, i - 1)) for i in range(num_nodes)]
    edges = [(p, i) for i, p in enumerate(parent) if p >= 0]
    return shuffle_edges(edges, num_nodes, draw(st.randoms(use_true_random=False))), num_nodes


@st.composite
def multigraphs(draw, max_nodes: int = 12, max_edges: int = 30) -> tuple[list, int]:
    """`(edges, num_nodes)` of any graph: self-loops, parallel edges, one direction or both."""
    num_nodes = draw(st.integers(0, max_nodes))
    if num_nodes == 0:
        return [], 0
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=max_edges))
    both_directions = draw(st.booleans())
    return edges + [(j, i) for i, j in edges] if both_directions else edges, num_nodes
