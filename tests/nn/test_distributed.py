"""TreeSSMConv in data parallel processes, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.utils import erdos_renyi_graph

from groot_graph.nn import TreeSSMConv
from tests.equipment.processes import leave_group

NUM_PROCESSES = 2
REPOSITORY = Path(__file__).resolve().parents[2]


def make_graphs():
    torch.manual_seed(0)
    return [
        Data(x=torch.randn(20, 4), edge_index=erdos_renyi_graph(20, 0.2), y=torch.randint(3, (20,)))
        for _ in range(4)
    ]


def make_layer():
    torch.manual_seed(1)
    return TreeSSMConv(4, 3)


def step(layer, graphs):
    batch = Batch.from_data_list(graphs)
    loss = F.cross_entropy(layer(batch.x, batch.edge_index), batch.y)
    loss.backward()
    return loss


def in_one_of_the_processes(folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    layer = torch.nn.parallel.DistributedDataParallel(make_layer())
    step(layer, make_graphs()[rank::NUM_PROCESSES])
    grads = {name: parameter.grad for name, parameter in layer.module.named_parameters()}
    torch.save(grads, Path(folder) / f"{rank}.pt")
    leave_group()


@pytest.mark.full
def test_gradients_of_two_processes_are_those_of_one_batch(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finished = subprocess.run(
        [*launcher, f"--nproc-per-node={NUM_PROCESSES}", __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    layer = make_layer()
    step(layer, make_graphs())
    for rank in range(NUM_PROCESSES):
        grads = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, msg=name)


if __name__ == "__main__":
    in_one_of_the_processes(sys.argv[1])
