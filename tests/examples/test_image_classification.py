import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples import image_classification
from examples.image_classification import main
from tests.equipment.examples import copy_images, same, save_stripes
from tests.equipment.failing import fails_at_once

EXAMPLE = Path(image_classification.__file__)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    save_stripes(folder, 9, 16, np.random.default_rng(0))
    return folder


@pytest.fixture
def folder_run(photos, tmp_path):
    def run(*options, output="out", data=photos):
        options = ["--dataset", "folder", "--data", data, "--image-size", 6, *options]
        return main([str(option) for option in [*options, "--output", tmp_path / output]])

    return run


def load(path):
    return torch.load(path, weights_only=True)


def test_digits(tmp_path, capsys):
    accuracy = main(["--epochs", "1", "--output", str(tmp_path / "new" / "outputs")])
    printed = capsys.readouterr()
    assert "digits: 1797 images of 1x8x8, 10 classes, 1198 to train on, 599 held out" in printed.out
    assert f"held-out accuracy: {100 * accuracy:.2f} %" in printed.out
    assert "19/19" in printed.err  # the progress bar
    # One epoch is far from the full training, and far from guessing.
    assert accuracy > 0.2
    with Image.open(tmp_path / "new" / "outputs" / "trees.png") as picture:
        assert picture.width > 500
    assert sorted(path.name for path in (tmp_path / "new" / "outputs").iterdir()) == [
        "checkpoint.pt",
        "trees.png",
    ]


@pytest.mark.full
def test_mnist5k_is_shrunk_by_the_stem():
    images, labels, classes = image_classification.load_images(
        image_classification.parse_arguments(["--dataset", "mnist5k"])
    )
    assert images.shape == (5000, 1, 28, 28)
    assert images.aminmax() == (0, 1)
    assert labels.bincount().tolist() == [500] * len(classes)
    model = image_classification.TreeClassifier(1, 28, 10)
    assert model.grid == 14
    assert model(images[:2]).shape == (2, 10)


@pytest.mark.parametrize("size", [2, 15, 16, 29, 31, 50])
def test_the_stem_fits_every_size(size):
    model = image_classification.TreeClassifier(3, size, 4)
    assert model.grid <= image_classification.largest_grid
    assert model(torch.rand(1, 3, size, size)).shape == (1, 4)


def test_gradients_reach_every_parameter():
    model = image_classification.TreeClassifier(1, 8, 10)
    model(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_a_folder_of_images(folder_run, tmp_path, capsys):
    folder_run("--epochs", 2)
    printed = capsys.readouterr().out
    assert "folder: 27 images of 3x6x6, 3 classes, 18 to train on, 9 held out" in printed
    content = load(tmp_path / "out" / "checkpoint.pt")
    assert content["config"]["classes"] == ["lying", "noise", "standing"]


@pytest.mark.full
def test_the_same_seed_gives_the_same_bits(folder_run, tmp_path):
    for output, seed in (("a", 3), ("b", 3), ("c", 4)):
        folder_run("--epochs", 2, "--seed", seed, output=output)
    a, b, c = (load(tmp_path / output / "checkpoint.pt") for output in "abc")
    assert same(a, b)
    assert not same(a["model"], c["model"])


@pytest.mark.full
def test_an_interrupted_run_goes_on_to_the_same_bits(folder_run, tmp_path, monkeypatch, capsys):
    folder_run("--epochs", 3, output="whole")

    calls = []
    augment = image_classification.augment

    def interrupted_augment(images):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return augment(images)

    monkeypatch.setattr(image_classification, "augment", interrupted_augment)
    with pytest.raises(SystemExit) as exit_info:
        folder_run("--epochs", 3, output="cut")
    assert exit_info.value.code == 130
    assert "--resume" in capsys.readouterr().err
    assert load(tmp_path / "cut" / "checkpoint.pt")["epoch"] == 2

    # The seed of a resumed run does not matter: the random state is in the checkpoint.
    folder_run("--epochs", 3, "--resume", "--seed", 5, output="cut")
    whole, cut = (load(tmp_path / output / "checkpoint.pt") for output in ("whole", "cut"))
    assert same(whole, cut)


@pytest.mark.full
def test_a_finished_run_is_only_evaluated_again(folder_run, tmp_path):
    accuracy = folder_run("--epochs", 1)
    before = (tmp_path / "out" / "checkpoint.pt").read_bytes()
    assert folder_run("--epochs", 1, "--resume") == accuracy
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == before


def test_an_interruption_while_writing_leaves_the_old_checkpoint(folder_run, tmp_path, monkeypatch):
    folder_run("--epochs", 1)
    before = (tmp_path / "out" / "checkpoint.pt").read_bytes()

    def interrupted_save(content, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(SystemExit):
        folder_run("--epochs", 2, "--resume")
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == before


def test_a_missing_checkpoint(folder_run, tmp_path, capsys):
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    fails_at_once(
        capsys, lambda: folder_run("--resume"), checkpoint, "no checkpoint to resume from"
    )
    assert not (tmp_path / "out").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    weight = load(path)["model"]["head.weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight) + 5] ^= 1
    path.write_bytes(content)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no checkpoint"),
        cut,
        flip_a_bit,
    ],
    ids=["empty", "text", "cut", "one bit"],
)
def test_a_damaged_checkpoint(folder_run, tmp_path, capsys, damage):
    folder_run("--epochs", 1)
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    damage(checkpoint)
    before = checkpoint.read_bytes()
    fails_at_once(capsys, lambda: folder_run("--resume"), checkpoint, "damaged")
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    "content", [{"epoch": 1}, [1, 2], torch.zeros(3), {"config": None}], ids=str
)
def test_something_else_than_a_checkpoint(folder_run, tmp_path, capsys, content):
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    checkpoint.parent.mkdir()
    torch.save(content, checkpoint)
    before = checkpoint.read_bytes()
    fails_at_once(capsys, lambda: folder_run("--resume"), checkpoint, "not a checkpoint")
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_of_another_dataset(folder_run, tmp_path, capsys):
    folder_run("--epochs", 1)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    digits = ["--resume", "--output", str(tmp_path / "out")]
    fails_at_once(capsys, lambda: main(digits), "made with dataset folder, this run has digits")
    other_size = lambda: folder_run("--resume", "--image-size", 7)  # noqa: E731
    fails_at_once(capsys, other_size, "made with image_shape [3, 6, 6], this run has [3, 7, 7]")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_checkpoint_of_another_model(folder_run, monkeypatch, capsys):
    folder_run("--epochs", 1)
    monkeypatch.setattr(image_classification, "depth", 3)
    fails_at_once(capsys, lambda: folder_run("--resume"), "made with depth 2, this run has 3")


def copy_of(photos, tmp_path, broken_file, content):
    copy = copy_images(photos, tmp_path / "copy")
    (copy / broken_file).write_bytes(content)
    return copy


@pytest.mark.sampled(4)
@pytest.mark.parametrize("content", [b"", b"no image"], ids=["empty", "text"])
def test_an_unreadable_image(photos, folder_run, tmp_path, capsys, content):
    folder_run("--epochs", 1)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    data = copy_of(photos, tmp_path, "noise/4.png", content)
    fails_at_once(
        capsys, lambda: folder_run(data=data), data / "noise" / "4.png", "unreadable image"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_truncated_image(photos, folder_run, tmp_path, capsys):
    whole = (photos / "noise" / "4.png").read_bytes()
    data = copy_of(photos, tmp_path, "noise/4.png", whole[:-100])
    fails_at_once(capsys, lambda: folder_run(data=data), "4.png", "unreadable image")


def test_other_files_are_passed_over(photos, folder_run, tmp_path):
    folder_run("--epochs", 1, data=copy_of(photos, tmp_path, "noise/notes.txt", b"notes"))


@pytest.mark.parametrize(
    ("sub_folders", "message"),
    [
        (None, "no such folder"),
        ([], "needs a sub-folder per class, found 0"),
        (["one"], "needs a sub-folder per class, found 1"),
        (["one", "two"], "class 'one' needs 3 images, found 0"),
    ],
    ids=["missing", "empty", "one", "no images"],
)
def test_an_empty_folder(folder_run, tmp_path, capsys, sub_folders, message):
    data = tmp_path / "data"
    for name in sub_folders or []:
        (data / name).mkdir(parents=True)
    if sub_folders == []:
        data.mkdir()
    fails_at_once(capsys, lambda: folder_run(data=data), data, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "folder"], "--data DIR and --dataset folder belong together"),
        (["--data", "photos"], "--data DIR and --dataset folder belong together"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--image-size", "1"], "--image-size at least 2"),
        (["--device", "abacus"], "--device abacus"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit(capsys, options, message):
    fails_at_once(capsys, lambda: main(options), message)


def test_an_output_that_is_a_file(folder_run, tmp_path, capsys):
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(SystemExit) as exit_info:
        folder_run("--epochs", 1)
    assert exit_info.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.full
def test_the_command_line(tmp_path):
    command = [sys.executable, EXAMPLE, "--resume"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert (
        line == f"error: {Path('outputs', 'checkpoint.pt')}: there is no checkpoint to resume from"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_value_are_drawn(folder_run, tmp_path, value):
    for name in ("one", "other"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (6, 6), value).save(tmp_path / "plain" / name / f"{number}.png")
    folder_run("--epochs", 1, data=tmp_path / "plain")
    assert (tmp_path / "out" / "trees.png").exists()


def test_parts_to_train_and_to_test_are_no_classes(folder_run, photos, tmp_path, capsys):
    for part in ("train", "test"):
        copy_images(photos, tmp_path / "parts" / part)
    data = tmp_path / "parts"
    fails_at_once(capsys, lambda: folder_run(data=data), "a sub-folder per class, as in", "train")
    folder_run("--epochs", 1, data=data / "train")
    assert "3 classes: lying, noise, standing" in capsys.readouterr().out
