r"""python examples/affinity_map.py chelsea --at 225 120

Shows how strongly one position of an image is heard by all others: along the tree that a GrootV
network grows over the image, and along a raster scan with the same transitions, side by side, as
Figure 4 of the paper (arXiv 2406.02395) does.

    IMAGE              an image file, or a photograph that ships with scikit-image: astronaut,
                       chelsea, coffee, rocket, ...
    --at X Y           the position, in pixels from the upper left corner (default: the middle)
    --weights FILE     trained weights, .pth or .safetensors; without them the network is GrootV-T
                       with random ones, whose trees already follow the image
    --layer N          which tree state space layer (default: the last of those at stride 4)

Writes outputs/affinity_map.png.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from groot_graph.analysis import affinity_map, raster_forest, scan_of_layer
from groot_graph.models import GrootV, grootv_tiny, load_grootv
from groot_graph.visualization import plot_affinity, plot_image_tree

from common import UserError, check_seed, save_figure, told_errors
from images import read_rgb

# The settings.
longest_side = 384  # images are shrunk to this, and so have at most 96 nodes a side at stride 4
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in training


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draws affinity maps of an image.")
    parser.add_argument("image", nargs="?", default="chelsea", metavar="IMAGE")
    parser.add_argument("--at", type=int, nargs=2, metavar=("X", "Y"))
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--layer", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    args = parser.parse_args(argv)
    check_seed(args.seed)
    return args


def load_image(name: str) -> Image.Image:
    """A file, or else a photograph of scikit-image by its name."""
    path = Path(name)
    if path.is_file():
        return read_rgb(path)
    import skimage.data

    for file in sorted(Path(skimage.data.__file__).parent.iterdir()):
        if file.stem == name and file.suffix in (".png", ".jpg"):
            return read_rgb(file)
    raise UserError(f"{name}: neither an image file nor a photograph of scikit-image")


def shrink(image: Image.Image, position: list[int] | None) -> tuple[Tensor, list[int]]:
    """The image as a tensor [3, H, W] in [0, 1], at most `longest_side` long, and the position."""
    width, height = image.size
    x, y = position or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f"--at {x} {y}: outside the image of {width} x {height} pixels")
    scale = min(1, longest_side / max(width, height))
    size = [max(1, round(side * scale)) for side in (width, height)]
    values = np.array(image.resize(size, Image.Resampling.BICUBIC))
    place = [min(int(value * scale), side - 1) for value, side in zip((x, y), size, strict=True)]
    return torch.from_numpy(values).permute(2, 0, 1).float() / 255, place


def load_model(args: argparse.Namespace) -> GrootV:
    torch.manual_seed(args.seed)
    try:
        return (load_grootv(args.weights) if args.weights else grootv_tiny()).eval()
    except ValueError as error:
        raise UserError(str(error)) from error


def grid_of_layer(model: GrootV, layer: int, image: Tensor) -> tuple[int, int, int]:
    """Stride, height and width of the nodes of a layer, counted through all stages."""
    stages = [stage for stage, depth in enumerate(model.depths) for _ in range(depth)]
    if not -len(stages) <= layer < len(stages):
        raise UserError(f"--layer {layer}: the network has layers 0 to {len(stages) - 1}")
    stride = 4 * 2 ** stages[layer]
    return stride, *(-(-side // stride) for side in image.shape[1:])


def draw(path: Path, image: Tensor, place: list[int], forest, maps: dict, grid: tuple) -> None:
    stride, height, width = grid
    x, y = place
    figure = Figure((14, 3.7 * image.size(1) / image.size(2) + 0.4), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].imshow(image.permute(1, 2, 0).numpy())
    axes[0].plot(x, y, "x", color="tab:cyan", markersize=10, markeredgewidth=3)
    axes[0].set_title("position")
    axes[0].set_axis_off()
    right, bottom = width * stride - image.size(2), height * stride - image.size(1)
    covered = F.pad(image[None], (0, right, 0, bottom), "replicate")[0]
    plot_image_tree(covered, forest, patch_size=stride, ax=axes[1])
    axes[1].set_title("tree")
    for ax, (title, affinity) in zip(axes[2:], maps.items(), strict=True):
        plot_affinity(affinity, height, width, y // stride * width + x // stride, ax=ax)
        ax.set_title(title)
    save_figure(figure, path, dpi=100)


@told_errors()
def main(argv: list[str] | None = None) -> dict[str, Tensor]:
    args = parse_arguments(argv)
    image, place = shrink(load_image(args.image), args.at)
    if min(image.shape[1:]) < 32:
        raise UserError(f"{args.image}: too small or too narrow, a side has less than 32 pixels")
    model = load_model(args)
    layer = model.depths[0] - 1 if args.layer is None else args.layer
    stride, height, width = grid = grid_of_layer(model, layer, image)
    node = place[1] // stride * width + place[0] // stride

    normalized = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    forest, transition = scan_of_layer(model, normalized[None], layer=layer)
    maps = {
        "affinity, tree scan": affinity_map(forest, transition, node),
        "affinity, raster scan": affinity_map(raster_forest(height, width), transition, node),
    }
    path = args.output / "affinity_map.png"
    draw(path, image, place, forest, maps, grid)
    print(
        f"{args.image}: {height} x {width} nodes at stride {stride}, the mean transition is "
        f"{transition.mean():.3f}"
    )
    for title, affinity in maps.items():
        share = 100 * (affinity > 0.5).float().mean()
        print(
            f"{title}: {affinity.mean():.3f} in the mean, above 0.5 at {share:.1f} % of the nodes"
        )
    print(f"saved {path}")
    return maps


if __name__ == "__main__":
    main()
