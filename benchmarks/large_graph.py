r"""``python -m benchmarks.large_graph``: one graph of ten million nodes on the CPU.

Finds its spanning forest, at once and from a stream of chunks, and takes a training step of
`TreeSSMConv(16, 16)`: seconds and peak memory of each, every one in a process of its own. For the
stream also with edges that are a multiple of the nodes, to see that its memory is that of the
nodes, in one process and shared out to two.
"""

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from benchmarks.graphs import grids
from benchmarks.machine import describe
from benchmarks.measure import in_fresh_process, in_fresh_processes, peak_extra_memory
from benchmarks.report import machine_lines
from groot_graph import minimum_spanning_forest, minimum_spanning_forest_stream
from groot_graph.graphs import add_reverse_edges
from groot_graph.nn import TreeSSMConv

channels = 16
chunk_size = 10**6  # edges
edges_per_node = (2, 8, 32)  # of the streams
num_processes = 2  # of a group


def chunks(num_nodes: int, num_edges: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Random edges, drawn as they are asked for."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, num_edges, chunk_size):
        size = min(chunk_size, num_edges - first)
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


def training_step(num_nodes: int) -> Callable[[], Tensor]:
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


def measure(make: Callable, *sizes: int) -> dict:
    """Seconds and memory of one call, after a small one, which compiles."""
    make(*(100 for _ in sizes))()
    call, seconds = make(*sizes), []

    def timed() -> Tensor:
        start = time.perf_counter()
        output = call()
        seconds.append(time.perf_counter() - start)
        return output

    extra = peak_extra_memory(timed)
    whole = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds[0], "extra_bytes": extra, "whole_bytes": whole}


def measure_in_group(folder: str, num_nodes: int, num_edges: int, rank: int) -> dict:
    """What one process of a group measures."""
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_processes)
    torch.set_num_threads(1)
    found = measure(forest_of_group, num_nodes, num_edges)
    dist.barrier()
    dist.destroy_process_group()
    return found


def measure_group(num_nodes: int, num_edges: int) -> dict:
    """Of the process that takes most."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [(folder, num_nodes, num_edges, rank) for rank in range(num_processes)]
        found = in_fresh_processes(measure_in_group, ranks)
    return {name: max(of_process[name] for of_process in found) for name in found[0]}


def measure_all(num_nodes: int) -> list[dict]:
    works = {
        "minimum_spanning_forest, grid": (forest_at_once, num_nodes),
        f"training step of TreeSSMConv({channels}, {channels}), grid": (
            training_step,
            num_nodes,
        ),
        **{
            f"minimum_spanning_forest_stream, {factor} random edges per node": (
                forest_of_stream,
                num_nodes,
                factor * num_nodes,
            )
            for factor in edges_per_node
        },
    }
    results = []
    for work, (make, *sizes) in tqdm(works.items(), desc="works"):
        found = in_fresh_process(measure, make, *sizes)
        results.append({"work": work, "num_nodes": num_nodes, **found})
    for factor in tqdm(edges_per_node, desc="in groups"):
        work = (
            f"minimum_spanning_forest_stream, {num_processes} processes, "
            f"{factor} random edges per node"
        )
        found = measure_group(num_nodes, factor * num_nodes)
        results.append({"work": work, "num_nodes": num_nodes, **found})
    return results


def table(machine: dict, results: list[dict]) -> str:
    lines = [
        *machine_lines(machine),
        f"{results[0]['num_nodes']:,} nodes; each in processes of its own; of a group, the process "
        "that takes most",
        "",
        "| work | seconds | memory it adds | memory of the whole process |",
        "| --- | --- | --- | --- |",
    ]
    for result in results:
        seconds, extra, whole = (result[name] for name in ("seconds", "extra_bytes", "whole_bytes"))
        lines.append(
            f"| {result['work']} | {seconds:.1f} s | {extra / 1e9:.2f} GB | {whole / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_graph")
    parser.add_argument("--nodes", type=int, default=10**7, help="of every graph (10,000,000)")
    parser.add_argument("--json", type=Path, help="write what is measured here")
    args = parser.parse_args(argv)
    if args.nodes < 4:
        parser.error("--nodes must be at least 4")
    return args


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse(argv)
    machine = describe("cpu")
    results = measure_all(args.nodes)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    print(table(machine, results))
    return results


if __name__ == "__main__":
    main()
