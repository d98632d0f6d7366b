"""What the tests of the examples share."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"

# Small networks on few images, for the two examples that learn generated scenes.
SEGMENTATION = {
    "channels": 8,
    "depths": (1, 1, 1, 1),
    "head_channels": 8,
    "num_train": 10,
    "num_test": 4,
}
DETECTION = {
    "channels": 8,
    "depths": (1, 1, 1, 1),
    "detector_channels": 16,
    "decoder_layers": 1,
    "num_queries": 8,
    "num_train": 10,
    "num_test": 4,
}


def set_all(patch, module, settings: dict) -> None:
    for name, value in settings.items():
        patch.setattr(module, name, value)


def same(a, b) -> bool:
    """Whether two checkpoints are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def save_stripes(folder: Path, num_images: int, size: int, random: np.random.Generator) -> None:
    """Three classes: stripes that lie, stand, and noise; in several sizes."""
    for name in ("lying", "noise", "standing"):
        (folder / name).mkdir(parents=True)
        for number in range(num_images):
            shape = (size, size - 6 + number, 3)
            values = random.integers(0, 256, shape, dtype=np.uint8)
            values[:: 2 if name == "lying" else 1, :: 2 if name == "standing" else 1] = 255
            Image.fromarray(values).save(folder / name / f"{number}.png")


def copy_images(source: Path, target: Path) -> Path:
    for file in source.rglob("*.png"):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return target
