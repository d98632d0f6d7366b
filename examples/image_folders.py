r"""Folders of images as people have them: a sub-folder per class, alone or in folders to train and
to validate on. Names are taken as they are, links are followed, and what is left out is told.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from common import UserError, tell

layout = "DIR/train/CLASS and DIR/val/CLASS, or DIR/CLASS alone, with the images of each class"
kinds = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip


def find_parts(folder: Path) -> dict[str, Path]:
    """The folders to train on and, where there is one, to validate on."""
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder")
    named = [sub for sub in sub_folders(folder) if kind_of(sub)]
    others = [sub for sub in sub_folders(folder) if named and sub not in named and has_images(sub)]
    # A class may be called train, beside others.
    if not named or (others and not any(map(sub_folders, named))):
        return {"train": folder}
    parts = {kind_of(sub): sub for sub in named if sub_folders(sub)}
    if others or "train" not in parts or len({kind_of(sub) for sub in named}) < len(named):
        found = names_of(sub.name for sub in named + others)
        raise UserError(f"--data {folder}: wants {layout}; found {found}")
    chosen = {"train": parts["train"]}
    if held_out := parts.get("val") or parts.get("test"):
        chosen["test"] = held_out
    tell_left_out(sub for sub in named if sub not in chosen.values())
    return chosen


def find_classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class, those in deeper folders, too."""
    classes = {}
    strays = [file for file in sorted(folder.iterdir()) if file.is_file() and not is_hidden(file)]
    for sub in sub_folders(folder):
        if any(map(kind_of, sub_folders(sub))):
            found = names_of(part.name for part in sub_folders(sub))
            raise UserError(f"--data {folder}: wants {layout}; found {found} inside {sub.name}")
        files = files_below(sub)
        classes[sub.name] = [file for file in files if is_image(file)]
        strays += [file for file in files if not is_image(file)]
    tell_left_out(strays)
    return classes


def find_images(folder: Path) -> list[Path]:
    """The images in a folder itself."""
    files = [file for file in sorted(folder.iterdir()) if not is_hidden(file)]
    tell_left_out(file for file in files if not is_image(file))
    return [file for file in files if is_image(file)]


def files_below(folder: Path) -> list[Path]:
    seen, found = set(), []
    for parent, names, files in os.walk(folder, onerror=fail, followlinks=True):
        names[:] = [name for name in names if not is_hidden(Path(name))]
        place = os.path.realpath(parent)
        if place in seen:  # a link that leads back
            names.clear()
            continue
        seen.add(place)
        found += [Path(parent, name) for name in files if not is_hidden(Path(name))]
    return sorted(found, key=str)


def fail(error: OSError) -> None:
    raise error


def sub_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def kind_of(folder: Path) -> str:
    return kinds.get(folder.name.lower(), "")


def has_images(folder: Path) -> bool:
    return any(map(is_image, files_below(folder)))


def is_image(path: Path) -> bool:
    """By its name, of a kind that Pillow reads."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in Image.OPEN and not path.is_dir()


def is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "__MACOSX"


def names_of(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def tell_left_out(paths: Iterable[Path]) -> None:
    paths = list(map(str, paths))
    if paths:
        tell(f"left out: {names_of(paths, most=3)}")
