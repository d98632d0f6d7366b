"""TreeSSMConv on mini-batches of one large graph."""

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.loader import ClusterData, ClusterLoader, NeighborLoader
from torch_geometric.typing import WITH_METIS, WITH_PYG_LIB, WITH_TORCH_SPARSE
from torch_geometric.utils import grid, to_undirected

from groot_graph.nn import TreeSSMConv

needs_sampling = pytest.mark.skipif(
    not (WITH_PYG_LIB or WITH_TORCH_SPARSE),
    reason="NeighborLoader needs pyg-lib or torch-sparse",
)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = TreeSSMConv(2, 16), TreeSSMConv(16, 16)
        self.answer = torch.nn.Linear(16, 2)

    def forward(self, x, edge_index):
        x = F.relu(self.first(x, edge_index))
        return self.answer(F.relu(self.second(x, edge_index)))


@pytest.fixture
def graph():
    """A grid whose nodes have to tell their half."""
    edge_index, position = grid(12, 12)
    x = (position - position.mean(0)) / position.std(0)
    return Data(x=x, edge_index=to_undirected(edge_index), y=(x[:, 0] > 0).long())


def train(loader, num_asked, epochs=15):
    """The share of right answers before and after, over the nodes that a batch asks for."""
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)

    def share_right():
        with torch.no_grad():
            right = [
                (network(batch.x, batch.edge_index).argmax(1) == batch.y)[: num_asked(batch)]
                for batch in loader
            ]
        return torch.cat(right).float().mean().item(), sum(map(len, right))

    before = share_right()
    for _ in range(epochs):
        for batch in loader:
            rows = slice(num_asked(batch))
            loss = F.cross_entropy(network(batch.x, batch.edge_index)[rows], batch.y[rows])
            optimizer.zero_grad()
            loss.backward()
            assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
            optimizer.step()
    return before, share_right()


@needs_sampling
@pytest.mark.parametrize("num_workers", [0, 2])
def test_neighbor_loader(graph, num_workers):
    loader = NeighborLoader(graph, [5, 5], batch_size=36, num_workers=num_workers)
    (before, _), (after, num_asked) = train(loader, lambda batch: batch.batch_size)
    assert num_asked == graph.num_nodes
    assert after > max(before, 0.95)


def in_equal_parts(self, edge_index, num_nodes):
    """Stands in for METIS where PyG has none."""
    return torch.arange(num_nodes) * self.num_parts // num_nodes


def test_cluster_loader(graph, monkeypatch):
    if not WITH_METIS:
        monkeypatch.setattr(ClusterData, "_metis", in_equal_parts)
    clusters = ClusterData(graph, num_parts=6, log=False)
    loader = ClusterLoader(clusters, batch_size=2)
    (before, _), (after, num_asked) = train(loader, lambda batch: batch.num_nodes)
    assert num_asked == graph.num_nodes
    assert after > max(before, 0.95)
