import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.utils import sort_edge_index, to_torch_csr_tensor

from groot_graph.nn.adjacency import to_plain_edge_index
from tests.equipment.adjacencies import FORMS, adjacency_forms
from tests.equipment.graphs import random_graph

x = torch.zeros(5, 3)
EDGE_INDEX = torch.tensor([[0, 1, 2], [1, 2, 3]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_nodes,num_edges", [(7, 19), (5, 0), (1, 1), (0, 0)])
def test_every_form_holds_the_same_edges(form, num_nodes, num_edges):
    edge_index = random_graph(num_nodes, num_edges) if num_nodes else torch.empty(2, 0).long()
    edge_index = edge_index.unique(dim=1)
    adjacency = adjacency_forms(edge_index, num_nodes)[form]
    out = to_plain_edge_index(adjacency, torch.zeros(num_nodes, 3))
    assert type(out) is torch.Tensor
    assert out.dtype == torch.int64
    assert sort_edge_index(out).equal(sort_edge_index(edge_index))


def test_parallel_edges_of_an_uncoalesced_adjacency_stay():
    index = torch.tensor([[1, 1], [0, 0]])
    adjacency = torch.sparse_coo_tensor(index, torch.ones(2), (5, 5), check_invariants=True)
    assert to_plain_edge_index(adjacency, x).equal(index.flip(0))
    assert not adjacency.is_coalesced()


@pytest.mark.parametrize(
    "adjacency,error,message",
    [
        (None, TypeError, "'edge_index' must be a torch.Tensor, got NoneType"),
        ([[0], [1]], TypeError, "'edge_index' must be a torch.Tensor, got list"),
        (EDGE_INDEX.float(), TypeError, "'edge_index' must have dtype torch.int64"),
        (EDGE_INDEX.bool(), TypeError, "'edge_index' must have dtype torch.int64"),
        (EDGE_INDEX[0], ValueError, r"'edge_index' must have shape \[2, num_edges\], got \[3\]"),
        (EDGE_INDEX.t(), ValueError, r"must have shape \[2, num_edges\], got \[3, 2\]"),
        (EDGE_INDEX + 2, ValueError, "'edge_index' must hold node numbers from 0 .*= 4, got 5"),
        (EDGE_INDEX - 1, ValueError, "'edge_index' must hold node numbers from 0 .*, got -1"),
        (EDGE_INDEX.to("meta"), ValueError, "'edge_index' must be on the device of 'x', cpu"),
        (
            to_torch_csr_tensor(EDGE_INDEX, size=(4, 4)),
            ValueError,
            r"'edge_index' must be of size \[num_nodes, num_nodes\] = \[5, 5\], got \[4, 4\]",
        ),
        (
            EdgeIndex(EDGE_INDEX, sparse_size=(5, 4)),
            ValueError,
            r"'edge_index' must be of size .* = \[5, 5\], got \[5, 4\]",
        ),
    ],
)
def test_bad_adjacency(adjacency, error, message):
    with pytest.raises(error, match=message):
        to_plain_edge_index(adjacency, x)
