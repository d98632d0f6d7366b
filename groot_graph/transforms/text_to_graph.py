r"""A text as a graph of its tokens."""

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from groot_graph.checks import check_positive_int
from groot_graph.graphs import add_reverse_edges, repeat_graph, text_edge_index
from groot_graph.transforms.utils import InputToGraph, add_batch


class TextToGraph(InputToGraph):
    r"""Turns a sequence of tokens, or a batch of sequences of equal length, into the graph of
    candidate edges from which a tree over the text is chosen.

    The first :obj:`context_length` tokens (the prompt) are joined as
    :math:`(t, t+1), \ldots, (t, t+w)`; the tokens after it form a plain chain
    :math:`(t, t+1)`. A context of two tokens or fewer leaves the chain.

    Edges are listed from the last token backwards, for each token first the one to its direct
    predecessor, then the one at distance 2, then 3, as in the published GrootVL code. After all of
    them stands the reverse of each in the same order, as undirected graphs are held in PyG. Ties
    between edges go to the lower edge number, so the minimum spanning forest is that of the edges
    in one direction. Text is scanned :obj:`"up"` a tree rooted at its :obj:`"last"` token.

    From `"GrootVL: Tree Topology is All You Need in State Space Model"
    <https://arxiv.org/abs/2406.02395>`_, section 3.3.

    Args:
        window (int, optional): Largest distance of two joined context tokens :math:`w`, in
            tokens. (default: :obj:`3`)
        context_length (int, optional): The number of tokens, from the first one on, that are
            joined beyond their direct neighbors. :obj:`None` takes them all.
            (default: :obj:`None`)
        key (str, optional): The attribute that holds the tokens where a
            :class:`~torch_geometric.data.Data` is given. It is replaced by the graph, all other
            attributes are kept. (default: :obj:`"input_ids"`)

    Shapes:
        - **input:** integers (token ids) :math:`(T)` or :math:`(B, T)`, a tensor or a list, or
          floating point embeddings :math:`(T, C)` or :math:`(B, T, C)`
        - **output:** :class:`~torch_geometric.data.Data` with

          - **x** :math:`(B \cdot T)` for ids, :math:`(B \cdot T, C)` for embeddings
          - **edge_index** :math:`(2, |\mathcal{E}|)`
          - **batch**, **ptr**: only for a batch of sequences

    Raises:
        TypeError: If the input is neither token ids nor embeddings.
        ValueError: If its shape does not fit.

    Example:
        >>> from groot_graph.transforms import TextToGraph
        >>> data = TextToGraph(window=2)([5, 3, 8, 3])
        >>> data
        Data(x=[4], edge_index=[2, 10])
        >>> data.edge_index[:, :5]
        tensor([[2, 1, 1, 0, 0],
                [3, 3, 2, 2, 1]])
    """

    def __init__(
        self, window: int = 3, context_length: int | None = None, key: str = "input_ids"
    ) -> None:
        check_positive_int("window", window)
        if context_length is not None:
            _check_context_length(context_length)
        self.window = window
        self.context_length = context_length
        self.key = key

    def forward(self, data: Any) -> Data:
        tokens, data = self.take_input(data)
        tokens = _to_tensor(tokens, self.key)
        is_batch = tokens.dim() == (3 if tokens.is_floating_point() else 2)
        num_graphs, num_tokens = tokens.shape[:2] if is_batch else (1, tokens.size(0))

        edges = text_edge_index(num_tokens, self.window, self.context_length, device=tokens.device)
        data.x = tokens.flatten(0, 1) if is_batch else tokens
        data.edge_index = repeat_graph(add_reverse_edges(edges), num_tokens, num_graphs)
        return add_batch(data, num_tokens, num_graphs) if is_batch else data

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(window={self.window}, context_length={self.context_length})"
        )


def _check_context_length(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"'context_length' must be an int or None, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"'context_length' must not be negative, got {value}")


def _to_tensor(tokens: Any, key: str) -> Tensor:
    if isinstance(tokens, (list, tuple)):
        try:
            tokens = torch.tensor(tokens, dtype=torch.long if len(tokens) == 0 else None)
        except (TypeError, ValueError) as error:
            raise TypeError(f"'{key}' must hold token ids of equal length ({error})") from error
    if not isinstance(tokens, Tensor):
        raise TypeError(f"'{key}' must be a Tensor or a list, got {type(tokens).__name__}")
    if tokens.dtype == torch.bool or tokens.is_complex():
        raise TypeError(f"'{key}' must hold token ids or embeddings, got {tokens.dtype}")
    wanted = "[T, C] or [B, T, C]" if tokens.is_floating_point() else "[T] or [B, T]"
    if tokens.dim() not in ((2, 3) if tokens.is_floating_point() else (1, 2)):
        raise ValueError(f"'{key}' must have shape {wanted}, got {list(tokens.shape)}")
    return tokens
