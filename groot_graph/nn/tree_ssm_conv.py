r"""The tree state space layer for any graph."""

import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Parameter
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import Aggregation, Linear, MessagePassing
from torch_geometric.nn.aggr import MultiAggregation
from torch_geometric.typing import Adj, OptTensor

from groot_graph.checks import (
    check_bool,
    check_dt_rank,
    check_edge_length,
    check_features,
    check_forest,
    check_lengths,
    check_number,
    check_positive_int,
    check_shape,
)
from groot_graph.forest import Forest
from groot_graph.nn.adjacency import to_plain_edge_index
from groot_graph.nn.options import told_options
from groot_graph.nn.tree_ssm import TreeSSM
from groot_graph.nn.tree_topology import (
    TreeTopology,
    check_growth,
    metric_of_layer,
    works_in_parts,
)

# Of a graph with more the memory counts for more than the time.
ELEMENTS_IN_PART = 2**24


class TreeSSMConv(MessagePassing):
    r"""The tree state space layer from the `"GrootVL: Tree Topology is All You Need in State Space
    Model" <https://arxiv.org/abs/2406.02395>`_ paper (Section 3.3), for any graph: every node hears
    every node of its connected component, in linear time.

    .. math::
        \mathbf{U} &= \mathbf{X} \mathbf{W}_{\mathrm{in}}, \qquad
        \mathbf{Z} = \mathbf{X} \mathbf{W}_{\mathrm{gate}} + \mathbf{b}_{\mathrm{gate}}

        \mathbf{V} &= \mathrm{SiLU} \left( \mathrm{mix}(\mathbf{U}, \mathcal{E}) \right)

        \mathbf{Y} &= \mathrm{TreeSSM} \left( \mathbf{V}, \mathrm{TreeTopology}(\mathbf{V},
        \mathcal{E}) \right)

        \mathbf{X}^{\prime} &= \left( \mathrm{LayerNorm}(\mathbf{Y}) \odot \mathrm{SiLU}(\mathbf{Z})
        \right) \mathbf{W}_{\mathrm{out}}

    where the depthwise mix is the graph form of a depthwise convolution over an image,

    .. math::
        \mathrm{mix}(\mathbf{U}, \mathcal{E})_i = \mathbf{w}_0 \odot \mathbf{u}_i + \mathbf{w}_1
        \odot \bigoplus_{j \in \mathcal{N}(i)} \mathbf{u}_j + \mathbf{b}.

    :class:`~groot_graph.nn.TreeTopology` grows a spanning forest from the features, without a
    gradient, and :class:`~groot_graph.nn.TreeSSM` passes the states along it. With `edge_steps`,
    the lengths of the forest's edges, the distances of an embedding of the features, slow the
    states down on their way: they fade on the way to a node that is unlike, and the embedding, and
    with it the choice of the tree, is learned.

    The gate begins open, :math:`\mathrm{SiLU}(\mathbf{Z}) = 1` for every node, and the projections
    to :math:`\mathbf{B}` and :math:`\mathbf{C}` begin as the same one, so that a node hears most of
    the nodes that are like it. The mix begins as a node and its neighbors with one state, and as
    the node alone with several.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive the size from the first
            input.
        out_channels (int): Size of each output sample.
        state_size (int, optional): The number of states per inner channel. (default: :obj:`1`)
        expand (int or float, optional): The number of inner channels per output channel.
            (default: :obj:`2`)
        dt_rank (int or str, optional): The rank of the projection to the step sizes; :obj:`"auto"`
            is :obj:`ceil(out_channels / 16)`. (default: :obj:`"auto"`)
        metric (str or Callable, optional): The dissimilarity the tree is grown over, see
            :class:`~groot_graph.nn.TreeTopology`. (default: :obj:`"learned"` with `edge_steps`,
            :obj:`"cosine"` without)
        tree (str, optional): The spanning forest to grow, :obj:`"min"`, :obj:`"max"` or
            :obj:`"random"`. (default: :obj:`"min"`)
        root (str, optional): The root of every tree, :obj:`"first"` or :obj:`"last"`.
            (default: :obj:`"first"`)
        direction (str, optional): Whom a node hears, :obj:`"both"`, :obj:`"up"` or :obj:`"down"`,
            see :class:`~groot_graph.nn.TreeSSM`. (default: :obj:`"both"`)
        aggr (str or [str] or Aggregation, optional): The aggregation of the neighbors in the mix;
            several get one weight each, and begin as their mean. :obj:`None` leaves the mix out.
            (default: :obj:`"mean"`)
        state_norm (bool, optional): If set to :obj:`False`, the states are not normalized, which
            saves time. (default: :obj:`True`)
        bias (bool, optional): If set to :obj:`True`, the in- and out-projection learn an additive
            bias. (default: :obj:`False`)
        edge_steps (bool, optional): If set to :obj:`True`, time passes along an edge in proportion
            to its length, see :class:`~groot_graph.nn.TreeSSM`, and the tree is grown over an
            embedding that is learned by it, unless a `metric` is given. (default: :obj:`False`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

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
        >>> from groot_graph.nn import TreeSSMConv
        >>> conv = TreeSSMConv(16, 32)
        >>> edge_index = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 3]])
        >>> conv(torch.randn(4, 16), edge_index).shape
        torch.Size([4, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        state_size: int = 1,
        expand: float = 2,
        dt_rank: int | str = "auto",
        metric: str | Callable[[Tensor, Tensor], Tensor] | None = None,
        tree: str = "min",
        root: str = "first",
        direction: str = "both",
        aggr: str | list[str] | Aggregation | None = "mean",
        state_norm: bool = True,
        bias: bool = False,
        edge_steps: bool = False,
        **kwargs,
    ):
        _check_in_channels(in_channels)
        check_positive_int("out_channels", out_channels)
        _check_expand(expand, out_channels)
        check_dt_rank(dt_rank)
        _check_aggr(aggr)
        check_bool("bias", bias)
        _check_known(kwargs)
        metric = metric_of_layer(metric, edge_steps)
        super().__init__(aggr, **kwargs)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.inner_channels = int(expand * out_channels)

        projection = Linear if state_size == 1 else _LargeLinear
        self.in_proj = projection(in_channels, self.inner_channels, bias=bias)
        self.gate_proj = _OpenGate(in_channels, self.inner_channels)
        self.topology = TreeTopology(metric, tree, root, self.inner_channels)
        dt_rank = math.ceil(out_channels / 16) if dt_rank == "auto" else dt_rank
        self.ssm = TreeSSM(
            self.inner_channels, state_size, dt_rank, direction, state_norm, edge_steps=edge_steps
        )
        if state_size == 1:
            self.ssm.x_proj = _SlowLinear(self.inner_channels, self.ssm.dt_rank + 2, bias=False)
        self.out_norm = LayerNorm(self.inner_channels)
        self.out_proj = Linear(self.inner_channels, out_channels, bias=bias)
        if aggr is not None:
            self.weight_self = Parameter(torch.empty(self.inner_channels))
            self.weight_neighbor = Parameter(torch.empty(self._num_aggrs(), self.inner_channels))
            self.bias_mix = Parameter(torch.empty(self.inner_channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module, to what the description of the layer says
        that they begin with.
        """
        super().reset_parameters()
        self.in_proj.reset_parameters()
        self.gate_proj.reset_parameters()
        self.topology.reset_parameters()
        self.ssm.reset_parameters()
        self.out_norm.reset_parameters()
        self.out_proj.reset_parameters()
        if self.aggr_module is not None:
            # Random weights drown what a node holds; to be found by it, a node must hold it alone.
            has_one_state = self.ssm.state_size == 1
            self.weight_self.fill_(1 if has_one_state else 1 / _LargeLinear.factor)
            self.weight_neighbor.fill_(1 / self._num_aggrs() if has_one_state else 0)
            self.bias_mix.fill_(0)
        # Nodes find their like sooner than with two random projections, and sooner still where the
        # product of B and C is that of what two nodes hold.
        B, C = self.ssm.x_proj.weight[self.ssm.dt_rank :].chunk(2)
        if self.ssm.state_size > 1:
            # In float32, since half precision cannot be made orthogonal.
            B.copy_(torch.nn.init.orthogonal_(torch.empty_like(B, dtype=torch.float32)))
        C.copy_(B)

    def forward(
        self,
        x: Tensor,
        edge_index: Adj | None = None,
        edge_weight: OptTensor = None,
        forest: Forest | None = None,
        root: str | Tensor | None = None,
        edge_length: OptTensor = None,
    ) -> Tensor:
        r"""Runs the layer.

        Args:
            x (Tensor): The node features, of shape :obj:`[num_nodes, in_channels]`.
            edge_index (Tensor or EdgeIndex or SparseTensor or torch.sparse.Tensor, optional): The
                edges of the mix and the candidate edges of the tree. Needed unless `forest` is
                given and the mix is left out by :obj:`aggr=None`. A sparse adjacency is PyG's
                transposed :obj:`adj_t`; its edges are numbered as
                :func:`torch_geometric.utils.to_edge_index` lists them, and its values are not read.
                (default: :obj:`None`)
            edge_weight (Tensor, optional): The dissimilarities the tree is grown over in place of
                the metric, of shape :obj:`[num_edges]`; with `edge_steps` also the lengths, and so
                not negative. They do not weigh the mix. (default: :obj:`None`)
            forest (Forest, optional): The forest to pass the states along, in place of one grown
                from the features. (default: :obj:`None`)
            root (str or LongTensor, optional): The root of every tree for this call:
                :obj:`"first"`, :obj:`"last"` or one node per tree. (default: the `root` of the
                layer)
            edge_length (Tensor, optional): The length of the edge from every node to its parent in
                the given `forest`, of shape :obj:`[num_nodes]`, for a layer with `edge_steps`.
                (default: measured by the metric)

        Returns:
            Tensor: The output, of shape :obj:`[num_nodes, out_channels]`.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If `x` is a pair of a bipartite graph, a shape or a device does not fit, a
                node number is out of range, `edge_index` is missing, `edge_weight` or `root`
                come with a `forest`, `edge_length` without one or without `edge_steps`, or a length
                is negative.
            NotANumberError: If `x` or `edge_weight` make the weight of an edge NaN, or a length is.
        """
        self._check_x(x)
        self._check_combination(edge_index, edge_weight, forest, root, edge_length)
        if forest is not None:
            check_forest(forest, x.size(0), x.device, "x")
        if edge_length is not None:
            check_edge_length(edge_length, x, "x")
        if edge_index is not None:
            edge_index = to_plain_edge_index(edge_index, x)
            _check_is_no_batch(edge_weight, x, edge_index)
            check_growth(edge_index, edge_weight, root)
        if edge_weight is not None and self.ssm.edge_steps:
            check_lengths("edge_weight", edge_weight)

        u, z = self.in_proj(x), self.gate_proj(x)
        is_large = works_in_parts(u) and u.numel() > ELEMENTS_IN_PART
        activate = partial(_recomputed, self._activate) if is_large else self._activate
        u = activate(u, edge_index)
        if forest is None:
            assert edge_index is not None  # as checked where no forest is given
            weight_name = "x" if edge_weight is None else "edge_weight"
            grown_from = u, edge_index, edge_weight, root, weight_name
            if self.ssm.edge_steps:
                forest, edge_length = self.topology.grow_and_measure(*grown_from)
            else:
                forest = self.topology.grow(*grown_from)
        elif self.ssm.edge_steps and edge_length is None:
            edge_length = self.topology.measure(u, forest)
        edge_mask = self._mask_of_parents(edge_index, forest) if self.explain else None
        y = self.ssm(u, forest, edge_length, edge_mask)
        return self._gate_in_parts(y, z) if is_large else self._gate(y, z)

    def _activate(self, u: Tensor, edge_index: Adj | None) -> Tensor:
        return F.silu(u if self.aggr_module is None else self._mix(u, edge_index))

    def _gate(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(self.out_norm(y) * F.silu(z))

    def _gate_in_parts(self, y: Tensor, z: Tensor) -> Tensor:
        size = max(1, ELEMENTS_IN_PART // self.inner_channels)
        return torch.cat(list(map(partial(_recomputed, self._gate), y.split(size), z.split(size))))

    def message(self, u_j: Tensor) -> Tensor:
        return u_j

    def _mix(self, u: Tensor, edge_index: Adj) -> Tensor:
        neighbors = self.propagate(edge_index, u=u)
        width = self.weight_neighbor.numel()
        check_shape("aggr(x)", neighbors, (u.size(0), width), "[num_nodes, inner_channels]")
        neighbors = neighbors.view(-1, *self.weight_neighbor.shape) * self.weight_neighbor
        return self.weight_self * u + neighbors.sum(dim=1) + self.bias_mix

    def _mask_of_parents(self, edge_index: OptTensor, forest: Forest) -> OptTensor:
        r"""An explainer's mask of the edge between every node and its parent: the mean of the edges
        that join them, in either direction.
        """
        if edge_index is None:
            raise ValueError("'edge_index' must be given where a model is explained, got None")
        mask = self._mask_of_edges(edge_index, forest.num_nodes)
        source, target = edge_index
        is_up, is_down = forest.parent[source] == target, forest.parent[target] == source
        child = torch.where(is_up, source, target)
        joins = (is_up | is_down) & (source != target)
        count = mask.new_zeros(forest.num_nodes).index_add(0, child, joins.to(mask.dtype))
        total = torch.zeros_like(count).index_add(0, child, torch.where(joins, mask, 0))
        return torch.where(count > 0, total / count.clamp(min=1), 1)

    def _mask_of_edges(self, edge_index: Adj, num_nodes: int) -> Tensor:
        mask = self._edge_mask
        if mask is None:
            raise ValueError(
                f"'{self.__class__.__name__}' is explained by a mask of its edges, got none: take "
                "GNNExplainer, PGExplainer or CaptumExplainer. GraphMaskExplainer replaces "
                "messages, and a state along the tree is none"
            )
        mask = mask.sigmoid() if self._apply_sigmoid else mask
        num_edges = edge_index.size(1)
        if mask.numel() != num_edges:
            # A model has added self-loops, as PyG does: in the place of those that were there.
            mask = torch.cat([mask[self._loop_mask], mask.new_ones(num_nodes)])
        if mask.numel() != num_edges:
            raise ValueError(
                "'edge_index' must hold the edges that are explained, or these with self-loops "
                f"added, got {num_edges} edges and a mask of {self._edge_mask.numel()}"
            )
        return mask

    def _num_aggrs(self) -> int:
        if not isinstance(self.aggr_module, MultiAggregation):
            return 1
        return self.aggr_module.get_out_channels(self.inner_channels) // self.inner_channels

    def __repr__(self) -> str:
        ssm, topology = self.ssm, self.topology
        is_usual = topology.metric == metric_of_layer(None, ssm.edge_steps)
        has_auto_rank = ssm.dt_rank == math.ceil(self.out_channels / 16)
        options = {
            "state_size": ssm.state_size,
            "expand": self.inner_channels / self.out_channels,
            "dt_rank": "auto" if has_auto_rank else ssm.dt_rank,
            "metric": None if is_usual else topology.metric,
            "tree": topology.tree,
            "root": topology.root,
            "direction": ssm.direction,
            "aggr": self.aggr_module if str(self.aggr).endswith(")") else self.aggr,
            "state_norm": ssm.state_norm is not None,
            "bias": self.in_proj.bias is not None,
            "edge_steps": ssm.edge_steps,
        }
        name, told = self.__class__.__name__, told_options(TreeSSMConv, options)
        return f"{name}({self.in_channels}, {self.out_channels}{told})"

    def _check_x(self, x: Tensor) -> None:
        name = self.__class__.__name__
        if isinstance(x, (tuple, list)):  # torch.compile of torch 2.6 knows no union here
            raise ValueError(
                f"'{name}' does not support bipartite message passing: 'x' must be one tensor of "
                f"shape [num_nodes, in_channels], got a {type(x).__name__} of {len(x)}. Use it on "
                f"edge types between nodes of one type, or on 'HeteroData.to_homogeneous()'"
            )
        in_channels = self.in_proj.in_channels
        check_features("x", x, None if in_channels == -1 else in_channels)

    def _check_combination(self, edge_index, edge_weight, forest, root, edge_length) -> None:
        if edge_index is None and (forest is None or self.aggr_module is not None):
            raise ValueError(
                "'edge_index' must be given, got None: it can be left out only where a 'forest' is "
                "given and the layer has aggr=None"
            )
        for name, value in (("edge_weight", edge_weight), ("root", root)):
            if forest is not None and value is not None:
                raise ValueError(f"'{name}' must be None where a 'forest' is given, got {value}")
        if edge_length is None:
            return
        if forest is None or not self.ssm.edge_steps:
            raise ValueError(
                "'edge_length' must be None unless a 'forest' is given and the layer has "
                "edge_steps=True; the lengths of candidate edges are given as 'edge_weight'"
            )


# What other layers have, and what stands in its place here.
_OTHER_LAYERS = {
    "heads": "'state_size' says how many states a channel has",
    "concat": "a layer has no heads",
    "dropout": "put a torch.nn.Dropout behind the layer, or take 'groot_graph.nn.TreeGNN'",
    "act": "put an activation behind the layer; it holds two of its own",
    "norm": "put a normalization before the layer, or take 'groot_graph.nn.TreeGNN'",
    "edge_dim": "give one dissimilarity per edge as 'edge_weight' of the call",
    "improved": "the mix of neighbors is the 'aggr' of them",
    "cached": "give the 'forest' of the call, which is then not grown anew",
    "add_self_loops": "the mix has a weight for the node itself",
    "normalize": "'aggr' says how neighbors are put together",
    "root_weight": "the mix has a weight for the node itself",
    "project": "the layer projects its input",
}


class _LargeLinear(Linear):
    r"""A projection whose weights begin larger, and so turn less in a step of Adam."""

    factor = 6**0.5

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if not is_lazy(self.weight):
            self.weight.mul_(self.factor)


class _SlowLinear(torch.nn.Linear):
    r"""A projection to so few numbers that all nodes' would change at once in a step of Adam: its
    weights are held ten times as large as they count, and so turn a tenth as much.
    """

    factor = 0.1

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.div_(self.factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * super().forward(x)


class _OpenGate(Linear):
    r"""A projection that begins as the constant whose SiLU is one."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if not is_lazy(self.weight):
            self.weight.fill_(0)
        self.bias.fill_(1.2784645427610738)


def _recomputed(function: Callable[..., Tensor], *args) -> Tensor:
    r"""What a function returns; what it holds meanwhile is found again in the backward pass."""
    return checkpoint(function, *args, use_reentrant=False)


def _check_known(options: dict) -> None:
    known = inspect.signature(MessagePassing.__init__).parameters
    for name in options:
        if name not in known:
            hint = _OTHER_LAYERS.get(name, "its arguments are those of its description")
            raise TypeError(f"'TreeSSMConv' has no argument '{name}': {hint}")


def _check_is_no_batch(edge_weight: OptTensor, x: Tensor, edge_index: Tensor) -> None:
    if not isinstance(edge_weight, Tensor) or edge_weight.dtype != torch.int64:
        return
    if edge_weight.dim() == 1 and edge_index.size(1) != edge_weight.size(0) == x.size(0):
        raise ValueError(
            f"'edge_weight' must have shape [num_edges] = [{edge_index.size(1)}], got a number per "
            "node; a batch vector is not needed, since the graphs of a batch are trees of their own"
        )


def _check_in_channels(in_channels: int) -> None:
    if isinstance(in_channels, tuple | list):
        raise ValueError(
            f"'in_channels' must be one int, since 'TreeSSMConv' does not support bipartite "
            f"message passing, got {in_channels}"
        )
    if in_channels != -1:
        check_positive_int("in_channels", in_channels)


def _check_expand(expand: float, out_channels: int) -> None:
    check_number("expand", expand)
    if not 1 <= expand * out_channels < math.inf:
        raise ValueError(
            f"'expand' must make at least one inner channel of {out_channels} output channels, "
            f"got {expand}"
        )


def _check_aggr(aggr) -> None:
    if aggr is not None and not isinstance(aggr, str | list | tuple | Aggregation):
        raise TypeError(
            f"'aggr' must be a str, a list, an Aggregation or None, got {type(aggr).__name__}"
        )
