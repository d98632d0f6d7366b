r"""The selective state space model along a given forest."""

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Linear, Parameter

from groot_graph.checks import (
    check_bool,
    check_direction,
    check_dt_rank,
    check_edge_length,
    check_edge_mask,
    check_features,
    check_forest,
    check_number,
    check_positive_int,
)
from groot_graph.forest import Forest
from groot_graph.nn.options import told_options
from groot_graph.ops.dtypes import autocast_off
from groot_graph.ops.selective_tree_scan.api import trusted_selective_tree_scan
from groot_graph.ops.tree_scan.api import trusted_tree_scan

# Lengths begin to count for little, so that states go as far as without them.
INITIAL_SCALE = 0.05

# u, delta, transition_delta, A, B, C, D
Operands: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class _SeenNodes(Forest):
    r"""Nodes without edges, which are told the transitions that a call computes."""

    transition: Tensor

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "Forest":
        # Itself: what offloads a module hands it moved arguments, and the caller keeps these nodes.
        moved = super().to(device, non_blocking)
        self.order, self.parent = moved.order, moved.parent
        return self

    def see(self, operands: Operands) -> None:
        _, _, transition_delta, A, *_ = operands
        self.transition = (transition_delta.unsqueeze(2) * A).exp()


class TreeSSM(torch.nn.Module):
    r"""The selective state space model along a given forest from the `"GrootVL: Tree Topology is
    All You Need in State Space Model" <https://arxiv.org/abs/2406.02395>`_ paper (Section 3.2,
    Algorithm 1), with the parameters of `"Mamba" <https://arxiv.org/abs/2312.00752>`_.

    .. math::
        \mathbf{\Delta}_i &= \mathrm{softplus} \left( \mathbf{W}_{\Delta} \mathbf{W}_1 \mathbf{u}_i
        + \mathbf{b}_{\Delta} \right), \qquad
        \mathbf{B}_i = \mathbf{W}_2 \mathbf{u}_i, \qquad
        \mathbf{C}_i = \mathbf{W}_3 \mathbf{u}_i

        \mathbf{h}_i &= \sum_j \Big( \prod_{k \in \mathrm{path}(i, j)}
        e^{\mathbf{\Delta}_k \mathbf{A}} \Big) \mathbf{\Delta}_j \mathbf{B}_j \mathbf{u}_j, \qquad
        \mathbf{A} = - e^{\mathbf{A}_{\log}}

        \mathbf{y}_i &= \mathbf{C}_i \, \mathrm{norm}(\mathbf{h}_i) + \mathbf{D} \mathbf{u}_i

    where an edge of the path is named by its child, and :math:`j` runs over the whole tree of
    :math:`i`, over its subtree, or over its ancestors, as `direction` says. The scan runs in
    :obj:`torch.float32` at least, also under autocast.

    With `edge_steps`, time passes along an edge in proportion to its length :math:`\ell`: a state
    crosses near nodes freely and fades on the way to a far one. The transition of the edge from
    :math:`k` to its parent is then

    .. math::
        e^{(\mathbf{\Delta}_k + \mathrm{softplus}(\boldsymbol{\sigma}) \, \ell_k) \mathbf{A}}
        \qquad \text{in place of} \qquad e^{\mathbf{\Delta}_k \mathbf{A}},

    and through the lengths a gradient reaches whatever the tree was chosen by.

    Args:
        channels (int): Size of each node's input and output.
        state_size (int, optional): The number of states per channel. (default: :obj:`1`)
        dt_rank (int or str, optional): The rank of the projection to :math:`\mathbf{\Delta}`;
            :obj:`"auto"` is :obj:`ceil(channels / 16)`. (default: :obj:`"auto"`)
        direction (str, optional): Whom a node hears: its whole tree (:obj:`"both"`), its subtree
            (:obj:`"up"`) or its ancestors (:obj:`"down"`). (default: :obj:`"both"`)
        state_norm (bool, optional): If set to :obj:`True`, the states :math:`\mathbf{h}` pass a
            layer normalization over the channels; otherwise :math:`\mathrm{norm}` is the identity.
            (default: :obj:`False`)
        dt_min (float, optional): The least initial :math:`\mathbf{\Delta}`. (default: :obj:`0.001`)
        dt_max (float, optional): The greatest initial :math:`\mathbf{\Delta}`. (default:
            :obj:`0.1`)
        dt_init_floor (float, optional): The bound below which no initial :math:`\mathbf{\Delta}`
            falls. (default: :obj:`1e-4`)
        edge_steps (bool, optional): If set to :obj:`True`, the lengths of edges, which
            :meth:`forward` then needs, add to the steps, each channel's weighed by a learned
            :math:`\boldsymbol{\sigma}`. (default: :obj:`False`)

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`, a :class:`groot_graph.Forest` of
          :math:`|\mathcal{V}|` nodes, lengths of edges :math:`(|\mathcal{V}|)` with `edge_steps`
        - **output:** node features :math:`(|\mathcal{V}|, F)`

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size is below one, a name is unknown, or the bounds of
            :math:`\mathbf{\Delta}` do not satisfy :obj:`0 < dt_min <= dt_max` and
            :obj:`dt_init_floor > 0`.

    Example:
        >>> import torch
        >>> from groot_graph import root_forest
        >>> from groot_graph.nn import TreeSSM
        >>> forest = root_forest(torch.tensor([[0, 1, 1], [1, 2, 3]]))
        >>> ssm = TreeSSM(16, state_size=4)
        >>> ssm(torch.randn(4, 16), forest).shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        channels: int,
        state_size: int = 1,
        dt_rank: int | str = "auto",
        direction: str = "both",
        state_norm: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        edge_steps: bool = False,
    ):
        check_positive_int("channels", channels)
        check_positive_int("state_size", state_size)
        check_dt_rank(dt_rank)
        check_direction(direction)
        check_bool("state_norm", state_norm)
        check_bool("edge_steps", edge_steps)
        _check_dt_bounds(dt_min, dt_max, dt_init_floor)
        super().__init__()
        self.channels = channels
        self.state_size = state_size
        self.dt_rank = math.ceil(channels / 16) if isinstance(dt_rank, str) else dt_rank
        self.direction = direction
        self.dt_min = dt_min
        self.dt_max = dt_max
        self.dt_init_floor = dt_init_floor

        self.x_proj = Linear(channels, self.dt_rank + 2 * state_size, bias=False)
        self.dt_proj = Linear(self.dt_rank, channels)
        self.A_log = Parameter(torch.empty(channels, state_size))
        self.D = Parameter(torch.empty(channels))
        norm = _StateNorm if state_size == 1 else _ReadStateNorm
        self.state_norm = norm(channels) if state_norm else None
        self.edge_steps = edge_steps
        if edge_steps:
            self.sigma = Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module, :math:`\mathbf{\Delta}` as in Mamba:
        log-uniform between `dt_min` and `dt_max`. :math:`\mathrm{softplus}(\boldsymbol{\sigma})` is
        0.05 for every channel. :math:`\mathbf{A}` is :math:`-1` for every state:
        with Mamba's :math:`-1, -2, \ldots` the later states forget within a few edges.
        """
        self.x_proj.reset_parameters()
        torch.nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        log_dt = torch.empty_like(self.dt_proj.bias)
        log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        self.dt_proj.bias.copy_(_inverse_softplus(log_dt.exp().clamp(min=self.dt_init_floor)))
        self.A_log.zero_()
        self.D.fill_(1.0)
        if self.state_norm is not None:
            self.state_norm.reset_parameters()
        if self.edge_steps:
            self.sigma.fill_(math.log(math.expm1(INITIAL_SCALE)))

    def forward(
        self,
        u: Tensor,
        forest: Forest,
        edge_length: Tensor | None = None,
        edge_mask: Tensor | None = None,
    ) -> Tensor:
        r"""Passes the states along the forest.

        Args:
            u (Tensor): The node features, of shape :obj:`[num_nodes, channels]`.
            forest (Forest): The forest of the nodes.
            edge_length (Tensor, optional): The length of the edge from every node to its parent, of
                shape :obj:`[num_nodes]`, not negative; a root's is not read. Needed with
                `edge_steps`, and refused without. (default: :obj:`None`)
            edge_mask (Tensor, optional): How much of the edge from every node to its parent is
                there, from zero to one, of shape :obj:`[num_nodes]`: what an explainer asks with.
                A transition is taken times :math:`m_k^{|\mathbf{A}|}`. (default: all of it)

        Returns:
            Tensor: The output, of the shape and dtype of `u`.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape or a device does not fit, the forest has another number of nodes,
                `edge_length` does not go with the layer, or a length is negative.
            NotANumberError: If a length is NaN. Values on a GPU are read only under
                :func:`torch_geometric.set_debug`.
        """
        check_features("u", u, self.channels)
        check_forest(forest, u.size(0), u.device, "u")
        if self.edge_steps or edge_length is not None:
            self._check_edge_length(edge_length, u)
        if edge_mask is not None:
            check_edge_mask(edge_mask, u)
        operands = self._operands(u, edge_length, edge_mask)
        if isinstance(forest, _SeenNodes):
            forest.see(operands)
        return self._scan(*operands, forest).to(u.dtype)

    def transition(
        self, u: Tensor, edge_length: Tensor | None = None, edge_mask: Tensor | None = None
    ) -> Tensor:
        r"""The transition of the edge from every node to its parent: how much of a state passes.

        Args:
            u (Tensor): The node features, of shape :obj:`[num_nodes, channels]`.
            edge_length (Tensor, optional): See :meth:`forward`. (default: :obj:`None`)
            edge_mask (Tensor, optional): See :meth:`forward`. (default: :obj:`None`)

        Returns:
            Tensor: The transitions, of shape :obj:`[num_nodes, channels, state_size]`.

        Raises:
            TypeError: If an argument is not a floating point tensor.
            ValueError: If a shape does not fit, or `edge_length` does not go with the layer.
        """
        check_features("u", u, self.channels)
        node = torch.arange(u.size(0), device=u.device)
        seen = _SeenNodes(node, node)
        # Through the call, which puts weights in their place that are kept elsewhere.
        self(u, seen, edge_length, edge_mask)
        return seen.transition

    def no_weight_decay(self) -> set[str]:
        r"""The names of the parameters that an optimizer should not decay, beside biases and the
        weights of norms: :obj:`A_log` and :obj:`sigma`, which zero does not make small, and
        :obj:`D`.
        """
        # By name, because a mark on a parameter does not outlive its copy.
        return {"A_log", "D", "sigma"} if self.edge_steps else {"A_log", "D"}

    def forest_and_transition(
        self,
        u: Tensor,
        forest: Forest,
        edge_length: Tensor | None = None,
        edge_mask: Tensor | None = None,
    ) -> tuple[Forest, Tensor]:
        r"""What the states pass along, for :func:`groot_graph.analysis.scan_of_layer`: the forest,
        and the :meth:`transition` of every node, of shape
        :obj:`[num_nodes, channels * state_size]`.
        """
        return forest, self.transition(u, edge_length, edge_mask).flatten(1)

    def _operands(
        self, u: Tensor, edge_length: Tensor | None, edge_mask: Tensor | None
    ) -> Operands:
        sizes = [self.dt_rank, self.state_size, self.state_size]
        delta, B, C = self.x_proj(u).split(sizes, dim=-1)
        delta = self.dt_proj(delta)
        dtype = torch.promote_types(u.dtype, torch.float32)
        delta = transition_delta = F.softplus(delta.to(dtype))
        if edge_length is not None:
            scale = F.softplus(self.sigma.to(dtype))
            # An outer product, whose gradients are two products of a matrix and a vector.
            with autocast_off(u.device):
                transition_delta = torch.addr(delta, edge_length.to(dtype), scale)
        if edge_mask is not None:
            # An edge that is hardly there is a long one.
            least = torch.finfo(dtype).tiny
            missing = -edge_mask.to(dtype).clamp(min=least).log().unsqueeze(1)
            transition_delta = transition_delta + missing
        A, D = -self.A_log.to(dtype).exp(), self.D.to(dtype)
        return u.to(dtype), delta, transition_delta, A, B.to(dtype), C.to(dtype), D

    def _scan(
        self,
        u: Tensor,
        delta: Tensor,
        transition_delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        forest: Forest,
    ) -> Tensor:
        norm, own = self.state_norm, None if transition_delta is delta else transition_delta
        if norm is None:
            return trusted_selective_tree_scan(u, delta, A, B, C, forest, D, self.direction, own)
        # One state per channel takes no more memory than y, so that PyTorch can normalize it.
        if self.state_size == 1:
            transition = (transition_delta * A.t()).exp()
            h = trusted_tree_scan(delta * u * B, transition, forest, self.direction)
            return C * norm(h) + D * u
        # Several are normalized as they are scanned, never all in memory.
        y = trusted_selective_tree_scan(
            u, delta, A, B, C, forest, None, self.direction, own, norm.eps
        )
        return norm(y, C) + D * u

    def _check_edge_length(self, edge_length: Tensor | None, u: Tensor) -> None:
        if not self.edge_steps:
            raise ValueError(
                "'edge_length' must be None where the layer has edge_steps=False, got a "
                f"{type(edge_length).__name__}"
            )
        check_edge_length(edge_length, u, "u")

    def __repr__(self) -> str:
        has_auto_rank = self.dt_rank == math.ceil(self.channels / 16)
        options = {
            "state_size": self.state_size,
            "dt_rank": "auto" if has_auto_rank else self.dt_rank,
            "direction": self.direction,
            "state_norm": self.state_norm is not None,
            "dt_min": self.dt_min,
            "dt_max": self.dt_max,
            "dt_init_floor": self.dt_init_floor,
            "edge_steps": self.edge_steps,
        }
        return f"{self.__class__.__name__}({self.channels}{told_options(TreeSSM, options)})"


class _StateNorm(LayerNorm):
    r"""The normalization of one state per channel, in the dtype of the states."""

    def forward(self, h: Tensor) -> Tensor:
        weight, bias = self.weight.to(h.dtype), self.bias.to(h.dtype)
        return F.layer_norm(h, self.normalized_shape, weight, bias, self.eps)


class _ReadStateNorm(LayerNorm):
    r"""What follows the reading of several states that were normalized as they were scanned."""

    def forward(self, y: Tensor, C: Tensor) -> Tensor:  # type: ignore[override]
        return self.weight * y + self.bias * C.sum(dim=1, keepdim=True)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


def _check_dt_bounds(dt_min: float, dt_max: float, dt_init_floor: float) -> None:
    for name, value in (("dt_min", dt_min), ("dt_max", dt_max), ("dt_init_floor", dt_init_floor)):
        check_number(name, value)
        if not 0 < value < math.inf:
            raise ValueError(f"'{name}' must be positive and finite, got {value}")
    if dt_min > dt_max:
        raise ValueError(f"'dt_min' must not exceed 'dt_max', {dt_max}, got {dt_min}")
