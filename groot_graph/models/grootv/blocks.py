r"""What the stages of GrootV are made of. Features have their channels last."""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groot_graph.forest import Forest
from groot_graph.nn.grid_tree_ssm import GridTreeSSM, convolve

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Stem(nn.Module):
    r"""Two strided convolutions: images :obj:`[batch, in_channels, height, width]` to features
    :obj:`[batch, ceil(height / 4), ceil(width / 4), channels]`.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = LayerNorm(channels // 2)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.norm1(convolve(self.conv1, images.permute(0, 2, 3, 1))))
        return self.norm2(convolve(self.conv2, x))


class GrootVStage(nn.Module):
    r"""Blocks of one resolution; returns their normalized features and what the next stage gets."""

    def __init__(self, blocks: list[nn.Module], channels: int, has_downsample: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = LayerNorm(channels)
        self.downsample = Downsample(channels) if has_downsample else nn.Identity()

    def forward(self, x: Tensor, is_checkpointed: bool = False) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if is_checkpointed else block(x)
        x = self.norm(x)
        return x, self.downsample(x)


class Downsample(nn.Module):
    r"""A strided convolution that halves the sides and doubles the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = LayerNorm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(self.conv, x))


class GrootVBlock(nn.Module):
    r"""A :class:`~groot_graph.nn.GridTreeSSM` and an MLP, each normalized before and added to its
    input.

    Args:
        channels (int): The channels of input and output.
        mlp_ratio (float, optional): Hidden channels of the MLP per channel. (default: :obj:`4.0`)
        drop_path_rate (float, optional): How often a branch is skipped for an image in training.
            (default: :obj:`0.0`)
        **kwargs (optional): Arguments of :class:`~groot_graph.nn.GridTreeSSM`.

    Shapes:
        - **input:** features :math:`(B, H, W, C)`; a forest and the lengths of its edges, where the
          states are not to pass along trees over the features
        - **output:** features :math:`(B, H, W, C)`
    """

    def __init__(
        self, channels: int, mlp_ratio: float = 4.0, drop_path_rate: float = 0.0, **kwargs
    ):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = LayerNorm(channels)
        self.mixer = GridTreeSSM(channels, **kwargs)
        self.norm2 = LayerNorm(channels)
        hidden_channels = round(mlp_ratio * channels)
        fc1, fc2 = nn.Linear(channels, hidden_channels), nn.Linear(hidden_channels, channels)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(
        self, x: Tensor, forest: Forest | None = None, edge_length: Tensor | None = None
    ) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x), forest, edge_length))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DropPath(nn.Module):
    r"""In training, leaves out a branch for some images, and scales it up for the others."""

    def __init__(self, rate: float):
        super().__init__()
        self.kept = 1 - rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (x.new_empty(x.size(0), 1, 1, 1).bernoulli_(self.kept) / self.kept)


@torch.no_grad()
def reset_projection(linear: nn.Linear, deviation: float) -> None:
    r"""Draws the weights from a normal distribution cut off at two deviations."""
    nn.init.trunc_normal_(linear.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
