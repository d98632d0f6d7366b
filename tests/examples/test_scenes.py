"""The generated images, and what the two examples that learn them have in common."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from examples import image_segmentation, object_detection
from tests.equipment.examples import DETECTION, SEGMENTATION, set_all
from tests.equipment.failing import fails, fails_at_once

import scenes

SIZE = 64
EXAMPLES = {
    "segmentation": (image_segmentation, SEGMENTATION),
    "detection": (object_detection, DETECTION),
}


@pytest.fixture(params=EXAMPLES)
def name(request):
    return request.param


@pytest.fixture
def example(name, monkeypatch):
    module, settings = EXAMPLES[name]
    set_all(monkeypatch, module, settings)
    return module


@pytest.fixture
def run(example, tmp_path):
    def run(*options, output="out"):
        given = ["--image-size", SIZE, "--epochs", 1, *options, "--output", tmp_path / output]
        return example.main([str(option) for option in given])

    return run


@pytest.fixture
def weights(name, tmp_path):
    return lambda output="out": (tmp_path / output / name / "model.safetensors").read_bytes()


# Both examples. -----------------------------------------------------------------------------------


@pytest.mark.full
def test_the_same_seed_gives_the_same_bits(run, weights):
    results = [run("--seed", seed, output=output) for output, seed in (("a", 3), ("b", 3))]
    run("--seed", 4, output="c")
    assert results[0] == results[1]
    assert weights("a") == weights("b")
    assert weights("a") != weights("c")


@pytest.mark.full
def test_an_interrupted_run_goes_on_to_the_same_bits(
    name, example, run, weights, monkeypatch, capsys
):
    whole = run("--epochs", 3, output="whole")
    calls, augment = [], example.augment

    def interrupted(*batch):
        calls.append(1)
        if len(calls) == 5:  # in the last of three epochs of two batches each
            raise KeyboardInterrupt
        return augment(*batch)

    monkeypatch.setattr(example, "augment", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        run("--epochs", 3)
    assert exit_info.value.code == 130
    assert "--resume goes on after the last finished epoch" in capsys.readouterr().err
    other = lambda: run("--epochs", 4, "--resume")  # noqa: E731
    fails(capsys, other, "made with epochs 3, this run has 4; another --output keeps both")

    calls.clear()
    assert run("--epochs", 3, "--resume") == whole
    assert len(calls) == 2
    assert weights("out") == weights("whole")
    fails(capsys, lambda: run("--resume"), f"{name}.pt", "no checkpoint to resume from")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of it"])
def test_a_damaged_checkpoint_is_refused(content, name, run, tmp_path, capsys):
    path = tmp_path / "out" / f"{name}.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    fails(capsys, lambda: run("--resume"), f"{path}: not a checkpoint, or a damaged one")
    assert path.read_bytes() == content


def test_options_of_both(run, capsys):
    fails_at_once(capsys, lambda: run("--epochs", 0), "--epochs must be at least 1")
    fails_at_once(capsys, lambda: run("--device", "abacus"), "--device abacus: ")


def test_an_output_that_is_a_file(run, tmp_path, capsys):
    (tmp_path / "out").write_bytes(b"mine")
    fails(capsys, run, "out")
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.full
@pytest.mark.parametrize(
    "name, option, message",
    [
        ("segmentation", "--data=nowhere", "--data nowhere: has no images"),
        ("detection", "--epochs=0", "--epochs must be at least 1"),
    ],
)
def test_the_command_line(example, tmp_path, option, message):
    command = [sys.executable, example.__file__, option]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip() == f"error: {message}"
    assert list(tmp_path.iterdir()) == []


# The images. --------------------------------------------------------------------------------------


def make(seed, number=20, size=48, may_overlap=True):
    return scenes.make_scenes(number, 3, size, seed, may_overlap)


def paste(may_overlap):
    """White shapes on black, many times."""
    random = np.random.default_rng(0)
    black = [Image.new("RGB", (SIZE, SIZE))]
    white = [Image.new("RGB", (SIZE, SIZE), "white")]
    return [scenes.paste_shapes(black, white, SIZE, random, may_overlap) for _ in range(20)]


def test_the_shapes_are_where_their_pixels_are():
    for image, found in paste(may_overlap=True):
        is_shape = np.any([is_inside for _, is_inside in found], axis=0)
        # Tints are 64 at least, and a pixel belongs to a shape that covers half of it.
        assert (image.max(2)[is_shape] >= 32).all()
        assert (image.max(2)[~is_shape] < 128).all()
        assert 0 < is_shape.mean() < 1


def test_shapes_that_may_not_overlap():
    for image, found in paste(may_overlap=False):
        assert found
        is_shape = np.sum([is_inside for _, is_inside in found], axis=0)
        assert is_shape.max() == 1
        # Every tint has one full channel, and a pixel belongs to a shape that covers half of it.
        assert np.array_equal(image.max(2) > 127, is_shape == 1)
    assert any((sum(p.astype(int) for _, p in found) > 1).any() for _, found in paste(True))


def test_the_same_seed_gives_the_same_images():
    images, found = make(0)
    assert images.shape == (23, 3, 48, 48) and images.dtype == torch.uint8
    assert {label for shapes in found for label, _ in shapes} == {0, 1, 2, 3}
    assert all(1 <= len(shapes) <= scenes.most_shapes for shapes in found)
    again, found_again = make(0)
    assert torch.equal(images, again)
    for before, after in zip(found, found_again, strict=True):
        assert [label for label, _ in before] == [label for label, _ in after]
    assert not torch.equal(images, make(1)[0])


def test_images_larger_than_the_photographs():
    images, ((_, *_), *_) = make(0, 1, 640)
    assert images.shape == (4, 3, 640, 640)


def test_nothing_held_out_is_trained_on():
    assert not set(scenes.train_photographs) & set(scenes.test_photographs)
    for material in scenes.materials:
        assert scenes.read_photograph(material).shape == (512, 512, 3)


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ("disc", np.pi),
        ("ring", np.pi * (1 - 0.55**2)),
        ("triangle", 3 * np.sqrt(3) / 4),
        ("star", 10 * 0.42 * np.sin(np.pi / 5) / 2),
    ],
)
def test_outlines_have_the_area_of_their_shape(shape, share):
    class Middle:
        """Neither moves nor turns, and takes the largest radius."""

        def uniform(self, low, high, size=None):
            return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)

    cover = np.asarray(scenes.random_outline(shape, 100, Middle())) / 255
    assert cover.sum() == pytest.approx(share * 24**2, rel=0.05)
