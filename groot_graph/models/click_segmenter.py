r"""A small trained network that finds a region of a photograph from clicks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groot_graph.checks import check_floating, check_positive_int, check_shape
from groot_graph.graphs import grid_edge_index
from groot_graph.models.grootv.blocks import GrootVBlock
from groot_graph.nn import TreeTopology
from groot_graph.nn.grid_tree_ssm import convolve
from groot_graph.transforms.images import to_image

WEIGHTS = Path(__file__).parent / "weights" / "click_segmenter.pt"
# Of the photographs that the weights have seen.
LONGER_SIDE = 48

Click = Sequence[float]


class ClickSegmenter(nn.Module):
    r"""Finds the region of a photograph that a few clicks inside and outside of it mark: blocks of
    GrootV whose states pass along minimum spanning trees over a learned embedding of the colors,
    and fade with the length of every edge, so that they stay within a region.

    A node is told its colors, whether it was clicked, and its place.

    Args:
        channels (int, optional): The channels of a node. (default: :obj:`24`)
        depth (int, optional): The number of blocks. (default: :obj:`2`)
        mlp_channels (int, optional): The hidden channels of a block's MLP. (default: :obj:`152`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)` from 0 to 1, clicks :math:`(B, 2, H, W)`
        - **output:** logits :math:`(B, H, W)`

    Raises:
        TypeError: If an argument is no int.
        ValueError: If an argument is below one.

    Example:
        >>> import torch
        >>> from groot_graph.models import ClickSegmenter
        >>> model = ClickSegmenter(channels=8, depth=1, mlp_channels=16)
        >>> clicks = torch.zeros(1, 2, 16, 24)
        >>> clicks[0, 0, 4, 5] = clicks[0, 1, 12, 20] = 1
        >>> model(torch.rand(1, 3, 16, 24), clicks).shape
        torch.Size([1, 16, 24])
    """

    def __init__(self, channels: int = 24, depth: int = 2, mlp_channels: int = 152):
        check_positive_int("channels", channels)
        check_positive_int("depth", depth)
        check_positive_int("mlp_channels", mlp_channels)
        super().__init__()
        self.stem = nn.Conv2d(7, channels, 3, padding=1)
        topologies = [TreeTopology("learned", channels=3) for _ in range(depth)]
        self.topologies = nn.ModuleList(topologies)
        self.blocks = nn.ModuleList(
            GrootVBlock(channels, mlp_channels / channels, edge_steps=True, metric="euclidean")
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 1)

    def forward(self, images: Tensor, clicks: Tensor) -> Tensor:
        r"""The logits of the region.

        Args:
            images (Tensor): The photographs, from 0 to 1, of shape
                :obj:`[batch, 3, height, width]`; the trained weights know a longer side of 48
                pixels, for which :meth:`segment` reduces larger ones.
            clicks (Tensor): Ones where clicked, inside in the first channel and outside in the
                second, of shape :obj:`[batch, 2, height, width]`.

        Returns:
            Tensor: Above zero inside, of shape :obj:`[batch, height, width]`.

        Raises:
            TypeError: If an argument is no floating point tensor.
            ValueError: If a shape does not fit.
        """
        self._check(images, clicks)
        colors = 4 * (images - 0.45)
        x = torch.cat([colors, clicks, place_of(images)], dim=1)
        x = convolve(self.stem, x.permute(0, 2, 3, 1))
        nodes = colors.permute(0, 2, 3, 1).flatten(0, 2)
        batch_size, _, height, width = images.shape
        edge_index = grid_edge_index(height, width, num_graphs=batch_size, device=images.device)
        for topology, block in zip(self.topologies, self.blocks, strict=True):
            # Not grown over the features, which hear the clicks and are blurred.
            grown = topology.grow_and_measure(nodes, edge_index)  # type: ignore[operator]
            x = block(x, *grown)
        return self.head(self.norm(x)).squeeze(3)

    @torch.no_grad()
    def segment(self, image: Any, inside: Sequence[Click], outside: Sequence[Click] = ()) -> Tensor:
        r"""The probability of every pixel of a photograph to be in the region.

        Args:
            image (Tensor or PIL.Image.Image or str or PathLike): A photograph in colors, as
                :class:`~groot_graph.transforms.ImageToGraph` reads it.
            inside (list of (float, float)): The places that were clicked inside of the region,
                each as :obj:`(x, y)` in pixels from the upper left corner.
            outside (list of (float, float), optional): Those outside of it. (default: none)

        Returns:
            Tensor: From 0 to 1, of shape :obj:`[height, width]`; above 0.5 is inside.

        Raises:
            ValueError: If the image has no three channels, nothing was clicked inside, or a click
                lies beside the image.

        Example:
            >>> import torch
            >>> from groot_graph.models import click_segmenter
            >>> image = torch.zeros(3, 40, 60)
            >>> image[:, :, 30:] = 0.9
            >>> found = click_segmenter().segment(image, inside=[(10, 20)], outside=[(50, 20)])
            >>> (found > 0.5).float().mean(dim=0)[[3, 57]].tolist()
            [1.0, 0.0]
        """
        if len(inside) == 0:
            raise ValueError("'inside' must hold a click, got none")
        colors = _colors(image).to(self.head.weight)
        height, width = colors.shape[2:]
        scale = min(1, LONGER_SIDE / max(height, width))
        size = max(1, round(scale * height)), max(1, round(scale * width))
        places = {"inside": inside, "outside": outside}
        clicks = torch.stack(
            [_clicked(name, given, (height, width), size) for name, given in places.items()]
        )
        colors, clicks = F.interpolate(colors, size, mode="area"), clicks[None].to(colors)
        # The weights have seen all photographs lying.
        turns = 1 if height > width else 0
        logits = self(*(torch.rot90(part, turns, (2, 3)) for part in (colors, clicks)))
        logits = torch.rot90(logits, -turns, (1, 2))[None]
        return F.interpolate(logits, (height, width), mode="bilinear")[0, 0].sigmoid()

    def _check(self, images: Tensor, clicks: Tensor) -> None:
        for name, value, channels in (("images", images, 3), ("clicks", clicks, 2)):
            check_floating(name, value)
            shape = (None, channels, None, None)
            check_shape(name, value, shape, "[batch, channels, height, width]")
        if images.shape[2:] != clicks.shape[2:] or len(images) != len(clicks):
            raise ValueError(
                "'clicks' must have the batch, height and width of 'images', "
                f"{list(images.shape)}, got {list(clicks.shape)}"
            )


def _colors(image: Any) -> Tensor:
    # No graph of all pixels, which would take longer than the network.
    pixels = to_image(image)
    if pixels.dim() != 3 or pixels.size(0) != 3 or pixels.numel() == 0:
        raise ValueError(
            f"'image' must be one photograph of shape [3, height, width], got {list(pixels.shape)}"
        )
    return pixels[None]


def _clicked(
    name: str, places: Sequence[Click], shape: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    r"""Ones at the nodes of a grid that stands for an image of a shape."""
    height, width = shape
    clicks = torch.zeros(size)
    for x, y in places:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"'{name}' must lie in the {width} x {height} pixels of 'image', got {(x, y)}"
            )
        clicks[int(y * size[0] / height), int(x * size[1] / width)] = 1
    return clicks


def place_of(images: Tensor) -> Tensor:
    r"""Row and column of every pixel, from -1 to 1, of shape :obj:`[batch, 2, height, width]`."""
    rows, columns = (
        torch.linspace(-1, 1, size, device=images.device, dtype=images.dtype)
        for size in images.shape[2:]
    )
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return place.expand(len(images), -1, -1, -1)


def click_segmenter() -> ClickSegmenter:
    r"""The trained :class:`ClickSegmenter`, of 26 thousand parameters, which are part of this
    package.

    Trained by :obj:`python -m experiments.click_segmenter` on the 200 training photographs of
    `BSDS500 <https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/>`_. On its 200
    test photographs the intersection over union of what it finds is 34.8 % in the mean with one
    click inside and one outside, 49.9 % with three and 56.0 % with five of each.

    Returns:
        ClickSegmenter: The network, in evaluation mode on the CPU.

    Example:
        >>> from groot_graph.models import click_segmenter
        >>> sum(parameter.numel() for parameter in click_segmenter().parameters())
        25913
    """
    model = ClickSegmenter()
    model.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    return model.eval()
