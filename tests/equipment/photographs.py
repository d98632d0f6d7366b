"""A few small photographs with their regions, in either form that `experiments` reads."""

import numpy as np
from PIL import Image
from scipy.io import savemat

PARTS = {"train": 3, "val": 2, "test": 2}


def write_photographs(folder, in_archive: bool) -> None:
    """Halves of two colors, lying and standing, as the archive has them or not."""
    draw = np.random.default_rng(0)
    for part, count in PARTS.items():
        images = folder / "images" / part if in_archive else folder / part
        drawn = folder / "groundTruth" / part if in_archive else folder / part
        images.mkdir(parents=True, exist_ok=True), drawn.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shape = (48, 32) if number % 2 else (32, 48)
            numbers = np.ones(shape, np.uint16)
            numbers[:, shape[1] // 2 :] = 300
            noise = draw.integers(0, 30, (*shape, 3))
            pixels = (noise + 150 * (numbers == 300)[:, :, None]).astype(np.uint8)
            Image.fromarray(pixels).save(images / f"{number}.jpg", quality=95)
            if in_archive:
                save_people(drawn / f"{number}.mat", numbers)
            else:
                Image.fromarray(numbers).save(drawn / f"{number}.png")


def save_people(path, numbers) -> None:
    """Three people's regions; those of the second are of median number."""
    many = np.arange(numbers.size, dtype=np.uint16).reshape(numbers.shape)
    drawn = [np.ones_like(numbers), numbers, many]
    people = np.empty((1, 3), dtype=object)
    people[0] = [{"Segmentation": segmentation} for segmentation in drawn]
    savemat(path, {"groundTruth": people})
