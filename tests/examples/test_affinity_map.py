import numpy as np
import pytest
import torch
from PIL import Image

from examples.affinity_map import main
from groot_graph.models import GrootV
from tests.equipment.failing import fails_at_once


@pytest.fixture
def photo(tmp_path):
    """A dark half beside a bright one, 64 x 40 pixels, with a little noise."""
    values = np.random.default_rng(0).integers(0, 20, (40, 64, 3), dtype=np.uint8)
    values[:, 32:] += 200
    path = tmp_path / "photo.png"
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(GrootV(channels=8, depths=(2, 1, 1, 1), num_classes=3).state_dict(), path)
    return path


@pytest.fixture
def run(photo, weights, tmp_path):
    def run(*options, image=photo):
        options = [image, "--weights", weights, *options, "--output", tmp_path / "out"]
        return main(list(map(str, options)))

    return run


def test_maps_of_a_file_and_a_picture_of_them(run, tmp_path, capsys):
    maps = run("--at", 5, 20)
    assert [affinity.shape for affinity in maps.values()] == [(160,), (160,)]
    node = 20 // 4 * 16 + 5 // 4
    for affinity in maps.values():
        assert affinity[node] == pytest.approx(1) and affinity.argmax() == node
    with Image.open(tmp_path / "out" / "affinity_map.png") as picture:
        assert min(picture.size) > 100
    printed = capsys.readouterr().out
    assert "10 x 16 nodes at stride 4" in printed and "affinity, raster scan: 0." in printed


def test_the_tree_hears_its_own_half_best(run):
    maps = run("--at", 5, 20)
    tree = maps["affinity, tree scan"].view(10, 16)
    assert tree[:, :8].mean() > tree[:, 8:].mean()


def test_the_raster_scan_fades_along_the_rows(run):
    raster = run("--at", 30, 20)["affinity, raster scan"]
    node = 20 // 4 * 16 + 30 // 4
    assert (raster[: node + 1].diff() > 0).all() and (raster[node:].diff() < 0).all()


def test_another_layer(run):
    maps = run("--layer", -1)
    assert [affinity.shape for affinity in maps.values()] == [(4,), (4,)]


def test_a_photograph_of_scikit_image(run):
    maps = run(image="chelsea")
    assert maps["affinity, tree scan"].shape == (64 * 96,)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--at", 64, 0), "--at 64 0: outside the image of 64 x 40 pixels"),
        (("--layer", 9), "--layer 9: the network has layers 0 to 4"),
    ],
)
def test_bad_options_are_told_in_one_line(run, capsys, options, message):
    fails_at_once(capsys, lambda: run(*options), message)


def test_bad_files_are_told_in_one_line(run, capsys, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    fails_at_once(capsys, lambda: run(image=broken), "unreadable image")
    fails_at_once(
        capsys, lambda: run(image="nowhere.png"), "neither an image file nor a photograph"
    )
    fails_at_once(capsys, lambda: run("--weights", broken), "must be a file of weights alone")
    small = tmp_path / "small.png"
    Image.new("RGB", (20, 50)).save(small)
    fails_at_once(capsys, lambda: run(image=small), "a side has less than 32 pixels")
