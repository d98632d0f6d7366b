r"""Generated images for the examples of segmentation and detection. Discs, rings, triangles and
stars are cut out of pictures of brick, grass and gravel, tinted at random and laid on photographs:
masks and boxes are exact, and only the outline tells one class from another. All pictures ship with
scikit-image and scikit-learn.
"""

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_image
from torch import Tensor
from tqdm import trange

# The settings.
most_shapes = 3  # in an image
shapes = ("disc", "ring", "triangle", "star")
materials = ("brick", "grass", "gravel")
train_photographs = (
    "astronaut", "camera", "cat", "coffee", "coins", "hubble_deep_field", "immunohistochemistry",
    "moon", "retina",
)  # fmt: skip
test_photographs = ("china.jpg", "flower.jpg", "rocket")

# The label of a shape and its pixels [H, W].
Shape = tuple[int, np.ndarray]


def make_scenes(
    num_train: int, num_test: int, size: int, seed: int, may_overlap: bool
) -> tuple[Tensor, list[list[Shape]]]:
    """Images as bytes [N, 3, H, W], and the shapes in each. The last ones show photographs and
    parts of the materials that the first ones do not."""
    random = np.random.default_rng(seed)
    scenes = []
    for names, part, number in (
        (train_photographs, slice(None, 256), num_train),
        (test_photographs, slice(256, None), num_test),
    ):
        photographs = [Image.fromarray(read_photograph(name)) for name in names]
        # Lighter than they are, so that a tint shows.
        textures = [Image.fromarray(read_photograph(m)[:, part] // 2 + 128) for m in materials]
        scenes += [
            paste_shapes(photographs, textures, size, random, may_overlap)
            for _ in trange(number, unit="image")
        ]
    images, found = zip(*scenes, strict=True)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), list(found)


def read_photograph(name: str) -> np.ndarray:
    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    return pixels if pixels.ndim == 3 else gray2rgb(pixels)


def paste_shapes(
    photographs: list[Image.Image],
    textures: list[Image.Image],
    size: int,
    random: np.random.Generator,
    may_overlap: bool,
) -> tuple[np.ndarray, list[Shape]]:
    """One image and its shapes. A shape lies over those before it, or is left out where it may not
    overlap them."""
    image = random_crop(photographs[random.integers(len(photographs))], size, random)
    is_taken = np.zeros((size, size), dtype=bool)
    found = []
    for _ in range(random.integers(1, most_shapes, endpoint=True)):
        label = int(random.integers(len(shapes)))
        cover = random_outline(shapes[label], size, random)
        is_inside = np.asarray(cover) > 127
        if not may_overlap and (is_inside & is_taken).any():
            continue
        is_taken |= is_inside
        texture = random_crop(textures[random.integers(len(textures))], size, random)
        tint = Image.new("RGB", texture.size, f"hsv({random.integers(360)}, 80%, 100%)")
        image.paste(ImageChops.multiply(texture, tint), mask=cover)
        found.append((label, is_inside))
    return np.asarray(image), found


def random_crop(photograph: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    largest = min(photograph.size)
    side = random.integers(min(size, largest), largest, endpoint=True)
    left, top = (random.integers(length - side, endpoint=True) for length in photograph.size)
    box = (left, top, left + side, top + side)
    return photograph.resize((size, size), Image.Resampling.BILINEAR, box)


def random_outline(shape: str, size: int, random: np.random.Generator) -> Image.Image:
    """How much of each pixel the shape covers, from 0 to 255."""
    radius = random.uniform(0.16, 0.32) * size
    center = complex(*random.uniform(0.1 * size, 0.9 * size, 2))
    turn = np.exp(1j * random.uniform(0, 2 * np.pi))
    fine = 4  # drawn on a finer grid, so that the edges are smooth
    drawing = Image.new("L", (fine * size, fine * size))
    for outline, value in zip(outlines[shape], (255, 0), strict=False):
        points = fine * (center + radius * turn * outline)
        ImageDraw.Draw(drawing).polygon(list(zip(points.real, points.imag, strict=True)), value)
    return drawing.resize((size, size), Image.Resampling.BOX)


def corners(number: int) -> np.ndarray:
    return np.exp(2j * np.pi * np.arange(number) / number)


# The second outline is a hole.
outlines = {
    "disc": [corners(60)],
    "ring": [corners(60), 0.55 * corners(60)],
    "triangle": [corners(3)],
    "star": [corners(10) * np.tile([1.0, 0.42], 5)],
}
