"""The networks of `regions` on photographs of scikit-image: how much of a click arrives where.

python -m experiments.regions_affinity --data FOLDER

Trains the published tree and edge steps over learned colors once each, as `regions` does, for its
first seed, and draws for a click in each photograph the transitions' product along the last tree,
and the region that is found.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from experiments.mixers import TREE
from experiments.photographs import height, load_photographs, width
from experiments.regions import fit, make_network
from experiments.tables import figure
from groot_graph.analysis import affinity_map, scan_of_layer
from groot_graph.visualization import plot_affinity

VARIANTS = (TREE, "edge steps over learned colors")
# A photograph, a node in what is to be found, and one outside, as (row, column).
SHOWN = {"chelsea": ((17, 20), (4, 4)), "coffee": ((14, 24), (28, 4)), "rocket": ((16, 23), (8, 8))}


def shown(name: str) -> Tensor:
    """The middle of a photograph, as the networks see those that they learn from."""
    import skimage.data
    from PIL import Image

    image = Image.fromarray(getattr(skimage.data, name)())
    sides = (
        min(image.width, image.height * width / height),
        min(image.height, image.width * height / width),
    )
    left, top = ((whole - side) / 2 for whole, side in zip(image.size, sides, strict=True))
    box = left, top, left + sides[0], top + sides[1]
    pixels = np.array(image.resize((width, height), Image.Resampling.BOX, box))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def train(variant: str, data: Path, learning_rate: float) -> nn.Module:
    torch.manual_seed(0)
    network = make_network(variant)
    photographs = load_photographs(data, "train"), load_photographs(data, "val")
    fit(network, *photographs, 0, learning_rate, f"{variant}, learning rate {learning_rate:g}")
    return network.eval()


def draw(networks: dict[str, nn.Module], path: Path) -> None:
    columns = 1 + 2 * len(networks)
    with figure(path, len(SHOWN), columns, figsize=(3 * columns, 2.2 * len(SHOWN))) as axes:
        for row, (name, (inside, outside)) in zip(axes, SHOWN.items(), strict=True):
            colors = shown(name)
            clicks = torch.zeros(1, 2, height, width)
            clicks[0, 0][inside] = clicks[0, 1][outside] = 1
            row[0].imshow(colors.permute(1, 2, 0).numpy())
            row[0].plot(*inside[::-1], "o", color="tab:cyan", label="inside")
            row[0].plot(*outside[::-1], "X", color="tab:red", label="outside")
            row[0].set_axis_off()
            for number, (variant, network) in enumerate(networks.items()):
                of_click, of_region = row[1 + 2 * number : 3 + 2 * number]
                scan = scan_of_layer(network, colors[None], clicks, layer=-1)
                node = inside[0] * width + inside[1]
                plot_affinity(affinity_map(*scan, node), height, width, node, ax=of_click)
                with torch.no_grad():
                    found = network(colors[None], clicks)[0] > 0
                is_found = found[..., None].numpy()
                of_region.imshow(colors.permute(1, 2, 0).numpy() * (0.25 + 0.75 * is_found))
                of_region.set_axis_off()
                if row is axes[0]:
                    of_click.set_title(f"{variant}: affinity")
                    of_region.set_title("found")
        axes[0][0].legend(fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--learning-rate", type=float, default=2e-3, metavar="N")
    parser.add_argument("--plot", type=Path, default=Path("outputs/regions_affinity.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    networks = {variant: train(variant, args.data, args.learning_rate) for variant in VARIANTS}
    draw(networks, args.plot)
    print(f"saved {args.plot}")


if __name__ == "__main__":
    main()
