r"""An image as a graph of its superpixels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, scatter

from groot_graph.checks import check_number, check_positive_int
from groot_graph.graphs import add_reverse_edges, grid_edge_index
from groot_graph.transforms.image_to_graph import grid_pos
from groot_graph.transforms.images import to_image
from groot_graph.transforms.utils import InputToGraph


class SuperpixelsToGraph(InputToGraph):
    r"""Turns an image into the graph of its superpixels: regions of like pixels that lie together,
    joined where they have a border of pixels in common.

    The regions are those of scikit-image's :func:`~skimage.segmentation.slic`. The value of a node
    goes back to its pixels by :obj:`value[data.segment_index].view(height, width, -1)`.

    From `"SLIC Superpixels Compared to State-of-the-art Superpixel Methods"
    <https://doi.org/10.1109/TPAMI.2012.120>`_ (Achanta et al., 2012).

    Args:
        num_segments (int, optional): About so many superpixels. (default: :obj:`100`)
        compactness (float, optional): How much nearness counts beside color: more gives squares.
            For gray images about :obj:`0.1` is usual. (default: :obj:`10.0`)
        key (str, optional): The attribute that holds the image where a
            :class:`~torch_geometric.data.Data` is given. It is replaced by the graph, all other
            attributes are kept. (default: :obj:`"image"`)

    Shapes:
        - **input:** one image of any kind that :class:`~groot_graph.transforms.ImageToGraph`
          takes, of :math:`H \times W` pixels
        - **output:** :class:`~torch_geometric.data.Data` with

          - **x** :math:`(N, C)`: the mean color of each superpixel
          - **edge_index** :math:`(2, |\mathcal{E}|)`, both directions of each edge, sorted
          - **pos** :math:`(N, 2)`: the mean column and row of its pixels
          - **segment_index** :math:`(H \cdot W)`: the superpixel of every pixel, row by row. A
            batch counts it on, as it does with **edge_index**
          - **height**, **width**: pixels in a column and in a row

    Raises:
        ImportError: If scikit-image is not installed.
        TypeError: If the input is no image, or an option has the wrong type.
        ValueError: If its shape does not fit, a value is not finite, or an option is not positive.

    Example:
        >>> import torch
        >>> from groot_graph.transforms import SuperpixelsToGraph
        >>> image = torch.zeros(3, 20, 30)
        >>> image[:, :, 15:] = 1
        >>> data = SuperpixelsToGraph(num_segments=2)(image)
        >>> data
        Data(x=[2, 3], edge_index=[2, 2], pos=[2, 2], segment_index=[600], height=20, width=30)
        >>> bool((data.x[data.segment_index] == image.flatten(1).t()).all())
        True
    """

    def __init__(
        self, num_segments: int = 100, compactness: float = 10.0, key: str = "image"
    ) -> None:
        check_positive_int("num_segments", num_segments)
        check_number("compactness", compactness)
        if not 0 < compactness < float("inf"):
            raise ValueError(f"'compactness' must be positive and finite, got {compactness}")
        self.num_segments = num_segments
        self.compactness = compactness
        self.key = key

    def forward(self, data: Any) -> Data:
        image, data = self.take_input(data)
        image = _check_image(to_image(image))
        height, width = image.shape[-2:]
        segment = self._segment(image).to(image.device)

        data.x = scatter(image.flatten(1).t(), segment, reduce="mean")
        data.edge_index = _borders(segment, height, width)
        data.pos = scatter(grid_pos(height, width, image.device), segment, reduce="mean")
        data.segment_index = segment
        data.height, data.width = height, width
        return data

    def _segment(self, image: Tensor) -> Tensor:
        r"""The superpixel of every pixel, numbered from zero without gaps."""
        try:
            from skimage.segmentation import slic
        except ImportError as error:
            raise ImportError(
                "SuperpixelsToGraph needs scikit-image: pip install scikit-image"
            ) from error
        pixels = image.detach().permute(1, 2, 0).double().cpu().numpy()
        is_gray = pixels.shape[2] == 1
        segment = slic(
            pixels[..., 0] if is_gray else pixels,
            n_segments=self.num_segments,
            compactness=self.compactness,
            start_label=0,
            channel_axis=None if is_gray else -1,
        )
        return torch.from_numpy(np.unique(segment.ravel(), return_inverse=True)[1])

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(num_segments={self.num_segments}, "
            f"compactness={self.compactness})"
        )


def _check_image(image: Tensor) -> Tensor:
    image = image[None] if image.dim() == 2 else image
    if image.dim() != 3:
        raise ValueError(
            "'image' must be one image of shape [height, width] or [channels, height, width], got "
            f"{list(image.shape)}: images of a batch differ in their superpixels"
        )
    if image.numel() == 0:
        raise ValueError(f"'image' must hold at least one pixel, got {list(image.shape)}")
    if not bool(image.isfinite().all()):
        raise ValueError("'image' must be finite, got NaN or infinity")
    return image


def _borders(segment: Tensor, height: int, width: int) -> Tensor:
    r"""The pairs of segments of neighboring pixels, in both directions."""
    pairs = segment[grid_edge_index(height, width, device=segment.device)]
    return coalesce(add_reverse_edges(pairs[:, pairs[0] != pairs[1]]))
