"""``minimum_spanning_forest`` against SciPy, rustworkx and igraph, their graphs prebuilt; on a GPU
against limits.
"""

import statistics
from collections.abc import Callable

import torch
from torch_geometric.data import Data

import groot_graph
from benchmarks.harness import gpu
from benchmarks.harness.graphs import grids, neighbors, random_graph
from benchmarks.harness.registry import (
    Measurement,
    ResultsDifferError,
    at_least,
    at_most,
    cost,
    row,
    speedup,
)
from benchmarks.harness.timing import check_close, in_turns, interleave, per_node
from benchmarks.harness.units import quantity

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
)


@row(
    "{graphs} grids of {side}x{side}",
    speedup(goal=2),
    full={"graphs": 8, "side": 56},
    smoke={"graphs": 2, "side": 7},
)
def on_grids(repeats: int, graphs: int, side: int) -> list[Measurement]:
    return _against_peers(repeats, grids(graphs, side, side))


@row("one {side}x{side} grid", speedup(goal=2), full={"side": 512}, smoke={"side": 16})
def on_one_grid(repeats: int, side: int) -> list[Measurement]:
    return _against_peers(repeats, grids(1, side, side))


@row(
    "random graph of {num_nodes:,} nodes and {num_edges:,} edges",
    speedup(goal=2),
    full={"num_nodes": 1_000_000, "num_edges": 4_000_000},
    smoke={"num_nodes": 200, "num_edges": 400},
)
def on_random_graph(repeats: int, num_nodes: int, num_edges: int) -> list[Measurement]:
    return _against_peers(repeats, random_graph(num_nodes, num_edges))


@row(
    "{k} neighbors of {num_points:,} points in {dimensions} dimensions, float64",
    speedup(goal=2),
    full={"num_points": 100_000, "dimensions": 2, "k": 10},
    smoke={"num_points": 200, "dimensions": 2, "k": 3},
)
@row(
    "{k} neighbors of {num_points:,} points in {dimensions} dimensions, float64",
    speedup(goal=2),
    full={"num_points": 100_000, "dimensions": 8, "k": 10},
    smoke={"num_points": 200, "dimensions": 8, "k": 3},
)
@row(
    "{k} neighbors of {num_points:,} points in {dimensions} dimensions, float64",
    speedup(goal=2),
    full={"num_points": 1_000_000, "dimensions": 2, "k": 10},
    smoke={"num_points": 300, "dimensions": 2, "k": 3},
)
def on_neighbors(repeats: int, num_points: int, dimensions: int, k: int) -> list[Measurement]:
    return _against_peers(repeats, neighbors(num_points, dimensions, k))


@row(
    "{k} neighbors of {num_points:,} points, other dtypes and layouts",
    cost(goal=1.5),
    full={"num_points": 100_000, "k": 10},
    smoke={"num_points": 200, "k": 3},
)
def of_other_forms(repeats: int, num_points: int, k: int) -> list[Measurement]:
    graph = neighbors(num_points, 2, k)
    edge_index, weight = graph.edge_index, graph.edge_weight
    forms = {str(dtype): (edge_index, (1000 * weight).to(dtype)) for dtype in DTYPES}
    single = weight.float()
    forms["[num_edges, 2], transposed"] = edge_index.t().contiguous().t(), single
    forms["every other weight"] = edge_index, torch.stack([single, single], dim=1)[:, 0]
    calls = {
        name: _ours(Data(edge_index=edges, edge_weight=weights, num_nodes=graph.num_nodes))
        for name, (edges, weights) in forms.items()
    }
    samples = interleave(calls, repeats)
    base = samples.pop("torch.float32")
    return [
        Measurement(times, {"ours, torch.float32": base}, work=name)
        for name, times in samples.items()
    ]


@row(
    "cost against size",
    cost(goal=1.5),
    full={"sizes": (10**3, 10**4, 10**5, 10**6, 10**7), "base": 10**5},
    smoke={"sizes": (64, 144, 256), "base": 144},
    plotted=True,
)
def against_size(repeats: int, sizes: tuple[int, ...], base: int) -> list[Measurement]:
    sides = {size: round(size**0.5) for size in sizes}
    graphs = {size: grids(1, side, side) for size, side in sides.items()}
    for graph in graphs.values():
        _check_total(graph, _scipy(graph)[1], "SciPy")
    calls = {size: _ours(graph) for size, graph in graphs.items()}
    nodes = {size: graph.num_nodes for size, graph in graphs.items()}
    return per_node(calls, nodes, base, repeats)


@row(
    "{graphs} grids of {side}x{side}",
    at_most(0.3e-3),
    full={"graphs": 128, "side": 56},
    smoke={"graphs": 2, "side": 7},
    device="cuda",
)
def on_grids_on_cuda(repeats: int, graphs: int, side: int) -> list[Measurement]:
    drawn = gpu.input_sets(lambda seed: grids(graphs, side, side, seed))
    return gpu.measure([_checked_on_cuda(graph) for graph in drawn], repeats)


@row(
    "one {side}x{side} grid",
    at_least(1e9, "edges/s"),
    full={"side": 4096},
    smoke={"side": 16},
    device="cuda",
)
def on_one_grid_on_cuda(repeats: int, side: int) -> list[Measurement]:
    return _edges_per_second(repeats, grids(1, side, side))


@row(
    "random graph of {num_nodes:,} nodes and {num_edges:,} edges",
    at_least(1e9, "edges/s"),
    full={"num_nodes": 10_000_000, "num_edges": 40_000_000},
    smoke={"num_nodes": 200, "num_edges": 400},
    device="cuda",
)
def on_random_graph_on_cuda(repeats: int, num_nodes: int, num_edges: int) -> list[Measurement]:
    return _edges_per_second(repeats, random_graph(num_nodes, num_edges))


def _edges_per_second(repeats: int, graph: Data) -> list[Measurement]:
    samples = interleave({"ours": _checked_on_cuda(graph)}, repeats, gpu.event_seconds)["ours"]
    rates = [graph.edge_index.size(1) / time for time in samples]
    note = f"{quantity(statistics.median(samples), 's')} per forest"
    return [Measurement(rates, {}, unit="edges/s", note=note)]


def _checked_on_cuda(graph: Data) -> Callable:
    """Ours on the GPU, once it has kept the edges that the CPU keeps."""
    call = _ours(graph.clone().to(gpu.DEVICE))
    if not torch.equal(call().cpu(), _ours(graph)()):
        raise ResultsDifferError("edges of the spanning forest, on the GPU and on the CPU")
    return call


def _against_peers(repeats: int, graph: Data) -> list[Measurement]:
    calls = {"ours": _ours(graph)}
    missing = []
    for name, build in {"SciPy": _scipy, "rustworkx": _rustworkx, "igraph": _igraph}.items():
        try:
            calls[name], total_weight = build(graph)
        except ImportError:
            missing.append(name)
            continue
        _check_total(graph, total_weight, name)
    note = f"not judged, not installed: {', '.join(missing)}" if missing else ""
    return in_turns(calls, repeats, note=note, judged=not missing)


def _ours(graph: Data) -> Callable:
    return lambda: groot_graph.minimum_spanning_forest(
        graph.edge_index, graph.edge_weight, graph.num_nodes
    )


def _check_total(graph: Data, total_weight: Callable[[], float], peer: str) -> None:
    # Edge for edge would be too strict: float32 weights tie, and peers break ties otherwise.
    total = graph.edge_weight[_ours(graph)()].double().sum()
    expected = torch.tensor(total_weight(), dtype=torch.float64)
    check_close(f"total weight of the forest, ours and {peer}", total, expected, 1e-9)


def _scipy(graph: Data) -> tuple[Callable, Callable[[], float]]:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    # In float64 from the start, because SciPy would convert anything else inside the call.
    weight = graph.edge_weight.double().numpy()
    shape = (graph.num_nodes, graph.num_nodes)
    matrix = csr_array((weight, tuple(graph.edge_index.int().numpy())), shape=shape)
    return lambda: minimum_spanning_tree(matrix), lambda: minimum_spanning_tree(matrix).sum()


def _rustworkx(graph: Data) -> tuple[Callable, Callable[[], float]]:
    import rustworkx

    peer = rustworkx.PyGraph(multigraph=True)
    peer.add_nodes_from(range(graph.num_nodes))
    peer.add_edges_from([*zip(*graph.edge_index.tolist(), graph.edge_weight.tolist(), strict=True)])

    def call():
        return rustworkx.minimum_spanning_edges(peer, weight_fn=float)

    return call, lambda: sum(weight for _, _, weight in call())


def _igraph(graph: Data) -> tuple[Callable, Callable[[], float]]:
    import igraph

    peer = igraph.Graph(n=graph.num_nodes, edges=graph.edge_index.t().contiguous().numpy())
    peer.es["weight"] = graph.edge_weight.tolist()

    def call():
        return peer.spanning_tree(weights="weight", return_tree=False)

    return call, lambda: float(graph.edge_weight[call()].double().sum())
