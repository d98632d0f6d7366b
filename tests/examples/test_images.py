"""Images are read upright, and in 8 bits whatever they are stored in."""

import numpy as np
import pytest
from PIL import Image

from common import UserError
from images import read_mask, read_rgb


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_become_eight(tmp_path, name):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    image = read_rgb(tmp_path / name)
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_unknown_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.zeros((2, 2), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: unreadable image \(of mode [IF], 32 bits"):
        read_rgb(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [read_rgb, read_mask])
def test_images_and_masks_are_upright(tmp_path, read):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.array([[10, 20, 30]], dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    image = read(tmp_path / "a.png")
    assert image.size == (1, 3)
    assert np.asarray(image).reshape(3, -1)[:, 0].tolist() == [30, 20, 10]


def test_damaged_exif_is_named(tmp_path):
    Image.new("RGB", (4, 2)).save(tmp_path / "a.webp", exif=b"Exif\x00\x00MM\x00\xff\x00\x00")
    with pytest.raises(UserError, match=r"a\.webp: unreadable image"):
        read_rgb(tmp_path / "a.webp")


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"bomb\.png: unreadable image"):
        read_rgb(tmp_path / "bomb.png")
