"""What the published GrootV code computes, and a checkpoint of its names and shapes."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.equipment.fill import fill

DATA = Path(__file__).parents[1] / "data"


@cache
def published_weights() -> dict[str, Tensor]:
    """GrootV-T's weights under the published names, with values drawn from the names."""
    shapes = json.loads((DATA / "grootv_t.json").read_text())
    return fill(
        {
            name: torch.zeros(shape, dtype=torch.long if name.endswith("tracked") else torch.float)
            for name, shape in shapes.items()
        }
    )


@cache
def published_outputs() -> dict[str, Tensor]:
    """The images, and for these weights the four maps, map0 to map3, and the logits."""
    with np.load(DATA / "grootv_t_0.npz") as data:
        random = np.random.RandomState(int(data["seed"]))
        images = random.standard_normal(tuple(data["shape"])).astype(np.float32)
        names = ["map0", "map1", "map2", "map3", "logits"]
        return {"images": torch.from_numpy(images)} | {
            name: torch.from_numpy(data[name]) for name in names
        }
