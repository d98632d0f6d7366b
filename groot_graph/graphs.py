r"""Makers of edges, and one bounded memory of those that are asked for again and again."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from groot_graph.lasting import current_stream, is_captured, makes_plain_tensors

# Of all edges that are remembered at once.
MOST_BYTES = 32 * 2**20


def grid_edge_index(
    height: int,
    width: int,
    connectivity: int = 4,
    num_graphs: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    r"""Edges of pixel grids whose nodes are numbered row by row, each in one direction.

    First all vertical pairs :math:`(r, c)-(r+1, c)` in raster order, then all horizontal pairs
    :math:`(r, c)-(r, c+1)`, then, for :obj:`connectivity=8`, the diagonals
    :math:`(r, c)-(r+1, c+1)` and the diagonals :math:`(r, c+1)-(r+1, c)`; grid after grid.

    The result is shared by all callers of one size: copy it before changing it.
    """

    def make() -> Tensor:
        node = torch.arange(height * width, device=device).view(height, width)
        pairs = [(node[:-1], node[1:]), (node[:, :-1], node[:, 1:])]
        if connectivity == 8:
            pairs += [(node[:-1, :-1], node[1:, 1:]), (node[:-1, 1:], node[1:, :-1])]
        edges = [torch.stack([a.flatten(), b.flatten()]) for a, b in pairs]
        return repeat_graph(torch.cat(edges, dim=1), height * width, num_graphs)

    return _remembered(make, device, "grid", height, width, connectivity, num_graphs)


def raster_edge_index(
    height: int, width: int, by_column: bool = False, device: torch.device | None = None
) -> Tensor:
    r"""Edges of the chain that a raster scan follows over a pixel grid whose nodes are numbered row
    by row: along the rows, each from left to right, or along the columns, each from top to bottom.
    """
    node = torch.arange(height * width, device=device).view(height, width)
    chain = (node.t() if by_column else node).flatten()
    return torch.stack([chain[:-1], chain[1:]])


def text_edge_index(
    num_tokens: int,
    window: int = 3,
    context_length: int | None = None,
    num_graphs: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    r"""Candidate edges between the tokens of texts, each from the earlier to the later token.

    Listed from the last token backwards; each token is joined to its predecessors at distance
    :math:`1, \ldots,` :obj:`window` in this order, and beyond the first :obj:`context_length`
    tokens to its direct predecessor only; text after text.

    The result is shared by all callers of one length: copy it before changing it.
    """

    def make() -> Tensor:
        context_stop = num_tokens if context_length is None else context_length
        token = torch.arange(max(num_tokens - 1, 0), 0, -1, device=device)[:, None]
        distance = torch.arange(1, window + 1, device=device)[None, :]
        is_edge = (distance <= token) & ((distance == 1) | (token < context_stop))
        source = (token - distance)[is_edge]
        edges = torch.stack([source, token.expand_as(is_edge)[is_edge]])
        return repeat_graph(edges, num_tokens, num_graphs)

    return _remembered(make, device, "text", num_tokens, window, context_length, num_graphs)


def add_reverse_edges(edge_index: Tensor) -> Tensor:
    r"""Appends the reverse of every edge after all given ones, in new memory.

    Of two equal edges the lower number wins, so the minimum spanning forest keeps the given
    direction and is the same with and without the reverse edges.
    """
    return torch.cat([edge_index, edge_index.flip(0)], dim=1)


def repeat_graph(edge_index: Tensor, num_nodes: int, num_graphs: int) -> Tensor:
    r"""Edges of `num_graphs` disjoint copies of one graph, graph after graph, in new memory."""
    offset = num_nodes * torch.arange(num_graphs, device=edge_index.device)
    return (edge_index[:, None, :] + offset[None, :, None]).reshape(2, -1)


# The edges by what they were made from, those last asked for at the end.
_edges: dict[Hashable, Tensor] = {}


def _remembered(make: Callable[[], Tensor], device: torch.device | None, *sizes) -> Tensor:
    r"""What was made of the same sizes before, or is made now."""
    if not makes_plain_tensors():
        return make()
    found = torch.empty(0, device=device).device
    key = (*sizes, found, current_stream(found) if found.type == "cuda" else None)
    edges = _edges.pop(key, None)
    if edges is not None:
        _edges[key] = edges
        return edges
    # Not a tensor of inference mode, which autograd refuses to save.
    with torch.inference_mode(False):
        edges = make()
    if not is_captured(found):
        _edges[key] = edges
        _forget_oldest()
    return edges


def _forget_oldest() -> None:
    num_bytes = 0
    # A list, because other threads change the dict meanwhile.
    for key, edges in reversed(list(_edges.items())):
        num_bytes += edges.nbytes
        if num_bytes > MOST_BYTES:
            _edges.pop(key, None)
