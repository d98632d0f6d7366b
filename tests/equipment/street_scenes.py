"""A few small street scenes with the classes of their pixels, in either form."""

import numpy as np
from PIL import Image

from experiments.camvid import VOID

PARTS = {"train": 5, "val": 2, "test": 2}
SKY, ROAD = 0, 3


def write_scenes(folder, is_tutorial: bool) -> None:
    """A bright sky over a dark road, and a line of void between them."""
    draw = np.random.default_rng(0)
    for part, count in PARTS.items():
        drawn = folder / f"{part}annot" if is_tutorial else folder / part
        for made in (folder / part, drawn):
            made.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            horizon = int(draw.integers(40, 80))
            classes = np.full((120, 160), ROAD, np.uint8)
            classes[:horizon], classes[horizon] = SKY, VOID
            noise = draw.integers(0, 30, (120, 160, 3))
            pixels = (noise + 180 * (classes == SKY)[:, :, None]).astype(np.uint8)
            image = f"{number}.png" if is_tutorial else f"{number}.jpg"
            Image.fromarray(pixels).save(folder / part / image)
            Image.fromarray(classes).save(drawn / f"{number}.png")
