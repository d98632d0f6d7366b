"""One graph of ten million nodes on the CPU, each row in processes of its own.

Its spanning forest, at once and from a stream of chunks, and a training step. The streams have
edges that are a multiple of the nodes, to see that their memory is that of the nodes, in one
process and shared out to two.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch_geometric.data import Data

from benchmarks.harness.graphs import grids
from benchmarks.harness.memory import Taken, in_fresh_processes, taken, taken_alone
from benchmarks.harness.registry import Measurement, at_most, row
from groot_graph import minimum_spanning_forest, minimum_spanning_forest_stream
from groot_graph.graphs import add_reverse_edges
from groot_graph.nn import TreeSSMConv

CHUNK_SIZE = 10**6  # edges
FEW = 100  # nodes, or edges, to compile with

FULL = {"num_nodes": 10**7}
SMOKE = {"num_nodes": 400}


def large_row(title: str, **kind) -> Callable:
    return row(title, at_most(), FULL | kind, SMOKE | kind, least={"num_nodes": 4})


@large_row("minimum_spanning_forest, grid of {num_nodes:,} nodes")
def at_once(repeats: int, num_nodes: int) -> list[Measurement]:
    return taken_alone(forest_at_once, (num_nodes,), (FEW,)).measurements()


@large_row(
    "training step of TreeSSMConv({channels}, {channels}), grid of {num_nodes:,} nodes", channels=16
)
def training(repeats: int, num_nodes: int, channels: int) -> list[Measurement]:
    return taken_alone(training_step, (num_nodes, channels), (FEW, channels)).measurements()


STREAM = (
    "minimum_spanning_forest_stream, {num_nodes:,} nodes, {edges_per_node} random edges per node"
)


@large_row(STREAM, edges_per_node=32)
@large_row(STREAM, edges_per_node=8)
@large_row(STREAM, edges_per_node=2)
def stream(repeats: int, num_nodes: int, edges_per_node: int) -> list[Measurement]:
    sizes = num_nodes, edges_per_node * num_nodes
    return taken_alone(forest_of_stream, sizes, (FEW, FEW)).measurements()


@large_row(STREAM + ", {processes} processes", edges_per_node=32, processes=2)
@large_row(STREAM + ", {processes} processes", edges_per_node=8, processes=2)
@large_row(STREAM + ", {processes} processes", edges_per_node=2, processes=2)
def stream_of_group(
    repeats: int, num_nodes: int, edges_per_node: int, processes: int
) -> list[Measurement]:
    """Of the process that takes most."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            (folder, rank, processes, num_nodes, edges_per_node * num_nodes)
            for rank in range(processes)
        ]
        found = in_fresh_processes(taken_in_group, ranks)
    return Taken(*map(max, zip(*found, strict=True))).measurements()


def taken_in_group(folder: str, rank: int, processes: int, num_nodes: int, num_edges: int) -> Taken:
    """What one process of a group takes."""
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
    torch.set_num_threads(1)
    found = taken(forest_of_group, (num_nodes, num_edges), (FEW, FEW))
    dist.barrier()
    dist.destroy_process_group()
    return found


def chunks(num_nodes: int, num_edges: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Random edges, drawn as they are asked for."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, num_edges, CHUNK_SIZE):
        size = min(CHUNK_SIZE, num_edges - first)
        edge_index = torch.randint(num_nodes, (2, size), generator=generator)
        yield edge_index, torch.rand(size, generator=generator)


def grid(num_nodes: int) -> Data:
    """A grid of so many nodes, as square as it can be."""
    height = math.isqrt(num_nodes)
    while num_nodes % height:
        height -= 1
    return grids(1, height, num_nodes // height)


def forest_at_once(num_nodes: int) -> Callable[[], Tensor]:
    """The spanning forest of a grid."""
    graph = grid(num_nodes)
    return partial(minimum_spanning_forest, graph.edge_index, graph.edge_weight, graph.num_nodes)


def forest_of_stream(num_nodes: int, num_edges: int) -> Callable[[], Tensor]:
    """The spanning forest of edges that are drawn chunk by chunk."""
    return lambda: minimum_spanning_forest_stream(chunks(num_nodes, num_edges), num_nodes)[1]


def forest_of_group(num_nodes: int, num_edges: int) -> Callable[[], Tensor]:
    """The spanning forest of edges that each process of the group draws its share of."""
    rank, share = dist.get_rank(), num_edges // dist.get_world_size()

    def forest() -> Tensor:
        own = chunks(num_nodes, share, seed=rank)
        return minimum_spanning_forest_stream(own, num_nodes, dist.group.WORLD)[1]

    return forest


def training_step(num_nodes: int, channels: int) -> Callable[[], Tensor]:
    """Forward, backward and update of one layer on a grid, its edges in both directions."""
    graph = grid(num_nodes)
    edge_index = add_reverse_edges(graph.edge_index)
    del graph
    torch.manual_seed(0)
    x, y = torch.randn(num_nodes, channels), torch.randn(num_nodes, channels)
    layer = TreeSSMConv(channels, channels)
    optimizer = torch.optim.Adam(layer.parameters())

    def step() -> Tensor:
        loss = torch.nn.functional.mse_loss(layer(x, edge_index), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
