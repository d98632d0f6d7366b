r"""The one place that knows in which forms a graph's edges may arrive."""

from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import INDEX_DTYPES, Adj
from torch_geometric.utils import is_sparse, to_edge_index

from groot_graph import checks
from groot_graph.checks import check_device, check_edge_index, check_node_range


def to_plain_edge_index(adjacency: Adj, x: Tensor) -> Tensor:
    r"""Brings any adjacency that PyG layers accept to an edge index.

    Sparse adjacencies are read as PyG's transposed :obj:`adj_t`: a row is a target, a column a
    source. Their edges are numbered as :func:`torch_geometric.utils.to_edge_index` lists them.
    Their values are left out: PyG fills them with ones where a graph has no weights, and ones taken
    for dissimilarities would hide the features from the tree.

    Args:
        adjacency (Tensor or EdgeIndex or SparseTensor or torch.sparse.Tensor): The edges.
        x (Tensor): The node features, which give the number of nodes and the device.

    Returns:
        LongTensor: The edges as sources and targets, of shape :obj:`[2, num_edges]`.

    Raises:
        TypeError: If `adjacency` is none of these or its numbers are no integers.
        ValueError: If its shape, its size, its device or a node number does not fit `x`.
    """
    num_nodes = x.size(0)
    if is_sparse(adjacency):
        _check_size((adjacency.size(0), adjacency.size(1)), num_nodes)
        # `to_edge_index` marks a COO tensor as coalesced in place, so it gets a shallow copy.
        adjacency = adjacency.detach() if isinstance(adjacency, Tensor) else adjacency
        edge_index = to_edge_index(adjacency)[0].flip(0)
    elif isinstance(adjacency, EdgeIndex):
        _check_size(adjacency.sparse_size(), num_nodes)
        edge_index = adjacency.as_tensor()
    else:
        edge_index = adjacency
    if isinstance(edge_index, Tensor) and edge_index.dtype in INDEX_DTYPES:
        edge_index = edge_index.long()
    check_edge_index(edge_index)
    check_device("edge_index", edge_index, "x", x.device)
    if checks.values_are_checked(edge_index):
        check_node_range(edge_index, num_nodes)
    return edge_index


def _check_size(size: tuple, num_nodes: int) -> None:
    if any(found not in (None, num_nodes) for found in size):
        raise ValueError(
            f"'edge_index' must be of size [num_nodes, num_nodes] = [{num_nodes}, {num_nodes}], "
            f"got {list(size)}"
        )
