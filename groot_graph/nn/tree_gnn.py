r"""A network of tree state space layers, as PyG has models."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Identity, ModuleList
from torch_geometric.nn import JumpingKnowledge, Linear, SAGEConv
from torch_geometric.nn.resolver import normalization_resolver
from torch_geometric.typing import Adj, OptTensor

from groot_graph.checks import check_bool, check_choice, check_positive_int
from groot_graph.nn.options import told_options
from groot_graph.nn.tree_ssm_conv import TreeSSMConv

JUMPING_KNOWLEDGE = ("last", "cat", "max", "lstm")


class TreeGNN(torch.nn.Module):
    r"""A graph neural network of :class:`~groot_graph.nn.TreeSSMConv` layers, in which every node
    hears its neighbors through a matrix, and every node of its connected component along a tree.

    .. math::
        \mathbf{X}^{(0)} &= \mathbf{X} \mathbf{W}_{\mathrm{in}} + \mathbf{b}_{\mathrm{in}}

        \mathbf{X}^{(l + 1)} &= \mathbf{X}^{(l)} + \mathrm{dropout} \big(
        \mathrm{SAGEConv}(\mathbf{N}^{(l)}, \mathcal{E}) +
        \mathrm{TreeSSMConv}(\mathbf{N}^{(l)}, \mathcal{E}) \big), \qquad
        \mathbf{N}^{(l)} = \mathrm{norm}(\mathbf{X}^{(l)})

        \mathbf{X}^{\prime} &= \mathrm{norm}(\mathbf{X}^{(L)}) \mathbf{W}_{\mathrm{out}} +
        \mathbf{b}_{\mathrm{out}}

    Its arguments are those of PyG's models, such as :class:`torch_geometric.nn.models.GCN`. A layer
    needs no activation after it, since it holds two.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive the size from the first
            input.
        hidden_channels (int): Size of each hidden sample.
        num_layers (int): The number of layers.
        out_channels (int, optional): If not :obj:`None`, the size of each output sample, to which a
            last linear layer leads. (default: :obj:`None`, `hidden_channels` and no such layer)
        dropout (float, optional): The dropout probability, of what every layer adds.
            (default: :obj:`0.0`)
        norm (str or Callable, optional): The normalization before every layer and after the last,
            as PyG's models name it; :obj:`None` for none. (default: :obj:`"layer_norm"`, of every
            node by itself)
        norm_kwargs (dict, optional): Arguments of the normalization.
            (default: :obj:`{"mode": "node"}` for :obj:`"layer_norm"`)
        jk (str, optional): The jumping knowledge of all layers, :obj:`"cat"`, :obj:`"max"` or
            :obj:`"lstm"`, or of the last one, :obj:`"last"`. (default: :obj:`None`, as
            :obj:`"last"`)
        residual (bool, optional): If set to :obj:`False`, layers are not added to their input.
            (default: :obj:`True`)
        local (bool, optional): If set to :obj:`False`, layers have no
            :class:`~torch_geometric.nn.conv.SAGEConv` beside the tree, and hear their neighbors by
            the depthwise mix of :class:`~groot_graph.nn.TreeSSMConv`. (default: :obj:`True`)
        **kwargs (optional): Arguments of :class:`~groot_graph.nn.TreeSSMConv`, such as
            :obj:`edge_steps=True`.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F_{in})`,
          edge indices :math:`(2, |\mathcal{E}|)`,
          dissimilarities :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, F_{out})`

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size is below one or a name is unknown.

    Example:
        >>> import torch
        >>> from groot_graph.nn import TreeGNN
        >>> model = TreeGNN(16, 32, num_layers=2, out_channels=4)
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> model(torch.randn(3, 16), edge_index).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        norm: str | Callable | None = "layer_norm",
        norm_kwargs: dict[str, Any] | None = None,
        jk: str | None = None,
        residual: bool = True,
        local: bool = True,
        **kwargs,
    ):
        if in_channels != -1:
            check_positive_int("in_channels", in_channels)
        check_positive_int("hidden_channels", hidden_channels)
        check_positive_int("num_layers", num_layers)
        if out_channels is not None:
            check_positive_int("out_channels", out_channels)
        if jk is not None:
            check_choice("jk", jk, JUMPING_KNOWLEDGE)
        check_bool("residual", residual)
        check_bool("local", local)
        super().__init__()
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.out_channels = hidden_channels if out_channels is None else out_channels
        self.residual = residual

        self.lin_in = Linear(in_channels, hidden_channels)
        layer = LocalAndTree if local else TreeSSMConv
        self.convs = ModuleList(
            layer(hidden_channels, hidden_channels, **kwargs) for _ in range(num_layers)
        )
        self.norms = ModuleList(_norms(norm, norm_kwargs, hidden_channels, num_layers + 1))
        self.dropout = Dropout(dropout)
        self.jk = None
        if jk not in (None, "last"):
            self.jk = JumpingKnowledge(jk, hidden_channels, num_layers)
        width = num_layers * hidden_channels if jk == "cat" else hidden_channels
        self.lin_out = None
        if out_channels is not None or width != hidden_channels:
            self.lin_out = Linear(width, self.out_channels)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        modules = [self.lin_in, *self.convs, *self.norms, self.jk, self.lin_out]
        for module in modules:
            _reset(module)

    def forward(
        self,
        x: Tensor,
        edge_index: Adj,
        edge_weight: OptTensor = None,
        batch: OptTensor = None,
        batch_size: int | None = None,
    ) -> Tensor:
        r"""Runs the network.

        Args:
            x (Tensor): The node features, of shape :obj:`[num_nodes, in_channels]`.
            edge_index (Tensor or EdgeIndex or SparseTensor or torch.sparse.Tensor): The edges.
            edge_weight (Tensor, optional): The *dissimilarities* the trees are grown over, of shape
                :obj:`[num_edges]`; like nodes have a small one. They weigh no message. Similarities
                are given with another sign, as :obj:`-edge_weight`. (default: those of the
                features)
            batch (LongTensor, optional): The graph of every node, for a `norm` that asks for it;
                trees need none. (default: :obj:`None`)
            batch_size (int, optional): The number of graphs, for a `norm` that asks for it.
                (default: :obj:`None`)

        Returns:
            Tensor: The output, of shape :obj:`[num_nodes, out_channels]`.
        """
        x = self.lin_in(x)
        outputs = []
        for conv, norm in zip(self.convs, self.norms, strict=False):
            change = self.dropout(conv(norm(x, batch, batch_size), edge_index, edge_weight))
            x = x + change if self.residual else change
            outputs.append(x)
        last = self.norms[-1]
        if self.jk is not None:
            x = self.jk([last(output, batch, batch_size) for output in outputs])
        else:
            x = last(x, batch, batch_size)
        return x if self.lin_out is None else self.lin_out(x)

    def __repr__(self) -> str:
        options = {"residual": self.residual, "local": isinstance(self.convs[0], LocalAndTree)}
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"num_layers={self.num_layers}{told_options(TreeGNN, options)})"
        )


class LocalAndTree(torch.nn.Module):
    r"""Neighbors through a matrix, and all nodes along a tree."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs):
        super().__init__()
        self.local = SAGEConv(in_channels, out_channels)
        self.tree = TreeSSMConv(in_channels, out_channels, **{"aggr": None, "expand": 1, **kwargs})

    def reset_parameters(self) -> None:
        self.local.reset_parameters()
        self.tree.reset_parameters()

    def forward(self, x: Tensor, edge_index: Adj, edge_weight: OptTensor = None) -> Tensor:
        return self.local(x, edge_index) + self.tree(x, edge_index, edge_weight)


class _Norm(torch.nn.Module):
    r"""One of PyG's normalizations, told of the graphs of a batch where it asks for them."""

    def __init__(self, norm: torch.nn.Module):
        super().__init__()
        self.norm = norm
        self.asks_for_batch = "batch" in inspect.signature(norm.forward).parameters

    def reset_parameters(self) -> None:
        _reset(self.norm)

    def forward(self, x: Tensor, batch: OptTensor, batch_size: int | None) -> Tensor:
        return self.norm(x, batch, batch_size) if self.asks_for_batch else self.norm(x)


def _reset(module: torch.nn.Module | None) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def _norms(
    norm: str | Callable | None, kwargs: dict[str, Any] | None, channels: int, count: int
) -> list[_Norm]:
    if norm is None:
        return [_Norm(Identity()) for _ in range(count)]
    if norm == "layer_norm" and kwargs is None:
        # That of a whole graph would tie the nodes of a batch without a `batch`.
        kwargs = {"mode": "node"}
    first = normalization_resolver(norm, channels, **(kwargs or {}))
    return [_Norm(copy.deepcopy(first)) for _ in range(count)]
