import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import UperNetForSemanticSegmentation

from examples import image_segmentation
from examples.image_segmentation import class_ious, main, mean_iou
from tests.equipment.failing import fails

EXAMPLE = Path(image_segmentation.__file__)


@pytest.fixture(autouse=True)
def small_settings(monkeypatch):
    monkeypatch.setattr(image_segmentation, "channels", 8)
    monkeypatch.setattr(image_segmentation, "depths", (1, 1, 1, 1))
    monkeypatch.setattr(image_segmentation, "head_channels", 8)
    monkeypatch.setattr(image_segmentation, "num_train", 10)
    monkeypatch.setattr(image_segmentation, "num_test", 4)


@pytest.fixture
def run(tmp_path):
    def run(*options, output="out"):
        options = ["--image-size", 32, "--epochs", 1, *options, "--output", tmp_path / output]
        return main([str(option) for option in options])

    return run


@pytest.fixture
def folder(tmp_path):
    """Eight images: a bright rectangle of class 1 on black, a frame that is left out."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text("nothing\nrectangle\n")
    for number in range(8):
        mask = np.zeros((40, 50 + number), dtype=np.uint8)
        mask[5 + number : 30, 10:40] = 1
        Image.fromarray(200 * mask).convert("RGB").save(folder / "images" / f"{number}.png")
        mask[0] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def generate(seed, num_images=20, size=48):
    random = np.random.default_rng(seed)
    names = image_segmentation.test_photographs
    return image_segmentation.generate(names, slice(256, None), num_images, size, random)


@pytest.fixture
def checkpoint(tmp_path):
    return image_segmentation.Checkpoint(tmp_path / "segmentation.pt", {}, resume=False)


def test_a_run(run, tmp_path, capsys):
    result = run()
    printed = capsys.readouterr()
    assert "5 classes, images of 32 x 32 pixels, 10 to train on, 4 held out" in printed.out
    assert f"held-out mIoU: {100 * result:.1f} %" in printed.out
    assert "mIoU of the most frequent class everywhere" in printed.out
    for name in ("background", "disc", "ring", "triangle", "star"):
        assert f"  {name} " in printed.out
    assert "2/2" in printed.err  # the progress bar
    assert 0 <= result <= 1
    with Image.open(tmp_path / "out" / "segmentation.png") as picture:
        assert picture.width > 500
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "segmentation",
        "segmentation.png",
    ]


@pytest.mark.full
def test_the_same_seed_gives_the_same_bits(run, tmp_path):
    results = [run("--seed", seed, output=output) for output, seed in (("a", 3), ("b", 3))]
    run("--seed", 4, output="c")
    a, b, c = (
        (tmp_path / output / "segmentation" / "model.safetensors").read_bytes() for output in "abc"
    )
    assert results[0] == results[1]
    assert a == b
    assert a != c


@pytest.mark.full
def test_an_interrupted_run_goes_on_to_the_same_bits(run, tmp_path, monkeypatch, capsys):
    weights = "segmentation/model.safetensors"
    whole = run("--epochs", 3, output="whole")
    calls, augment = [], image_segmentation.augment

    def interrupted(*batch):
        calls.append(1)
        if len(calls) == 5:  # in the last of three epochs of two batches each
            raise KeyboardInterrupt
        return augment(*batch)

    monkeypatch.setattr(image_segmentation, "augment", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        run("--epochs", 3)
    assert exit_info.value.code == 130
    assert "--resume goes on" in capsys.readouterr().err
    fails(capsys, lambda: run("--epochs", 4, "--resume"), "'epochs': 3", "this run has")

    calls.clear()
    assert run("--epochs", 3, "--resume") == whole
    assert len(calls) == 2
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    fails(capsys, lambda: run("--resume"), "segmentation.pt", "no checkpoint to resume from")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of it"])
def test_a_damaged_checkpoint_is_refused(content, run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "segmentation.pt").write_bytes(content)
    fails(capsys, lambda: run("--resume"), "segmentation.pt: not a checkpoint, or a damaged one")
    assert (tmp_path / "out" / "segmentation.pt").read_bytes() == content


def test_the_checkpoint_holds_the_model(run, tmp_path, monkeypatch):
    trained = []
    save = UperNetForSemanticSegmentation.save_pretrained

    def remember(model, path):
        trained.append(model)
        save(model, path)

    monkeypatch.setattr(UperNetForSemanticSegmentation, "save_pretrained", remember)
    run()
    loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "out" / "segmentation")
    assert loaded.config.id2label[4] == "star"
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(trained[0].eval()(x).logits, loaded.eval()(x).logits)


@pytest.mark.full
def test_training_lowers_the_loss(checkpoint):
    images, masks = generate(0, 8, 32)
    torch.manual_seed(0)
    model = image_segmentation.make_model(["background", *image_segmentation.shapes])

    @torch.no_grad()
    def loss():
        x = image_segmentation.normalize(images)
        return model.train()(pixel_values=x, labels=masks.long()).loss.item()

    before = loss()
    image_segmentation.train(model, images, masks, 30, checkpoint)
    assert loss() < 0.9 * before


def test_masks_fit_the_shapes():
    size = 64
    random = np.random.default_rng(0)
    black = [Image.new("RGB", (size, size))]
    white = [Image.new("RGB", (size, size), "white")]
    for _ in range(20):
        image, mask = image_segmentation.paste_shapes(black, white, size, random)
        # Tints are 64 at least, and a pixel belongs to a shape that covers half of it.
        assert (image.max(2)[mask > 0] >= 32).all()
        assert (image.max(2)[mask == 0] < 128).all()
        assert 0 < (mask > 0).mean() < 1


def test_generated_images():
    images, masks = generate(0)
    assert images.shape == (20, 3, 48, 48)
    assert images.dtype == masks.dtype == torch.uint8
    assert masks.unique().tolist() == [0, 1, 2, 3, 4]
    again, other = generate(0), generate(1)
    assert torch.equal(images, again[0]) and torch.equal(masks, again[1])
    assert not torch.equal(images, other[0])


def test_images_larger_than_the_photographs():
    images, masks = generate(0, 1, 640)
    assert images.shape == (1, 3, 640, 640)
    assert masks.shape == (1, 640, 640)


def test_nothing_held_out_is_trained_on():
    train, test = image_segmentation.train_photographs, image_segmentation.test_photographs
    assert not set(train) & set(test)
    for name in image_segmentation.materials:
        assert image_segmentation.read_photograph(name).shape == (512, 512, 3)


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

    cover = np.asarray(image_segmentation.random_outline(shape, 100, Middle())) / 255
    assert cover.sum() == pytest.approx(share * 24**2, rel=0.05)


def test_augmented_images_and_masks_stay_together():
    masks = torch.randint(0, 5, (6, 8, 8))
    images = masks[:, None].expand(6, 3, 8, 8).float()
    seen = []
    for _ in range(20):
        x, y = image_segmentation.augment(images, masks)
        seen.append(y)
        # Brightness and contrast keep every pixel on a line over its label.
        for image, mask in zip(x.flatten(2), y.flatten(1), strict=True):
            for channel in image:
                correlation = torch.corrcoef(torch.stack([channel, mask.float()]))[0, 1]
                assert correlation == pytest.approx(1, abs=1e-4)
    assert len({tuple(mask.flatten().tolist()) for mask in seen}) == 4


def test_a_perfect_prediction():
    truth = torch.randint(0, 4, (3, 16, 16))
    assert class_ious(truth, truth, 4).tolist() == [1, 1, 1, 1]
    assert mean_iou(truth, truth, 4) == 1


def test_a_known_confusion():
    truth = torch.tensor([[0, 0, 0, 0], [1, 1, 2, 255]])
    prediction = torch.tensor([[0, 0, 0, 1], [1, 2, 2, 0]])
    # Class 0: 3 of 4; 1: 1 of 3; 2: 1 of 2; 3 is nowhere.
    assert class_ious(truth, prediction, 4) == pytest.approx(
        [3 / 4, 1 / 3, 1 / 2, np.nan], nan_ok=True
    )
    assert mean_iou(truth, prediction, 4) == pytest.approx((3 / 4 + 1 / 3 + 1 / 2) / 3)


def test_the_baselines():
    train_masks = torch.tensor([[2, 2, 2, 255, 255, 255, 255, 1]])
    test_masks = torch.zeros(50, 40, dtype=torch.uint8)
    frequent, drawn = image_segmentation.baselines(train_masks, test_masks, 4).values()
    assert frequent.unique().tolist() == [2]
    assert drawn.shape == frequent.shape == test_masks.shape
    assert drawn.unique().tolist() == [1, 2]
    assert (drawn == 2).double().mean().item() == pytest.approx(0.75, abs=0.05)


def test_a_folder(folder, run, tmp_path, capsys):
    result = run("--data", folder)
    printed = capsys.readouterr().out
    assert "2 classes, images of 32 x 32 pixels, 6 to train on, 2 held out" in printed
    assert "  rectangle " in printed
    assert 0 <= result <= 1
    config = UperNetForSemanticSegmentation.from_pretrained(
        tmp_path / "out" / "segmentation"
    ).config
    assert config.id2label == {0: "nothing", 1: "rectangle"}


def test_masks_of_a_folder_keep_their_labels(folder):
    images, masks, classes = image_segmentation.load_folder(folder, 40)
    assert classes == ["nothing", "rectangle"]
    assert images.shape == (8, 3, 40, 40)
    assert masks.unique().tolist() == [0, 1, 255]
    assert (masks[:, 0] == 255).all()
    is_rectangle = masks == 1
    assert (images[:, 0][is_rectangle] > 90).float().mean() > 0.97
    assert (images[:, 0][~is_rectangle] < 110).float().mean() > 0.97


def test_masks_with_a_palette(folder):
    file = folder / "masks" / "3.png"
    before = image_segmentation.load_folder(folder, 40)[1]
    with Image.open(file) as image:
        mask = image.copy()
    mask.putpalette(list(range(256)) * 3)
    assert mask.mode == "P"
    mask.save(file)
    assert torch.equal(image_segmentation.load_folder(folder, 40)[1], before)


def test_hidden_and_other_files_are_passed_over(folder):
    (folder / "images" / ".0.png").write_bytes(b"no image")
    (folder / "images" / "notes.txt").write_text("notes")
    assert len(image_segmentation.load_folder(folder, 40)[0]) == 8


@pytest.mark.parametrize("part", ["images", "masks", "classes.txt", ""])
def test_a_missing_part(folder, run, tmp_path, capsys, part):
    path = folder / part
    path.unlink() if path.is_file() else shutil.rmtree(path)
    fails(capsys, lambda: run("--data", folder), folder, f"has no {part or 'images'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images/2.png", b"", "unreadable image"),
        ("masks/2.png", b"no image", "unreadable image"),
        ("masks/2.png", None, "there is no such file"),
        ("classes.txt", b"one\n", "needs 2 to 255 classes, found 1"),
        ("classes.txt", b"\xff\xfe\xff", "classes.txt"),
    ],
)
def test_a_broken_file(folder, run, capsys, file, content, message):
    path = folder / file
    path.unlink() if content is None else path.write_bytes(content)
    fails(capsys, lambda: run("--data", folder), path, message)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((40, 52), 2, dtype=np.uint8), "class 2, but there are 2 classes"),
        (np.zeros((40, 51), dtype=np.uint8), "(51, 40) pixels, its image has (52, 40)"),
        (np.zeros((40, 52, 3), dtype=np.uint8), "found mode RGB"),
    ],
    ids=["class", "size", "colors"],
)
def test_a_mask_that_does_not_fit(folder, run, capsys, mask, message):
    Image.fromarray(mask).save(folder / "masks" / "2.png")
    fails(capsys, lambda: run("--data", folder), folder / "masks" / "2.png", message)


def test_too_few_images(folder, run, capsys):
    for number in range(5):
        (folder / "images" / f"{number}.png").unlink()
    fails(capsys, lambda: run("--data", folder), "needs 4 images, found 3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", 0], "--epochs must be at least 1"),
        (["--image-size", 31], "--image-size at least 32"),
        (["--device", "abacus"], "--device abacus"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(run, capsys, options, message):
    fails(capsys, lambda: run(*options), message)


def test_an_output_that_is_a_file(run, tmp_path, capsys):
    (tmp_path / "out").write_bytes(b"mine")
    fails(capsys, run, "out")
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.full
def test_the_command_line(tmp_path):
    command = [sys.executable, EXAMPLE, "--data", "nowhere"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip() == "error: --data nowhere: has no images"
    assert list(tmp_path.iterdir()) == []
