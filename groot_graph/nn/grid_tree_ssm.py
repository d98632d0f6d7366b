r"""The tree state space layer on grids, such as the pixels of images."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Conv2d, LayerNorm, Linear

from groot_graph.checks import check_edge_length, check_forest, check_grids, check_positive_int
from groot_graph.forest import Forest
from groot_graph.graphs import grid_edge_index
from groot_graph.nn.tree_ssm import TreeSSM
from groot_graph.nn.tree_topology import TreeTopology, check_measured, metric_of_layer


class GridTreeSSM(torch.nn.Module):
    r"""The tree state space layer from the `"GrootVL: Tree Topology is All You Need in State Space
    Model" <https://arxiv.org/abs/2406.02395>`_ paper (Section 3.3, Figure 3), the form that
    :class:`~groot_graph.nn.TreeSSMConv` has on a batch of grids: a depthwise convolution mixes
    neighbors, a tree is grown over every grid, and the states pass along it.

    .. math::
        \mathbf{U}, \mathbf{Z} &= \mathbf{X} \mathbf{W}_{\mathrm{in}}, \qquad
        \mathbf{V} = \mathrm{SiLU}(\mathrm{DWConv}(\mathbf{U}))

        \mathbf{Y} &= \mathrm{TreeSSM} \left( \mathbf{V}, \mathrm{TreeTopology}(\mathbf{V}) \right)

        \mathbf{X}^{\prime} &= \left( \mathrm{LayerNorm}(\mathbf{Y}) \odot \mathrm{SiLU}(\mathbf{Z})
        \right) \mathbf{W}_{\mathrm{out}}

    The candidate edges of the tree join every node to the one below and the one to its right. With
    `edge_steps`, the distances along the tree are handed to the :class:`~groot_graph.nn.TreeSSM`,
    so that the tree is learned.

    Args:
        channels (int): Size of each node's input and output.
        expand (int, optional): The number of inner channels per channel. (default: :obj:`2`)
        metric (str or Callable, optional): The dissimilarity the trees are grown over, see
            :class:`~groot_graph.nn.TreeTopology`. A function gets features of shape
            :obj:`[batch, rows, columns, channels]` here, once for the vertical and once for the
            horizontal edges, and returns a tensor of shape :obj:`[batch, rows, columns]`.
            (default: :obj:`"learned"` with `edge_steps`, :obj:`"cosine"` without)
        tree (str, optional): The spanning tree to grow, :obj:`"min"`, :obj:`"max"` or
            :obj:`"random"`. (default: :obj:`"min"`)
        root (str, optional): The root of every tree, :obj:`"first"` (the upper left corner) or
            :obj:`"last"`. (default: :obj:`"first"`)
        direction (str, optional): Whom a node hears, :obj:`"both"`, :obj:`"up"` or :obj:`"down"`,
            see :class:`~groot_graph.nn.TreeSSM`. (default: :obj:`"both"`)
        edge_steps (bool, optional): If set to :obj:`True`, time passes along an edge in proportion
            to its length, see :class:`~groot_graph.nn.TreeSSM`, and the tree is grown over an
            embedding that is learned by it, unless a `metric` is given. (default: :obj:`False`)

    Shapes:
        - **input:** features :math:`(B, H, W, F)`
        - **output:** features :math:`(B, H, W, F)`

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size is below one or a name is unknown.

    Example:
        >>> import torch
        >>> from groot_graph.nn import GridTreeSSM
        >>> layer = GridTreeSSM(16)
        >>> layer(torch.randn(2, 8, 6, 16)).shape
        torch.Size([2, 8, 6, 16])
    """

    def __init__(
        self,
        channels: int,
        expand: int = 2,
        metric: str | Callable[[Tensor, Tensor], Tensor] | None = None,
        tree: str = "min",
        root: str = "first",
        direction: str = "both",
        edge_steps: bool = False,
    ):
        check_positive_int("channels", channels)
        check_positive_int("expand", expand)
        super().__init__()
        self.channels = channels
        inner_channels = expand * channels
        self.in_proj = Linear(channels, 2 * inner_channels, bias=False)
        self.conv = Conv2d(
            inner_channels, inner_channels, 3, padding=1, groups=inner_channels, bias=False
        )
        metric = metric_of_layer(metric, edge_steps)
        self.topology = TreeTopology(metric, tree, root, inner_channels)
        dt_rank = math.ceil(channels / 16)
        self.ssm = TreeSSM(
            inner_channels, 1, dt_rank, direction, state_norm=True, edge_steps=edge_steps
        )
        self.out_norm = LayerNorm(inner_channels)
        self.out_proj = Linear(inner_channels, channels, bias=False)

    def forward(
        self, x: Tensor, forest: Forest | None = None, edge_length: Tensor | None = None
    ) -> Tensor:
        r"""Runs the layer.

        Args:
            x (Tensor): The features, of shape :obj:`[batch, height, width, channels]`.
            forest (Forest, optional): The forest to pass the states along, in place of one grown
                from the features; its nodes are the pixels, image by image and row by row.
                (default: :obj:`None`)
            edge_length (Tensor, optional): The length of the edge from every node to its parent in
                the given `forest`, of shape :obj:`[batch * height * width]`, for a layer with
                `edge_steps`. (default: measured by the metric)

        Returns:
            Tensor: The output, of the shape of `x`.

        Raises:
            TypeError: If `x` is not a floating point tensor, or `forest` or `edge_length` have the
                wrong type.
            ValueError: If a shape or a device does not fit, `edge_length` comes without a `forest`
                or without `edge_steps`, or a length is negative.
            NotANumberError: If a tree is to be grown over features that are NaN, or a length is. On
                a GPU this is checked only under :func:`torch_geometric.set_debug`.
        """
        check_grids("x", x, self.channels)
        if forest is not None or edge_length is not None:
            self._check_given(x.flatten(0, 2), forest, edge_length)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(convolve(self.conv, u))
        y = self.propagate(u) if forest is None else self.pass_along(u, forest, edge_length)
        return self.out_proj(self.out_norm(y) * F.silu(z))

    def pass_along(self, u: Tensor, forest: Forest, edge_length: Tensor | None = None) -> Tensor:
        r"""Passes the states of inner features along a given forest."""
        nodes = u.flatten(0, 2)
        if self.ssm.edge_steps and edge_length is None:
            edge_length = self.topology.measure(nodes, forest)
        return self.ssm(nodes, forest, edge_length).view(u.shape)

    def propagate(self, u: Tensor) -> Tensor:
        r"""Grows a tree over every grid of inner features and passes the states along it."""
        batch_size, height, width, _ = u.shape
        edge_index = grid_edge_index(height, width, num_graphs=batch_size, device=u.device)
        nodes, edge_weight = u.flatten(0, 2), None
        if self.ssm.edge_steps:
            edge_weight = self._edge_weight(*self.topology.with_metric(u))
            grown = self.topology.grow_and_measure(nodes, edge_index, edge_weight)
            return self.ssm(nodes, *grown).view(u.shape)
        if self.topology.tree != "random":
            with torch.no_grad():
                edge_weight = self._edge_weight(*self.topology.with_metric(u))
        forest, _ = self.topology.grow_over(nodes, edge_index, edge_weight)
        return self.ssm(nodes, forest).view(u.shape)

    def _check_given(
        self, nodes: Tensor, forest: Forest | None, edge_length: Tensor | None
    ) -> None:
        if forest is None or (edge_length is not None and not self.ssm.edge_steps):
            raise ValueError(
                "'edge_length' must be None unless a 'forest' is given and the layer has "
                "edge_steps=True"
            )
        check_forest(forest, nodes.size(0), nodes.device, "x")
        if edge_length is not None:
            check_edge_length(edge_length, nodes, "x")

    def _edge_weight(self, u: Tensor, metric: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        # Slices of the grid, because gathering both ends of every edge would copy them.
        vertical = metric(u[:, :-1], u[:, 1:])
        horizontal = metric(u[:, :, :-1], u[:, :, 1:])
        if callable(self.topology.metric):
            meaning = "[batch, rows, columns]"
            check_measured(vertical, u[:, 1:].shape[:-1], meaning)
            check_measured(horizontal, u[:, :, 1:].shape[:-1], meaning)
        return torch.cat([vertical.flatten(1), horizontal.flatten(1)], dim=1).flatten()


def convolve(conv: Conv2d, x: Tensor) -> Tensor:
    r"""A convolution over features that have their channels last."""
    images = x.permute(0, 3, 1, 2)
    if torch.compiler.is_compiling():
        images = laid_out(images)
    return conv(images).permute(0, 2, 3, 1).contiguous()


def laid_out(images: Tensor) -> Tensor:
    r"""Permuted images as Inductor takes them: it fails on such of symbolic sizes, and chooses the
    layout itself.
    """
    return images.contiguous()
