r"""Whatever holds an image, as a tensor."""

import struct
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Modes that PIL hands to NumPy as they are; the other ones are converted first.
_PIL_MODES = {"1": "L", "LA": "RGBA", "PA": "RGBA"}
_PIL_PLAIN_MODES = ("L", "RGB", "RGBA", "F")
# Formats whose images of mode "I" hold 16 bits, and not 32.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")


def to_image(image: Any) -> Tensor:
    r"""An image, or a batch of them, channels first and floating point."""
    return _to_float(_to_tensor(image))


def _to_tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray):
        return _array_to_tensor(image)
    if isinstance(image, (str, PathLike)):
        return _pil_to_tensor(_open(image))
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        return _pil_to_tensor(image)
    raise TypeError(
        "'image' must be a Tensor, an array of NumPy, a PIL image or a path, got "
        f"{type(image).__name__}"
    )


def _array_to_tensor(image: np.ndarray) -> Tensor:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] > 4):
        raise ValueError(
            "'image' must have shape [height, width] or [height, width, channels] with up to four "
            f"channels where it is an array, got {list(image.shape)}: hand over other sequences of "
            "axes as a tensor, [channels, height, width]"
        )
    if image.dtype == np.uint16:
        image = image.astype(np.float32) / 65535
    elif image.dtype == bool:
        image = image.astype(np.float32)
    elif image.dtype != np.uint8 and image.dtype.kind != "f":
        raise TypeError(
            "'image' must be floating point, uint8, uint16 or bool where it is an array, got "
            f"{image.dtype}"
        )
    # A copy, because views may run backwards and files be read-only.
    native = np.array(np.atleast_3d(image), dtype=image.dtype.newbyteorder("="))
    return torch.from_numpy(native).permute(2, 0, 1)


def _open(path: str | PathLike) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports some broken PNG files as a SyntaxError.
        raise ValueError(
            f"'image' must be a readable image file, got {fspath(path)!r} ({error})"
        ) from error
    return image


def _pil_to_tensor(image: Any) -> Tensor:
    # Asked first, because a turned image has lost its format.
    is_sixteen_bit = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS
    )
    image = _upright(image)
    if is_sixteen_bit:
        values = np.array(image, dtype=np.float32) / 65535
    elif image.mode == "I":
        raise TypeError(
            "'image' must hold 8 or 16 bits or floating point values, got a PIL image of mode 'I', "
            "32-bit integers whose greatest value is not known: divide by it, and hand over a "
            "tensor"
        )
    else:
        values = np.array(_to_plain_mode(image))
    return torch.from_numpy(np.atleast_3d(values)).permute(2, 0, 1)


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, TypeError, struct.error) as error:
        raise ValueError(
            f"'image' must have a readable EXIF orientation, or none, got a damaged one ({error})"
        ) from error


def _to_plain_mode(image: Any) -> Any:
    if image.mode in ("La", "RGBa"):
        # Colors that alpha has been multiplied into.
        image = image.convert(image.mode.upper())
    mode = _PIL_MODES.get(image.mode, image.mode)
    mode = mode if mode in _PIL_PLAIN_MODES else "RGB"
    return image if mode == image.mode else image.convert(mode)


def _to_float(image: Tensor) -> Tensor:
    if image.is_floating_point():
        return image
    if image.dtype == torch.uint8:
        return image.float() / 255
    raise TypeError(f"'image' must be floating point or uint8, got {image.dtype}")
