r"""GrootV: the vision networks, a pyramid of four stages of tree state space blocks."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groot_graph import checks
from groot_graph.checks import check_bool, check_floating, check_number, check_positive_int
from groot_graph.errors import NotANumberError
from groot_graph.models.grootv.blocks import GrootVBlock, GrootVStage, Stem, reset_projection
from groot_graph.nn.grid_tree_ssm import laid_out
from groot_graph.nn.tree_ssm import TreeSSM

# The sides of an image shrink by this much until the last stage.
TOTAL_STRIDE = 32


class GrootV(nn.Module):
    r"""The vision network from the `"GrootVL: Tree Topology is All You Need in State Space Model"
    <https://arxiv.org/abs/2406.02395>`_ paper (Section 3.3, Figure 3): a stem, four stages of
    :obj:`GrootVBlock` at strides 4, 8, 16 and 32, and a classification head.

    .. math::
        \mathbf{X} &\leftarrow \mathbf{X} + \mathrm{TreeSSM}(\mathrm{LayerNorm}(\mathbf{X}))

        \mathbf{X} &\leftarrow \mathbf{X} + \mathrm{MLP}(\mathrm{LayerNorm}(\mathbf{X}))

    The published sizes are :func:`grootv_tiny`, :func:`grootv_small` and :func:`grootv_base`;
    :func:`grootv_micro` is a smaller one.

    Args:
        channels (int, optional): The channels of the first stage, an even number; each further
            stage doubles them. (default: :obj:`80`)
        depths (tuple of int, optional): The number of blocks of each stage.
            (default: :obj:`(2, 2, 9, 2)`)
        num_classes (int, optional): The number of classes; :obj:`0` leaves out the last layer, so
            that the output are the pooled features. (default: :obj:`1000`)
        in_channels (int, optional): The channels of an image. (default: :obj:`3`)
        mlp_ratio (float, optional): Hidden channels of the MLP per channel. (default: :obj:`4.0`)
        head_scale (float, optional): Channels of the head per channel of the last stage.
            (default: :obj:`1.5`)
        drop_path_rate (float, optional): How often the last block is skipped in training; earlier
            ones linearly less. (default: :obj:`0.0`)
        metric (str or Callable, optional): The dissimilarity the trees are grown over, see
            :class:`~groot_graph.nn.TreeTopology`. (default: :obj:`"learned"` with `edge_steps`,
            :obj:`"cosine"`, as published, without)
        tree (str, optional): The spanning tree to grow, :obj:`"min"`, :obj:`"max"` or
            :obj:`"random"`. (default: :obj:`"min"`)
        root (str, optional): The root of every tree, :obj:`"first"` (the upper left corner) or
            :obj:`"last"`. (default: :obj:`"first"`)
        direction (str, optional): Whom a node hears, :obj:`"both"`, :obj:`"up"` or :obj:`"down"`,
            see :class:`~groot_graph.nn.TreeSSM`. (default: :obj:`"both"`)
        initializer_range (float, optional): The deviation of the initial weights of the
            projections, before they are cut off. Narrow networks learn sooner with a larger one
            than the published. (default: :obj:`0.02`)
        edge_steps (bool, optional): If set to :obj:`True`, time passes along an edge in proportion
            to its length, and the trees are learned by it, see
            :class:`~groot_graph.nn.GridTreeSSM`. The published networks have none. (default:
            :obj:`False`)

    Shapes:
        - **input:** images :math:`(B, C, H, W)`, of any size from 32 x 32
        - **output:** logits :math:`(B, \mathrm{num\_classes})`

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size is below one or a name is unknown.

    Example:
        >>> import torch
        >>> from groot_graph.models import GrootV
        >>> model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=10)
        >>> model(torch.randn(2, 3, 33, 64)).shape
        torch.Size([2, 10])
        >>> [tuple(map.shape) for map in model.forward_features(torch.randn(2, 3, 64, 96))]
        [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]
    """

    def __init__(
        self,
        channels: int = 80,
        depths: tuple[int, ...] = (2, 2, 9, 2),
        num_classes: int = 1000,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        head_scale: float = 1.5,
        drop_path_rate: float = 0.0,
        metric=None,
        tree: str = "min",
        root: str = "first",
        direction: str = "both",
        initializer_range: float = 0.02,
        edge_steps: bool = False,
    ):
        _check_channels(channels)
        check_positive_int("in_channels", in_channels)
        _check_depths(depths)
        _check_num_classes(num_classes)
        _check_rate("drop_path_rate", drop_path_rate)
        _check_ratio("mlp_ratio", mlp_ratio)
        _check_ratio("head_scale", head_scale)
        _check_ratio("initializer_range", initializer_range)
        super().__init__()
        self.channels = [channels * 2**stage for stage in range(len(depths))]
        self.depths = tuple(depths)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.mlp_ratio = mlp_ratio
        self.head_scale = head_scale
        self.initializer_range = initializer_range
        self.gradient_checkpointing = False

        self.stem = Stem(in_channels, channels)
        # On the CPU also where networks are made without memory, on the meta device.
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        make_block = partial(
            GrootVBlock, mlp_ratio=mlp_ratio, metric=metric, tree=tree, root=root,
            direction=direction, edge_steps=edge_steps,
        )  # fmt: skip
        last = len(depths) - 1
        self.stages = nn.ModuleList(
            GrootVStage(
                [make_block(width, drop_path_rate=rate) for rate in rates[stage].tolist()],
                width,
                has_downsample=stage < last,
            )
            for stage, width in enumerate(self.channels)
        )
        self.num_features = round(head_scale * self.channels[-1])
        self.head_conv = nn.Conv2d(self.channels[-1], self.num_features, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(self.num_features)
        self.head = self._make_head(num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters: projections are drawn from a normal distribution of
        deviation `initializer_range` cut off at two deviations, convolutions as PyTorch does, the
        state space models as :class:`~groot_graph.nn.TreeSSM` does.
        """
        # Children first, because a TreeSSM resets its own in its own way.
        for module in reversed(list(self.modules())[1:]):
            reset = getattr(module, "reset_parameters", None)
            if isinstance(module, nn.Linear):
                reset_projection(module, self.initializer_range)
            elif reset is not None:
                reset()

    def forward(self, images: Tensor) -> Tensor:
        r"""The logits of the images, of shape :obj:`[batch, num_classes]`.

        Args:
            images (Tensor): The images, of shape :obj:`[batch, in_channels, height, width]`.

        Returns:
            Tensor: The logits, or, without classes, the pooled features.

        Raises:
            TypeError: If `images` is not a floating point tensor.
            ValueError: If its shape does not fit, or a side is smaller than 32 pixels.
            NotANumberError: If `images` holds NaN, as :obj:`'images'`, or, in training that
                diverges, the features of a layer do, as :obj:`'x'`. On a GPU this is checked only
                under :func:`torch_geometric.set_debug`.
        """
        return self.head(self.pool(self.forward_features(images)[-1]))

    def forward_features(self, images: Tensor) -> tuple[Tensor, ...]:
        r"""The four feature maps of the images, each after the normalization that ends its stage.

        Args:
            images (Tensor): The images, of shape :obj:`[batch, in_channels, height, width]`.

        Returns:
            tuple of Tensor: The maps at strides 4, 8, 16 and 32, of shape
            :obj:`[batch, channels, ceil(height / stride), ceil(width / stride)]`.

        Raises:
            TypeError: If `images` is not a floating point tensor.
            ValueError: If its shape does not fit, or a side is smaller than 32 pixels.
            NotANumberError: If `images` holds NaN, as :obj:`'images'`, or, in training that
                diverges, the features of a layer do, as :obj:`'x'`. On a GPU this is checked only
                under :func:`torch_geometric.set_debug`.
        """
        return self._forward_stages(images, len(self.stages))[1:]

    def pool(self, features: Tensor) -> Tensor:
        r"""The last map as one vector per image, of shape :obj:`[batch, num_features]`."""
        if torch.compiler.is_compiling():
            features = laid_out(features)
        return F.gelu(self.head_norm(self.head_conv(features))).mean(dim=(2, 3))

    def reset_classifier(self, num_classes: int) -> None:
        r"""Puts a new last layer, for another number of classes, in place of the old one."""
        _check_num_classes(num_classes)
        old = self.head_conv.weight
        self.num_classes = num_classes
        self.head = self._make_head(num_classes).to(old.device, old.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        r"""Whether blocks compute their inside anew in the backward pass instead of holding it."""
        check_bool("enable", enable)
        self.gradient_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        r"""The names of the parameters that an optimizer should not decay, beside biases and the
        weights of norms: what :meth:`TreeSSM.no_weight_decay
        <groot_graph.nn.TreeSSM.no_weight_decay>` names in every block.

        Returns:
            set of str: The names, as :meth:`torch.nn.Module.named_parameters` has them.

        Example:
            >>> from groot_graph.models import GrootV
            >>> model = GrootV(channels=8, depths=(1, 1, 1, 1))
            >>> sorted(model.no_weight_decay())[:2]
            ['stages.0.blocks.0.mixer.ssm.A_log', 'stages.0.blocks.0.mixer.ssm.D']
        """
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, TreeSSM)
            for name in module.no_weight_decay()
        }

    def _forward_stages(self, images: Tensor, num_stages: int) -> tuple[Tensor, ...]:
        r"""The map of the stem, and those of the first stages."""
        self._check_images(images)
        x = self.stem(images)
        maps = [x.permute(0, 3, 1, 2)]
        for stage in self.stages[:num_stages]:
            features, x = stage(x, self.gradient_checkpointing and self.training)
            maps.append(features.permute(0, 3, 1, 2))
        return tuple(maps)

    def _make_head(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes)
        reset_projection(head, self.initializer_range)
        return head

    def _check_images(self, images: Tensor) -> None:
        check_floating("images", images)
        if images.dim() != 4 or images.size(1) != self.in_channels:
            raise ValueError(
                f"'images' must have shape [batch, in_channels, height, width] = [any, "
                f"{self.in_channels}, any, any], got {list(images.shape)}"
            )
        height, width = images.shape[2:]
        if height < TOTAL_STRIDE or width < TOTAL_STRIDE:
            raise ValueError(
                f"'images' must be at least {TOTAL_STRIDE} x {TOTAL_STRIDE} pixels large, "
                f"got {height} x {width}"
            )
        if checks.values_are_checked(images) and bool(images.isnan().any()):
            image = int(images.flatten(1).isnan().any(dim=1).nonzero()[0])
            raise NotANumberError(f"'images' must not hold NaN, got NaN in image {image}")


def grootv_micro(num_classes: int = 1000, in_channels: int = 3, **kwargs) -> GrootV:
    r"""A small GrootV that is not of the paper, for small images or little time: 24 channels,
    blocks 1, 1, 2, 1, and 1.1 million parameters beside those of the last layer.

    Args:
        num_classes (int, optional): The number of classes. (default: :obj:`1000`)
        in_channels (int, optional): The channels of an image. (default: :obj:`3`)
        **kwargs (optional): Further arguments of :class:`GrootV`.

    Returns:
        GrootV: The network, with random weights.

    Example:
        >>> from groot_graph.models import grootv_micro
        >>> model = grootv_micro(num_classes=10)
        >>> sum(parameter.numel() for parameter in model.parameters())
        1130482
    """
    return GrootV(24, (1, 1, 2, 1), num_classes, in_channels, **kwargs)


def grootv_tiny(num_classes: int = 1000, in_channels: int = 3, **kwargs) -> GrootV:
    r"""GrootV-T: 30 million parameters, 80 channels, blocks 2, 2, 9, 2.

    Args:
        num_classes (int, optional): The number of classes. (default: :obj:`1000`)
        in_channels (int, optional): The channels of an image. (default: :obj:`3`)
        **kwargs (optional): Further arguments of :class:`GrootV`. The published training has
            :obj:`drop_path_rate=0.1`.

    Returns:
        GrootV: The network, with random weights. :func:`load_grootv` reads trained ones.

    Example:
        >>> from groot_graph.models import grootv_tiny
        >>> model = grootv_tiny()
        >>> sum(parameter.numel() for parameter in model.parameters())
        29958600
    """
    return GrootV(80, (2, 2, 9, 2), num_classes, in_channels, **kwargs)


def grootv_small(num_classes: int = 1000, in_channels: int = 3, **kwargs) -> GrootV:
    r"""GrootV-S: 51 million parameters, 96 channels, blocks 2, 2, 13, 2.

    Args:
        num_classes (int, optional): The number of classes. (default: :obj:`1000`)
        in_channels (int, optional): The channels of an image. (default: :obj:`3`)
        **kwargs (optional): Further arguments of :class:`GrootV`. The published training has
            :obj:`drop_path_rate=0.3`.

    Returns:
        GrootV: The network, with random weights. :func:`load_grootv` reads trained ones.
    """
    return GrootV(96, (2, 2, 13, 2), num_classes, in_channels, **kwargs)


def grootv_base(num_classes: int = 1000, in_channels: int = 3, **kwargs) -> GrootV:
    r"""GrootV-B: 91 million parameters, 128 channels, blocks 2, 2, 13, 2.

    Args:
        num_classes (int, optional): The number of classes. (default: :obj:`1000`)
        in_channels (int, optional): The channels of an image. (default: :obj:`3`)
        **kwargs (optional): Further arguments of :class:`GrootV`. The published training has
            :obj:`drop_path_rate=0.5`.

    Returns:
        GrootV: The network, with random weights. :func:`load_grootv` reads trained ones.
    """
    return GrootV(128, (2, 2, 13, 2), num_classes, in_channels, **kwargs)


def _check_channels(channels) -> None:
    check_positive_int("channels", channels)
    if channels % 2:
        raise ValueError(
            f"'channels' must be even, since the stem starts with half, got {channels}"
        )


def _check_depths(depths) -> None:
    if not isinstance(depths, tuple | list):
        raise TypeError(f"'depths' must be a tuple of four ints, got {type(depths).__name__}")
    if len(depths) != 4:
        raise ValueError(f"'depths' must hold the blocks of four stages, got {len(depths)}")
    for depth in depths:
        check_positive_int("depths", depth)


def _check_num_classes(num_classes) -> None:
    if num_classes != 0 or isinstance(num_classes, bool):
        check_positive_int("num_classes", num_classes)


def _check_rate(name: str, rate) -> None:
    check_number(name, rate)
    if not 0 <= rate < 1:
        raise ValueError(f"'{name}' must lie in [0, 1), got {rate}")


def _check_ratio(name: str, ratio) -> None:
    check_number(name, ratio)
    if not 0 < ratio < math.inf:
        raise ValueError(f"'{name}' must be positive and finite, got {ratio}")
