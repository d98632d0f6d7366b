r"""An image as a graph of its pixels."""

import struct
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from groot_graph.checks import check_positive_int
from groot_graph.graphs import add_reverse_edges, grid_edge_index, repeat_graph
from groot_graph.transforms.utils import InputToGraph, add_batch

# Modes that PIL hands to NumPy as they are; the other ones are converted first.
_PIL_MODES = {"1": "L", "LA": "RGBA", "PA": "RGBA"}
_PIL_PLAIN_MODES = ("L", "RGB", "RGBA", "F")
# Formats whose images of mode "I" hold 16 bits, and not 32.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")


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
        - **input:** a tensor :math:`(C, H, W)` or :math:`(B, C, H, W)`, floating point or
          :obj:`uint8` (scaled to :math:`[0, 1]`), a :class:`PIL.Image.Image` of 8 or 16 bits
          (scaled alike) or of floating point, or the path of an image file. Images of PIL and of
          files are turned upright, as their EXIF orientation says
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
        image = self._check_shape(to_float(read_image(image)))
        images = image if image.dim() == 4 else image[None]
        patches = F.pixel_unshuffle(images, self.patch_size)
        num_graphs, num_features, height, width = patches.shape
        num_nodes = height * width

        edges = grid_edge_index(height, width, self.connectivity, device=image.device)
        data.x = patches.permute(0, 2, 3, 1).reshape(num_graphs * num_nodes, num_features)
        data.edge_index = repeat_graph(add_reverse_edges(edges), num_nodes, num_graphs)
        data.pos = _grid_pos(height, width, image.device).repeat(num_graphs, 1)
        data.height, data.width = height, width
        return add_batch(data, num_nodes, num_graphs) if image.dim() == 4 else data

    def _check_shape(self, image: Tensor) -> Tensor:
        if image.dim() not in (3, 4):
            raise ValueError(
                "'image' must have shape [channels, height, width] or "
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


def _grid_pos(height: int, width: int, device: torch.device) -> Tensor:
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1).float()


def read_image(image: Any) -> Tensor:
    r"""A tensor as it is, or the pixels of a PIL image or a file, with the channels first."""
    if isinstance(image, Tensor):
        return image
    if isinstance(image, (str, PathLike)):
        return _pil_to_tensor(_open(image))
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        return _pil_to_tensor(image)
    raise TypeError(f"'image' must be a Tensor, a PIL image or a path, got {type(image).__name__}")


def _open(path: str | PathLike) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports some broken PNG files as a SyntaxError.
        raise ValueError(
            f"'image' must be a readable image file, got {fspath(path)!r} ({error})"
        ) from error
    return image


def _pil_to_tensor(image: Any) -> Tensor:
    # Asked first, because a turned image has lost its format.
    is_sixteen_bit = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS
    )
    image = _upright(image)
    if is_sixteen_bit:
        values = np.array(image, dtype=np.float32) / 65535
    elif image.mode == "I":
        raise TypeError(
            "'image' must hold 8 or 16 bits or floating point values, got a PIL image of mode 'I', "
            "32-bit integers whose greatest value is not known: divide by it, and hand over a "
            "tensor"
        )
    else:
        values = np.array(_to_plain_mode(image))
    return torch.from_numpy(np.atleast_3d(values)).permute(2, 0, 1)


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, TypeError, struct.error) as error:
        raise ValueError(
            f"'image' must have a readable EXIF orientation, or none, got a damaged one ({error})"
        ) from error


def _to_plain_mode(image: Any) -> Any:
    if image.mode in ("La", "RGBa"):
        # Colors that alpha has been multiplied into.
        image = image.convert(image.mode.upper())
    mode = _PIL_MODES.get(image.mode, image.mode)
    mode = mode if mode in _PIL_PLAIN_MODES else "RGB"
    return image if mode == image.mode else image.convert(mode)


def to_float(image: Tensor) -> Tensor:
    r"""Bytes to numbers from 0 to 1."""
    if image.is_floating_point():
        return image
    if image.dtype == torch.uint8:
        return image.float() / 255
    raise TypeError(f"'image' must be floating point or uint8, got {image.dtype}")
