import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from sklearn.model_selection import train_test_split
from transformers import RTDetrForObjectDetection

from examples import object_detection
from examples.object_detection import average_precision, main
from tests.equipment.examples import DETECTION, set_all
from tests.equipment.failing import fails

import scenes
from common import Checkpoint


@pytest.fixture(autouse=True)
def small_settings(monkeypatch):
    set_all(monkeypatch, object_detection, DETECTION)


@pytest.fixture
def run(tmp_path):
    def run(*options, output="out"):
        options = ["--image-size", 64, "--epochs", 1, *options, "--output", tmp_path / output]
        return main([str(option) for option in options])

    return run


@pytest.fixture
def content(tmp_path):
    """What COCO holds of eight images, each with one rectangle; image and category ids skip."""
    (tmp_path / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": []}
    for number in range(8):
        left, top, width, height = box = [10 + number, 5, 30, 20 + number]
        pixels = np.zeros((60, 80, 3), dtype=np.uint8)
        pixels[top : top + height, left : left + width] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        content["images"].append({"id": 100 + number, "file_name": f"{number}.png"})
        category = 7 if number % 2 else 3
        content["annotations"].append(
            {"id": number, "image_id": 100 + number, "category_id": category, "bbox": box}
        )
    content["categories"] = [{"id": 7, "name": "odd"}, {"id": 3, "name": "even"}]
    return content


@pytest.fixture
def own(tmp_path, content):
    """The options that name this content, once changed and written."""

    def own(change=lambda content: None):
        change(content)
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        return ["--images", tmp_path / "images", "--annotations", tmp_path / "boxes.json"]

    return own


def generate(num_images, size=64):
    images, found = scenes.make_scenes(num_images, 0, size, seed=0, may_overlap=False)
    return images, object_detection.annotate(found, size)


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "detection.pt", {}, resume=False)


def saved_precision(folder, images, coco, numbers):
    """Of the saved model, one image at a time."""
    model = RTDetrForObjectDetection.from_pretrained(folder).eval()
    results = []
    for number in numbers:
        with torch.no_grad():
            output = model(images[number : number + 1].float() / 127.5 - 1)
        results += object_detection.describe_detections(
            coco, number, output.logits[0], output.pred_boxes[0]
        )
    return pytest.approx(average_precision(coco, results, numbers), abs=1e-3)


def test_a_run(run, tmp_path, capsys):
    ap, ap50 = run()
    printed = capsys.readouterr()
    assert "4 classes" in printed.out
    assert "images of 64 x 64 pixels, 10 to train on, 4 held out" in printed.out
    assert "before training: AP@[.5:.95] " in printed.out
    assert f"held-out images: AP@[.5:.95] {100 * ap:.1f} %, AP50 {100 * ap50:.1f} %" in printed.out
    assert "2/2" in printed.err  # the progress bar
    images, found = scenes.make_scenes(10, 4, 64, seed=0, may_overlap=False)
    coco = object_detection.annotate(found, 64)
    saved = saved_precision(tmp_path / "out" / "detection", images, coco, [10, 11, 12, 13])
    assert (ap, ap50) == saved
    with Image.open(tmp_path / "out" / "detection.png") as picture:
        assert picture.width > 500
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "detection",
        "detection.png",
    ]


def test_the_checkpoint_holds_the_model(run, tmp_path, monkeypatch):
    trained = []
    save = RTDetrForObjectDetection.save_pretrained

    def remember(model, path):
        trained.append(model)
        save(model, path)

    monkeypatch.setattr(RTDetrForObjectDetection, "save_pretrained", remember)
    run()
    loaded = RTDetrForObjectDetection.from_pretrained(tmp_path / "out" / "detection")
    assert loaded.config.id2label[3] == "star"
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        a, b = trained[0].eval()(x), loaded.eval()(x)
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.pred_boxes, b.pred_boxes)


@pytest.mark.full
def test_training_lowers_the_loss(checkpoint):
    images, coco = generate(8)
    targets = [object_detection.make_target(coco, number) for number in range(8)]
    torch.manual_seed(0)
    model = object_detection.make_model(list(scenes.shapes))

    @torch.no_grad()
    def loss():
        torch.manual_seed(1)
        x = object_detection.normalize(images)
        return model.train()(pixel_values=x, labels=targets).loss.item()

    before = loss()
    object_detection.train(model, images, targets, 20, checkpoint)
    assert loss() < 0.8 * before


def test_boxes_fit_the_pixels():
    _, found = scenes.make_scenes(20, 0, 64, seed=0, may_overlap=False)
    coco = object_detection.annotate(found, 64)
    assert len(coco.imgs) == 20
    assert [category["name"] for category in coco.cats.values()] == list(scenes.shapes)
    for number, shapes in enumerate(found):
        for (label, is_inside), annotation in zip(shapes, coco.imgToAnns[number], strict=True):
            left, top, width, height = map(int, annotation["bbox"])
            rows, columns = is_inside.nonzero()
            assert annotation["category_id"] == label
            assert [rows.min(), rows.max() + 1] == [top, top + height]
            assert [columns.min(), columns.max() + 1] == [left, left + width]
            assert annotation["area"] == is_inside.sum()
            assert np.array_equal(coco_mask.decode(annotation["segmentation"]), is_inside)


def made_up(boxes):
    """One image of 100 x 50 pixels with these (category, box, crowd)."""
    annotations = [
        {"image_id": 0, "category_id": c, "bbox": list(b), "area": b[2] * b[3], "iscrowd": crowd}
        for c, b, crowd in boxes
    ]
    return object_detection.make_coco([(100, 50)], annotations, {3: "even", 7: "odd"})


def test_targets_are_shares_of_the_image():
    coco = made_up([(7, (10, 5, 20, 10), 0), (3, (0, 0, 100, 50), 0), (3, (1, 1, 9, 9), 1)])
    target = object_detection.make_target(coco, 0)
    assert target["class_labels"].tolist() == [1, 0]
    assert target["boxes"].tolist() == [pytest.approx([0.2, 0.2, 0.2, 0.2]), [0.5, 0.5, 1, 1]]


def test_an_image_without_boxes(checkpoint):
    target = object_detection.make_target(made_up([]), 0)
    assert target["class_labels"].shape == (0,)
    assert target["class_labels"].dtype == torch.long
    assert target["boxes"].shape == (0, 4)
    model = object_detection.make_model(["even", "odd"])
    object_detection.train(model, torch.zeros(2, 3, 64, 64).byte(), [target, target], 1, checkpoint)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_detections_are_the_truth_again():
    coco = made_up([(7, (10, 5, 20, 10), 0), (3, (0, 0, 100, 50), 0)])
    logits = torch.tensor([[-9.0, 4.0], [5.0, -9.0]])
    boxes = object_detection.make_target(coco, 0)["boxes"]
    results = object_detection.describe_detections(coco, 0, logits, boxes)
    assert [result["category_id"] for result in results] == [3, 7]
    assert results[0]["bbox"] == pytest.approx([0, 0, 100, 50])
    assert results[1]["bbox"] == pytest.approx([10, 5, 20, 10])
    assert results[0]["score"] == pytest.approx(torch.tensor(5.0).sigmoid().item())
    assert average_precision(coco, results, [0]) == pytest.approx((1, 1))


def test_augmented_boxes_stay_on_their_pixels():
    images, coco = generate(8)
    targets = [object_detection.make_target(coco, number) for number in range(8)]
    pixels = torch.zeros(8, 3, 64, 64)
    for number in range(8):
        for annotation in coco.imgToAnns[number]:
            left, top, width, height = map(int, annotation["bbox"])
            pixels[number, :, top : top + height, left : left + width] = 1
    images, augmented = object_detection.augment(pixels, targets)
    is_moved = []
    for image, before, target in zip(images, targets, augmented, strict=True):
        assert torch.equal(before["class_labels"], target["class_labels"])
        is_moved.append(not torch.equal(before["boxes"], target["boxes"]))
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for x, y, width, height in (64 * target["boxes"]).round(decimals=3).tolist():
            left, top = round(x - width / 2), round(y - height / 2)
            inside[top : top + round(height), left : left + round(width)] = True
        bright = image[0] > (image[0].min() + image[0].max()) / 2
        assert torch.equal(bright, inside)
    assert any(is_moved) and not all(is_moved)


def results_of(coco, shift=0):
    return [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": [a["bbox"][0] + shift * a["bbox"][2], *a["bbox"][1:]],
            "score": 0.9,
        }
        for a in coco.anns.values()
    ]


def test_the_precision_of_the_truth_and_of_shifted_boxes():
    coco = generate(6)[1]
    numbers = list(range(6))
    assert average_precision(coco, results_of(coco), numbers) == (1, 1)
    # A shift by a fifth leaves an overlap of 0.8 / 1.2: enough for 0.5 to 0.65, 4 of 10 limits.
    shifted = average_precision(coco, results_of(coco, 0.2), numbers)
    assert shifted == pytest.approx((0.4, 1))
    assert average_precision(coco, results_of(coco, 0.5), numbers) == (0, 0)


def test_a_wrong_class_and_other_images_are_told_apart():
    coco = made_up([(7, (10, 5, 20, 10), 0), (3, (40, 5, 20, 10), 0)])
    results = results_of(coco)
    results[0]["category_id"] = 3
    results[0]["score"] = 0.95
    # Category 7 is never found, and category 3 is found below a false one.
    assert average_precision(coco, results, [0]) == pytest.approx((0.25, 0.25))


def test_the_picture_shows_an_object_once():
    near = {"bbox": [1, 0, 10, 10], "score": 0.8}
    best, far, unlikely = (
        {"bbox": [x, 0, 10, 10], "score": score} for x, score in ((0, 0.9), (6, 0.7), (50, 0.1))
    )
    assert object_detection.without_repeats([best, near, far, unlikely]) == [best, far]
    assert object_detection.without_repeats([unlikely]) == []


@pytest.mark.full
def test_own_images(own, run, tmp_path, capsys):
    ap, ap50 = run(*own())
    printed = capsys.readouterr().out
    assert "2 classes, 8 boxes, images of 64 x 64 pixels, 6 to train on, 2 held out" in printed
    _, folder, _, file = own()
    images, coco = object_detection.load_coco(folder, file, 64)
    _, test_part = train_test_split(range(8), test_size=2, random_state=0)
    assert (ap, ap50) == saved_precision(tmp_path / "out" / "detection", images, coco, test_part)
    config = RTDetrForObjectDetection.from_pretrained(tmp_path / "out" / "detection").config
    assert config.id2label == {0: "even", 1: "odd"}


def test_own_boxes_stay_on_their_pixels(own):
    _, folder, _, file = own()
    images, coco = object_detection.load_coco(folder, file, 64)
    assert images.shape == (8, 3, 64, 64)
    for number in range(8):
        assert (coco.imgs[number]["width"], coco.imgs[number]["height"]) == (80, 60)
        target = object_detection.make_target(coco, number)
        assert target["class_labels"].tolist() == [number % 2]
        x, y, width, height = (64 * target["boxes"][0]).tolist()
        rows, columns = (images[number, 0] > 127).nonzero().unbind(1)
        assert [rows.min(), rows.max() + 1] == pytest.approx(
            [y - height / 2, y + height / 2], abs=1
        )
        assert [columns.min(), columns.max() + 1] == pytest.approx(
            [x - width / 2, x + width / 2], abs=1
        )
    assert average_precision(coco, results_of(coco), list(range(8))) == (1, 1)


@pytest.mark.full
def test_images_without_boxes_and_crowds(own, run):
    def change(content):
        content["annotations"][0]["iscrowd"] = 1
        del content["annotations"][1:4]

    run(*own(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), "KeyError: 'categories'"),
        (lambda content: content["images"][0].pop("file_name"), "KeyError: 'file_name'"),
        (lambda content: content["annotations"][2].pop("bbox"), "KeyError: 'bbox'"),
        (lambda content: content["annotations"][2].update(bbox=[1, 2, 3]), "ValueError"),
        (lambda content: content["annotations"][2].update(bbox=[1, 2, 0, 3]), "has no area"),
        (lambda content: content["annotations"][2].update(bbox=[1, 2, 3, 1e999]), "has no area"),
        (lambda content: content["annotations"][2].update(bbox="left"), "ValueError"),
        (lambda content: content["annotations"][2].update(image_id=9), "no known image"),
        (lambda content: content["annotations"][2].update(category_id=9), "no known image"),
        (lambda content: content.update(images=3), "TypeError"),
        (lambda content: content["annotations"].clear(), "holds no boxes"),
        (lambda content: (content["images"].clear(), content["annotations"].clear()), "no boxes"),
    ],
)
def test_a_file_that_is_not_in_the_format(own, run, tmp_path, capsys, change, message):
    fails(capsys, lambda: run(*own(change)), tmp_path / "boxes.json", message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [b"", b"[1, 2]", b"no json", b"\xff\xfe"], ids=str)
def test_a_file_that_is_no_json(own, run, tmp_path, capsys, text):
    options = own()
    (tmp_path / "boxes.json").write_bytes(text)
    fails(capsys, lambda: run(*options), tmp_path / "boxes.json", "not in the format of COCO")


def test_no_box_is_held_out(own, run, capsys):
    def change(content):
        del content["annotations"][1:]
        content["annotations"][0]["iscrowd"] = 1

    fails(capsys, lambda: run(*own(change)), "none of the 2 held-out images has a box")


def test_too_few_images(own, run, capsys):
    def change(content):
        del content["images"][3:], content["annotations"][3:]

    fails(capsys, lambda: run(*own(change)), "needs 4 images, found 3")


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("images/2.png", b"no image", "unreadable image"),
        ("images/2.png", None, "there is no such file"),
        ("boxes.json", None, "no such file"),
    ],
)
def test_a_missing_or_broken_file(own, run, tmp_path, capsys, file, damage, message):
    options = own()
    path = tmp_path / file
    path.unlink() if damage is None else path.write_bytes(damage)
    fails(capsys, lambda: run(*options), path, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", 32], "--image-size must be a multiple of 32, and at least 64"),
        (["--image-size", 100], "--image-size must be a multiple of 32, and at least 64"),
        (["--images", "here"], "--images DIR and --annotations FILE belong together"),
        (["--annotations", "a.json"], "--images DIR and --annotations FILE belong together"),
        (["--images", "nowhere", "--annotations", "a.json"], "--images nowhere: no such folder"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(run, capsys, options, message):
    fails(capsys, lambda: run(*options), message)


def test_boxes_lie_on_the_upright_image(tmp_path, content, own):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, entry in enumerate(content["images"]):
        with Image.open(tmp_path / "images" / f"{number}.png") as image:
            stored = image.transpose(Image.Transpose.ROTATE_90)
        stored.save(tmp_path / "images" / f"{number}.png", exif=exif)
        entry |= {"width": 80, "height": 60}
    _, folder, _, file = own()
    images, coco = object_detection.load_coco(folder, file, 64)
    assert (coco.imgs[0]["width"], coco.imgs[0]["height"]) == (80, 60)
    x, y = (64 * object_detection.make_target(coco, 0)["boxes"][0, :2]).int()
    assert images[0, :, y, x].tolist() == [255, 255, 255]


def test_boxes_of_another_size_are_refused(content, own, run, capsys):
    def turn(content):
        content["images"][2] |= {"width": 60, "height": 80}

    with pytest.raises(SystemExit) as error:
        run(*own(turn))
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "2.png: (80, 60) pixels" in message
    assert "are of (60, 80)" in message
