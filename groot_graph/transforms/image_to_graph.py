r"""An image as a graph of its pixels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from groot_graph.checks import check_positive_int
from groot_graph.graphs import add_reverse_edges, grid_edge_index, repeat_graph
from groot_graph.transforms.images import to_image
from groot_graph.transforms.utils import InputToGraph, add_batch


class ImageToGraph(InputToGraph):
    r"""Turns an image, or a batch of images of equal size, into the grid graph of its pixels or
    patches.

    Nodes are numbered row by row. Edges are listed in the order of the published GrootVL code:
    all vertical pairs :math:`(r, c)-(r+1, c)` in raster order, then all horizontal pairs
    :math:`(r, c)-(r, c+1)`, then for :obj:`connectivity=8` the diagonals
    :math:`(r, c)-(r+1, c+1)` and :math:`(r, c+1)-(r+1, c)`. After all of them stands the reverse
    of each in the same order, as undirected graphs are held in PyG. Ties between edges go to the
    lower edge number, so the minimum spanning forest is that of the edges in one direction.

    The edges of a size are computed once and remembered.

    From `"GrootVL: Tree Topology is All You Need in State Space Model"
    <https://arxiv.org/abs/2406.02395>`_, section 3.2.

    Args:
        connectivity (int, optional): :obj:`4` joins horizontal and vertical neighbors,
            :obj:`8` also diagonal ones. (default: :obj:`4`)
        patch_size (int, optional): Side of the square patches, in pixels, that become one node
            each. Height and width must be multiples of it. (default: :obj:`1`)
        key (str, optional): The attribute that holds the image where a
            :class:`~torch_geometric.data.Data` is given. It is replaced by the graph, all other
            attributes are kept. (default: :obj:`"image"`)

    Shapes:
        - **input:** a tensor :math:`(H, W)`, :math:`(C, H, W)` or :math:`(B, C, H, W)`, floating
          point or :obj:`uint8` (scaled to :math:`[0, 1]`), an array of NumPy :math:`(H, W)` or
          :math:`(H, W, C)` with up to four channels, of these types, :obj:`uint16` (scaled alike)
          or :obj:`bool`, a :class:`PIL.Image.Image` of 8 or 16 bits (scaled alike) or of floating
          point, or the path of an image file. Images of PIL and of files are turned upright, as
          their EXIF orientation says
        - **output:** :class:`~torch_geometric.data.Data` with

          - **x** :math:`(B \cdot H/p \cdot W/p, C \cdot p \cdot p)`, channel by channel, each
            patch row by row
          - **edge_index** :math:`(2, |\mathcal{E}|)`
          - **pos** :math:`(B \cdot H/p \cdot W/p, 2)`: column and row of each node
          - **height**, **width**: nodes in a column and in a row
          - **batch**, **ptr**: only for a batch of images

    Raises:
        TypeError: If the input is no image, or holds integers whose greatest value is not known:
            a tensor other than :obj:`uint8`, or an image of 32 bits.
        ValueError: If its shape does not fit, or its file or its EXIF cannot be read.

    Example:
        >>> import torch
        >>> from groot_graph.transforms import ImageToGraph
        >>> ImageToGraph()(torch.rand(3, 8, 8))
        Data(x=[64, 3], edge_index=[2, 224], pos=[64, 2], height=8, width=8)
        >>> ImageToGraph(patch_size=4)(torch.rand(16, 1, 28, 28)).x.shape
        torch.Size([784, 16])
    """

    def __init__(self, connectivity: int = 4, patch_size: int = 1, key: str = "image") -> None:
        if connectivity not in (4, 8):
            raise ValueError(f"'connectivity' must be 4 or 8, got {connectivity!r}")
        check_positive_int("patch_size", patch_size)
        self.connectivity = connectivity
        self.patch_size = patch_size
        self.key = key

    def forward(self, data: Any) -> Data:
        image, data = self.take_input(data)
        image = self._check_shape(to_image(image))
        images = image if image.dim() == 4 else image[None]
        patches = F.pixel_unshuffle(images, self.patch_size)
        num_graphs, num_features, height, width = patches.shape
        num_nodes = height * width

        edges = grid_edge_index(height, width, self.connectivity, device=image.device)
        data.x = patches.permute(0, 2, 3, 1).reshape(num_graphs * num_nodes, num_features)
        data.edge_index = repeat_graph(add_reverse_edges(edges), num_nodes, num_graphs)
        data.pos = grid_pos(height, width, image.device).repeat(num_graphs, 1)
        data.height, data.width = height, width
        return add_batch(data, num_nodes, num_graphs) if image.dim() == 4 else data

    def _check_shape(self, image: Tensor) -> Tensor:
        image = image[None] if image.dim() == 2 else image
        if image.dim() not in (3, 4):
            raise ValueError(
                "'image' must have shape [height, width], [channels, height, width] or "
                f"[batch, channels, height, width], got {list(image.shape)}"
            )
        height, width = image.shape[-2:]
        if min(height, width) == 0:
            raise ValueError(f"'image' must hold at least one pixel, got {list(image.shape)}")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"'image' must have a height and width divisible by patch_size={self.patch_size}, "
                f"got {height} x {width}"
            )
        return image

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(connectivity={self.connectivity}, "
            f"patch_size={self.patch_size})"
        )


def grid_pos(height: int, width: int, device: torch.device) -> Tensor:
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1).float()
