"""``root_forest`` against the breadth-first and depth-first searches of SciPy and igraph; on a GPU
against a limit.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch_geometric.data import Data

import groot_graph
from benchmarks.harness import gpu
from benchmarks.harness.graphs import grids, random_graph
from benchmarks.harness.registry import Measurement, ResultsDifferError, at_most, row, speedup
from benchmarks.harness.timing import in_turns


@row(
    "{graphs} grids of {side}x{side}",
    speedup(),
    full={"graphs": 8, "side": 56},
    smoke={"graphs": 2, "side": 7},
)
def on_grids(repeats: int, graphs: int, side: int) -> list[Measurement]:
    return _against_peers(repeats, grids(graphs, side, side))


@row("one {side}x{side} grid", speedup(goal=0.5), full={"side": 512}, smoke={"side": 16})
@row("one {side}x{side} grid", speedup(goal=0.5), full={"side": 1000}, smoke={"side": 17})
def on_one_grid(repeats: int, side: int) -> list[Measurement]:
    return _against_peers(repeats, grids(1, side, side))


@row(
    "random graph of {num_nodes:,} nodes and {num_edges:,} edges",
    speedup(),
    full={"num_nodes": 1_000_000, "num_edges": 4_000_000},
    smoke={"num_nodes": 200, "num_edges": 400},
)
def on_random_graph(repeats: int, num_nodes: int, num_edges: int) -> list[Measurement]:
    return _against_peers(repeats, random_graph(num_nodes, num_edges))


@row(
    "{graphs} trees of {side}x{side} nodes, with what the scans walk along",
    at_most(0.5e-3),
    full={"graphs": 128, "side": 56},
    smoke={"graphs": 2, "side": 7},
    device="cuda",
)
def on_trees_on_cuda(repeats: int, graphs: int, side: int) -> list[Measurement]:
    drawn = gpu.input_sets(lambda seed: grids(graphs, side, side, seed))
    return gpu.measure([_checked_on_cuda(graph) for graph in drawn], repeats)


def _checked_on_cuda(graph: Data) -> Callable:
    """Ours on the GPU, once it has given the order and the parents that the CPU gives."""
    graph.edge_mask = groot_graph.minimum_spanning_forest(
        graph.edge_index, graph.edge_weight, graph.num_nodes
    )
    expected = groot_graph.root_forest(graph.edge_index, graph.edge_mask, graph.num_nodes)
    moved = graph.clone().to(gpu.DEVICE)

    def call():
        return groot_graph.root_forest(moved.edge_index, moved.edge_mask, moved.num_nodes)

    found = call().to("cpu")
    for name in ("order", "parent"):
        if not torch.equal(getattr(found, name), getattr(expected, name)):
            raise ResultsDifferError(f"{name} of the forest, on the GPU and on the CPU")
    return call


def _against_peers(repeats: int, graph: Data) -> list[Measurement]:
    mask = groot_graph.minimum_spanning_forest(graph.edge_index, graph.edge_weight, graph.num_nodes)

    def ours():
        return groot_graph.root_forest(graph.edge_index, mask, graph.num_nodes)

    forest = ours()
    calls = {"ours": ours}
    edges = _with_super_root(graph.edge_index[:, mask], forest)
    for name, build in PEERS.items():
        try:
            calls[name], parents = build(edges, graph.num_nodes)
        except ImportError:
            continue
        _check_parents(forest, np.asarray(parents()), name)
    return in_turns(calls, repeats)


def _with_super_root(kept: torch.Tensor, forest: groot_graph.Forest) -> np.ndarray:
    """The forest's edges and one from an added node N to every root.

    The peers search from one node, and one call of theirs costs O(N) however small its tree is.
    """
    extra = torch.stack([torch.full_like(forest.roots, forest.num_nodes), forest.roots])
    return torch.cat([kept, extra], dim=1).int().numpy()


def _check_parents(forest: groot_graph.Forest, parents: np.ndarray, peer: str) -> None:
    expected = torch.as_tensor(parents[: forest.num_nodes]).long()
    node = torch.arange(forest.num_nodes)
    expected = torch.where(expected == forest.num_nodes, node, expected)
    if not torch.equal(forest.parent, expected):
        raise ResultsDifferError(f"parents of the forest, ours and {peer}")


def _scipy(name: str) -> Callable:
    def build(edges: np.ndarray, root: int) -> tuple[Callable, Callable]:
        from scipy.sparse import csgraph, csr_array

        search = getattr(csgraph, name)
        # Both directions stored: an undirected search would transpose the matrix inside the call.
        row_, column = np.concatenate([edges, edges[::-1]], axis=1)
        matrix = csr_array((np.ones(row_.size), (row_, column)), shape=(root + 1, root + 1))
        return lambda: search(matrix, root), lambda: search(matrix, root)[1]

    return build


def _igraph(edges: np.ndarray, root: int) -> tuple[Callable, Callable]:
    import igraph

    peer = igraph.Graph(n=root + 1, edges=np.ascontiguousarray(edges.T))
    return lambda: peer.bfs(root), lambda: peer.bfs(root)[2]


PEERS = {
    "SciPy breadth first": _scipy("breadth_first_order"),
    "SciPy depth first": _scipy("depth_first_order"),
    "igraph breadth first": _igraph,
}
