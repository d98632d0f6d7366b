"""Photographs that people have cut into regions, as tasks: find the region that a few clicks mark.

The photographs are those of BSDS500 (Arbelaez, Maire, Fowlkes and Malik 2011), read from a folder
that holds `train`, `val` and `test`, in either of two forms:

- that of the archive from https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/:
  `images/train/NAME.jpg` and `groundTruth/train/NAME.mat`, of whose several people's regions those
  of median number are taken;
- `train/NAME.jpg` and `train/NAME.png`, whose pixels hold the number of their region.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

height, width = 32, 48  # of what a photograph is reduced to, a node per pixel
least_share, most_share = 0.02, 0.6  # of the nodes in a region that is asked for


class Photograph(NamedTuple):
    colors: Tensor  # [3, height, width], from 0 to 1
    regions: Tensor  # [num_regions, height, width], bool, those that are asked for


class Tasks(NamedTuple):
    """Regions to find, one of a photograph each."""

    colors: Tensor  # [num_tasks, 3, height, width]
    is_inside: Tensor  # [num_tasks, height, width], bool, the region
    clicks: Tensor  # [num_tasks, 2, height, width], ones where clicked: inside, and outside


@cache
def load_photographs(folder: Path, part: str) -> list[Photograph]:
    """All photographs of `train`, `val` or `test` that hold a region to ask for."""
    is_archive = (folder / "groundTruth").is_dir()
    images = folder / "images" / part if is_archive else folder / part
    files = sorted(images.glob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"no photographs in {images}; 'experiments/photographs.py' says")
    of_people = folder / "groundTruth" / part if is_archive else folder / part
    suffix = ".mat" if is_archive else ".png"
    found = [
        read_photograph(file, (of_people / file.name).with_suffix(suffix))
        for file in tqdm(files, f"reading {part}", leave=False)
    ]
    return [photograph for photograph in found if len(photograph.regions)]


def read_photograph(image: Path, regions: Path) -> Photograph:
    from PIL import Image

    with Image.open(image) as opened:
        photograph = Image.fromarray(lying(np.asarray(opened.convert("RGB"))))
    pixels = np.asarray(photograph.resize((width, height), Image.Resampling.BOX))
    numbers = lying(read_mat(regions) if regions.suffix == ".mat" else read_png(regions))
    # The middle pixel of what a node stands for; float64 holds every number.
    numbers = torch.from_numpy(numbers.astype(np.float64))[None, None]
    numbers = F.interpolate(numbers, (height, width), mode="nearest-exact")[0, 0]
    masks = torch.stack([numbers == number for number in numbers.unique()])
    share = masks.float().mean(dim=(1, 2))
    is_asked = (share >= least_share) & (share <= most_share)
    colors = torch.tensor(pixels).permute(2, 0, 1) / 255
    return Photograph(colors, masks[is_asked])


def lying(image: np.ndarray) -> np.ndarray:
    """An image that stands, laid on its side, so that all have one shape."""
    stands = image.shape[0] > image.shape[1]
    return np.ascontiguousarray(np.rot90(image)) if stands else image


def read_png(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as opened:
        return np.asarray(opened)


def read_mat(path: Path) -> np.ndarray:
    """The regions of the person who drew the median number of them."""
    from scipy.io import loadmat

    people = loadmat(path)["groundTruth"].flat
    drawn = [np.asarray(person["Segmentation"][0, 0]) for person in people]
    return sorted(drawn, key=lambda numbers: len(np.unique(numbers)))[(len(drawn) - 1) // 2]


def draw_tasks(
    photographs: list[Photograph], num_clicks: list[int], generator: torch.Generator
) -> Tasks:
    """A region of each photograph, with so many clicks inside and as many outside."""
    regions, clicks = [], []
    for photograph, count in zip(photographs, num_clicks, strict=True):
        number = int(torch.randint(len(photograph.regions), (), generator=generator))
        is_inside = photograph.regions[number]
        regions.append(is_inside)
        both = [click(mask, count, generator) for mask in (is_inside, ~is_inside)]
        clicks.append(torch.stack(both))
    colors = torch.stack([photograph.colors for photograph in photographs])
    return Tasks(colors, torch.stack(regions), torch.stack(clicks))


def click(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Ones at so many nodes of a mask."""
    nodes = mask.flatten().nonzero().flatten()
    chosen = nodes[torch.randperm(len(nodes), generator=generator)[:count]]
    return torch.zeros(mask.numel()).index_fill_(0, chosen, 1.0).view(mask.shape)


def intersection_over_union(found: Tensor, is_inside: Tensor) -> Tensor:
    """Of every task, from masks [num_tasks, height, width]."""
    both = (found & is_inside).sum(dim=(1, 2))
    either = (found | is_inside).sum(dim=(1, 2))
    return both / either.clamp(min=1)
