r"""python examples/click_segmentation.py

Finds a thing in a photograph from clicks inside and outside of it, with the small trained network
that is part of the library.

    IMAGE              an image file, or a photograph that ships with scikit-image: astronaut,
                       chelsea, coffee, rocket, ...
    --inside X Y       a click inside, in pixels from the upper left corner; may be given again
    --outside X Y      a click outside; may be given again

Without any it finds the coffee in a cup. Writes outputs/click_segmentation.png.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from affinity_map import load_image
from matplotlib.figure import Figure
from torch import Tensor

from groot_graph.models import click_segmenter

from common import UserError, save_figure, told_errors

# Clicks on the coffee in the cup, and on the cup.
INSIDE, OUTSIDE = [[300, 160], [250, 150]], [[300, 240], [400, 100]]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Finds a thing in a photograph from clicks.")
    parser.add_argument("image", nargs="?", metavar="IMAGE")
    for name in ("--inside", "--outside"):
        parser.add_argument(
            name, type=float, nargs=2, action="append", default=[], metavar=("X", "Y")
        )
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    args = parser.parse_args(argv)
    if args.image is None and not args.inside and not args.outside:
        args.inside, args.outside = INSIDE, OUTSIDE
    args.image = args.image or "coffee"
    return args


def draw(path: Path, pixels: np.ndarray, args: argparse.Namespace, found: Tensor) -> None:
    figure = Figure((9.6, 4.7 * pixels.shape[0] / pixels.shape[1] + 0.45), layout="constrained")
    before, after = figure.subplots(1, 2)
    for ax, title in ((before, "clicks"), (after, "found")):
        ax.set_title(title)
        ax.set_axis_off()
    before.imshow(pixels)
    for name, color, marker in (("inside", "tab:cyan", "o"), ("outside", "tab:red", "X")):
        places = np.array(getattr(args, name)).reshape(-1, 2)
        style = {"markersize": 9, "markeredgecolor": "white"}
        before.plot(*places.T, marker, color=color, label=name, **style)
    before.legend(loc="lower right")
    is_found = (found > 0.5).numpy()
    after.imshow((pixels * np.where(is_found, 1, 0.3)[:, :, None]).astype(np.uint8))
    after.contour(is_found, [0.5], colors="tab:orange")
    save_figure(figure, path, dpi=100)


@told_errors()
def main(argv: list[str] | None = None) -> Tensor:
    args = parse_arguments(argv)
    pixels = np.array(load_image(args.image))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    try:
        found = click_segmenter().segment(image, args.inside, args.outside)
    except ValueError as error:
        raise UserError(str(error)) from error
    path = args.output / "click_segmentation.png"
    draw(path, pixels, args, found)
    share = 100 * (found > 0.5).float().mean()
    print(f"{args.image}: {share:.1f} % of the pixels are inside")
    return found


if __name__ == "__main__":
    main()
