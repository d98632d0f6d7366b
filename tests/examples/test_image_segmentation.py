import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from transformers import UperNetForSemanticSegmentation

from examples import image_segmentation
from examples.image_segmentation import class_ious, main, mean_iou
from tests.equipment.examples import SEGMENTATION, set_all
from tests.equipment.failing import fails

import scenes
from common import Checkpoint


@pytest.fixture(autouse=True)
def small_settings(monkeypatch):
    set_all(monkeypatch, image_segmentation, SEGMENTATION)


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


def generate(num_images, size):
    images, found = scenes.make_scenes(0, num_images, size, seed=0, may_overlap=True)
    return images, image_segmentation.make_masks(found, size)


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "segmentation.pt", {}, resume=False)


def saved_iou(folder, images, masks):
    """The mean IoU of the saved model, class for class and without the example's own measure."""
    model = UperNetForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        prediction = model(images.float() / 127.5 - 1).logits.argmax(dim=1)
    ious = []
    for label in range(model.config.num_labels):
        found, true = prediction[masks != 255] == label, masks[masks != 255] == label
        if (found | true).any():
            ious.append((found & true).sum().item() / (found | true).sum().item())
    return sum(ious) / len(ious)


def test_a_run(run, tmp_path, capsys):
    result = run()
    printed = capsys.readouterr()
    assert "5 classes, images of 32 x 32 pixels, 10 to train on, 4 held out" in printed.out
    assert f"held-out mIoU: {100 * result:.1f} %" in printed.out
    assert "mIoU of the most frequent class everywhere" in printed.out
    for name in ("background", "disc", "ring", "triangle", "star"):
        assert f"  {name} " in printed.out
    assert "2/2" in printed.err  # the progress bar
    images, found = scenes.make_scenes(10, 4, 32, seed=0, may_overlap=True)
    masks = image_segmentation.make_masks(found, 32)
    saved = saved_iou(tmp_path / "out" / "segmentation", images[10:], masks[10:])
    assert result == pytest.approx(saved)
    with Image.open(tmp_path / "out" / "segmentation.png") as picture:
        assert picture.width > 500
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "segmentation",
        "segmentation.png",
    ]


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
    images, masks = generate(8, 32)
    torch.manual_seed(0)
    model = image_segmentation.make_model(["background", *scenes.shapes])

    @torch.no_grad()
    def loss():
        x = image_segmentation.normalize(images)
        return model.train()(pixel_values=x, labels=masks.long()).loss.item()

    before = loss()
    image_segmentation.train(model, images, masks, 30, checkpoint)
    assert loss() < 0.9 * before


def test_masks_show_the_later_of_two_shapes():
    left, both = np.zeros((2, 4, 4), dtype=bool)
    left[:, :2] = both[:2] = True
    masks = image_segmentation.make_masks([[(1, left), (3, both)], []], 4)
    assert masks.dtype == torch.uint8
    assert masks[0].tolist() == 2 * [[4, 4, 4, 4]] + 2 * [[2, 2, 0, 0]]
    assert masks[1].tolist() == 4 * [[0, 0, 0, 0]]


def test_masks_of_generated_images():
    images, masks = generate(20, 48)
    assert images.shape == (20, 3, 48, 48)
    assert masks.unique().tolist() == [0, 1, 2, 3, 4]


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
    saved = tmp_path / "out" / "segmentation"
    images, masks, _ = image_segmentation.load_folder(folder, 32)
    _, test_part = train_test_split(torch.arange(8), test_size=2, random_state=0)
    assert result == pytest.approx(saved_iou(saved, images[test_part], masks[test_part]))
    config = UperNetForSemanticSegmentation.from_pretrained(saved).config
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


def test_images_that_are_too_small(run, capsys):
    fails(capsys, lambda: run("--image-size", 31), "--image-size at least 32")


def test_a_last_image_alone_is_learned(folder, run):
    for number in range(8, 12):
        for part in ("images", "masks"):
            shutil.copy(folder / part / "0.png", folder / part / f"{number}.png")
    # Nine of twelve images to train on, eight a batch, and one value of every pooled channel.
    assert image_segmentation.load_folder(folder, 32)[0].size(0) == 12
    run("--data", folder)


def test_masks_without_a_class(folder, run, capsys):
    for number in range(8):
        Image.new("L", (50 + number, 40), 255).save(folder / "masks" / f"{number}.png")
    fails(capsys, lambda: run("--data", folder), "the 6 masks to train on hold no class")


def test_images_that_share_a_mask(folder, run, capsys):
    Image.new("RGB", (52, 40)).save(folder / "images" / "2.jpg")
    fails(capsys, lambda: run("--data", folder), "2.jpg: has the mask of", "masks/2.png")
