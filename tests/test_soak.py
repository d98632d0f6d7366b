"""Ten thousand steps leave memory, threads and open files as they were."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import torch
from torch_geometric.utils import erdos_renyi_graph

from groot_graph.nn import TreeSSMConv

STATUS = Path("/proc/self/status")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not STATUS.exists(), reason="read from /proc, which only Linux has"),
]


def held() -> dict[str, int]:
    """Kilobytes in memory, threads and open files of this process."""
    status = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {
        "kilobytes": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "python threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def held_before_and_after(num_threads: int) -> tuple[dict[str, int], dict[str, int]]:
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    graphs = [erdos_renyi_graph(num_nodes, 0.2) for num_nodes in range(1, 41)]
    features = [torch.randn(num_nodes, 8) for num_nodes in range(1, 41)]
    layer = TreeSSMConv(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), 1e-3)

    def take_steps(count):
        for step in range(count):
            graph = step % len(graphs)
            optimizer.zero_grad()
            layer(features[graph], graphs[graph]).square().mean().backward()
            optimizer.step()

    take_steps(2000)  # compiles, and fills every pool
    before = held()
    take_steps(10_000)
    return before, held()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_ten_thousand_steps(num_threads):
    # In a process of its own: pages that other tests have left come and go.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after = pool.apply(held_before_and_after, [num_threads])
    # One float kept per node and step would be 820 kB, one object per step more than that.
    assert after.pop("kilobytes") - before.pop("kilobytes") < 512
    assert after == before
