"""Folders of images, laid out as people have them."""

import os

import pytest
from image_folders import find_classes, find_images, find_parts
from PIL import Image

from examples.affinity_map import load_image
from tests.equipment.failing import fails_at_once

from common import UserError, told_errors
from image_sets import load_folder, load_images


@pytest.fixture
def root(tmp_path):
    return tmp_path / "photos"


def fill(*folders, number=3):
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for place in range(number):
            Image.new("L", (2, 2)).save(folder / f"{place}.png")


def names(root):
    return load_folder(root)["train"].features["label"].names


@pytest.mark.parametrize("name", ["set[1]", "*", "a?b", "{x,y}", "a b", "!", "set1::set2"])
def test_a_path_is_no_pattern(tmp_path, name):
    fill(tmp_path / name / "owl", tmp_path / name / "fox", tmp_path / "set1" / "cat")
    assert names(tmp_path / name) == ["fox", "owl"]
    fill(tmp_path / "classes" / name, tmp_path / "classes" / "other")
    assert names(tmp_path / "classes") == sorted([name, "other"])


def test_links_are_followed_but_not_around(root):
    fill(root / "store" / "a", root / "data" / "b")
    (root / "data" / "a").symlink_to(root / "store" / "a")
    (root / "data" / "b" / "up").symlink_to(root / "data" / "b")
    (root / "data" / "b" / "one.png").symlink_to(root / "store" / "a" / "0.png")
    assert {name: len(files) for name, files in find_classes(root / "data").items()} == {
        "a": 3,
        "b": 4,
    }


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (["train", "val"], "train", "val"),
        (["Training", "Validation"], "Training", "Validation"),
        (["train", "test"], "train", "test"),
        (["train", "valid", "test"], "train", "valid"),
        (["train"], "train", None),
    ],
    ids=str,
)
def test_what_is_held_out_is_not_trained_on(root, capsys, folders, train, test):
    for folder in folders:
        fill(root / folder / "cat", root / folder / "dog", number=4)
    parts = find_parts(root)
    assert parts.get("test") == (test and root / test)
    assert parts["train"] == root / train
    rows = load_folder(root)
    assert len(rows["train"]) == 8
    assert rows["train"].features["label"].names == ["cat", "dog"]
    if len(folders) == 3:
        assert f"left out: {root / 'test'}" in capsys.readouterr().out


def test_images_to_test_without_classes_are_left_out(root, capsys):
    fill(root / "train" / "cat", root / "train" / "dog", root / "test")
    assert list(load_folder(root)) == ["train"]
    assert f"left out: {root / 'test'}" in capsys.readouterr().out


def test_a_class_may_be_called_train(root):
    fill(root / "train", root / "plane", root / "car")
    assert names(root) == ["car", "plane", "train"]


def test_deeper_folders_belong_to_their_class(root):
    fill(root / "cat", root / "cat" / "2020" / "june", root / "dog")
    assert {name: len(files) for name, files in find_classes(root).items()} == {"cat": 6, "dog": 3}


@pytest.mark.parametrize(
    "folders",
    [
        ["cat/train", "cat/test", "dog/train", "dog/test"],
        ["train/cat", "train/dog", "cat"],
        ["val/cat", "test/cat"],
        ["train", "test"],
        ["train/cat", "training/cat"],
        ["images/train", "images/val", "labels/train"],
    ],
    ids=" ".join,
)
def test_other_layouts_are_refused_with_the_wanted_one(root, folders):
    fill(*(root / folder for folder in folders))
    with pytest.raises(UserError, match="wants DIR/train/CLASS and DIR/val/CLASS, or DIR/CLASS"):
        load_images("folder", root, 0.25)


def test_what_is_left_out_is_told(root, capsys):
    fill(root / "cat", root / "dog", root / "__MACOSX" / "cat", root / ".cache")
    (root / "labels.csv").write_text("0.png,cat")
    (root / "cat" / "images.zip").write_bytes(b"PK")
    (root / "dog" / ".DS_Store").write_bytes(b"")
    Image.new("L", (2, 2)).save(root / "preview.png")
    assert names(root) == ["cat", "dog"]
    printed = capsys.readouterr().out
    assert printed == (
        f"left out: {root / 'labels.csv'}, {root / 'preview.png'}, {root / 'cat' / 'images.zip'}\n"
    )


def test_classes_are_told(root, capsys):
    fill(*(root / f"class{number:02}" for number in range(12)), number=8)
    load_images("folder", root, 0.25)
    assert "12 classes: class00, class01" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told(root):
    fill(root / "cat" / "secret", root / "dog")
    (root / "cat" / "secret").chmod(0)
    with pytest.raises(PermissionError):
        find_classes(root)


def test_images_of_one_folder(root, capsys):
    fill(root, root / "deeper")
    (root / "notes.pdf").write_bytes(b"%PDF")
    assert [file.name for file in find_images(root)] == ["0.png", "1.png", "2.png"]
    out = capsys.readouterr().out
    assert out == f"left out: {root / 'deeper'}, {root / 'notes.pdf'}\n"


@pytest.mark.parametrize(
    "name", ["/no/such/owl.png", "no/such/owl.png", "**", "chelsea*", "/", "", "a\0b", "x" * 300]
)
def test_what_is_no_image_is_told_in_one_line(capsys, name):
    fails_at_once(capsys, lambda: told_errors()(load_image)(name))
