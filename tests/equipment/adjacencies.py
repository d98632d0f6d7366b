"""One graph in every form that PyG layers accept."""

import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import (
    to_torch_coo_tensor,
    to_torch_csc_tensor,
    to_torch_csr_tensor,
)


def adjacency_forms(edge_index: Tensor, num_nodes: int) -> dict:
    """The sparse forms hold the transposed adjacency, as PyG layers take it."""
    size = (num_nodes, num_nodes)
    transposed, contiguous = edge_index.flip(0), edge_index.contiguous()
    forms = {
        "edge_index": edge_index,
        "int32": edge_index.int(),
        "EdgeIndex": EdgeIndex(contiguous, sparse_size=size),
        "EdgeIndex_unsized": EdgeIndex(contiguous),
        "EdgeIndex_sorted": EdgeIndex(contiguous, sparse_size=size).sort_by("col").values,
        "coo": to_torch_coo_tensor(transposed, size=size),
        "coo_uncoalesced": torch.sparse_coo_tensor(
            transposed, torch.ones(edge_index.size(1)), size, check_invariants=True
        ),
        "csr": to_torch_csr_tensor(transposed, size=size),
        "csc": to_torch_csc_tensor(transposed, size=size),
        "csc_t": to_torch_csc_tensor(edge_index, size=size).t(),
    }
    if torch_geometric.typing.WITH_TORCH_SPARSE:
        forms["SparseTensor"] = SparseTensor.from_edge_index(transposed, sparse_sizes=size)
    return forms


FORMS = tuple(adjacency_forms(torch.tensor([[0], [1]]), 2))
