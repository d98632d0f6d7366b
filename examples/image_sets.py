r"""The images of image_training.py: where they come from, and what happens to them before a network
sees them. One by one they are read, cut out and changed by RandAugment; by the batch mirrored,
turned, erased and mixed.
"""

import io
import math
from pathlib import Path

import datasets
import kornia.augmentation as kornia
import numpy as np
import torch
import torch.nn.functional as F
from image_folders import find_classes, find_parts, layout, names_of
from kornia.augmentation.auto import RandAugment
from kornia.augmentation.auto.rand_augment.rand_augment import default_policy
from kornia.augmentation.random_generator import ResizedCropGenerator
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset

from common import UserError, first_line, tell
from images import load_built_in, read_rgb

mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Kornia counts a shear in half turns; the published one is by 0.3 of the side.
shear = math.atan(0.3) / math.pi
published = {"shear_x": shear, "shear_y": shear, "translate_x": 0.45, "translate_y": 0.45}
policy = [
    [(name, -published[name], published[name])] if name in published else [(name, low, high)]
    for ((name, low, high),) in default_policy
]


def load_images(name: str, folder: Path | None, held_out: float) -> datasets.DatasetDict:
    """The splits train and test, with the columns image and label."""
    datasets.disable_progress_bars()
    parts = load_folder(folder) if folder else load_digits(name)
    names = parts["train"].features["label"].names
    if len(names) < 2:
        raise UserError(
            f"needs images of at least two classes, found {len(names)}: {names}; wants {layout}"
        )
    if folder:
        tell(f"{len(names)} classes: {names_of(names)}")
    if "test" not in parts:
        parts = split(parts["train"], held_out)
    empty = set(range(len(names))) - set(parts["train"]["label"])
    if empty:
        raise UserError(f"class '{names[min(empty)]}' has no images to train on")
    # Decoded by ImageSet and not here, so that an unreadable file can be named.
    return parts.cast_column("image", datasets.Image(decode=False))


def load_folder(folder: Path) -> datasets.DatasetDict:
    parts = {name: find_classes(part) for name, part in find_parts(folder).items()}
    names = sorted({name for part in parts.values() for name, files in part.items() if files})
    if not names:
        raise UserError(f"--data {folder}: no images in sub-folders; wants {layout}")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    return datasets.DatasetDict({name: make_rows(part, features) for name, part in parts.items()})


def make_rows(classes: dict[str, list[Path]], features: datasets.Features) -> datasets.Dataset:
    rows = sorted((str(file), name) for name, files in classes.items() for file in files)
    content = {"image": [file for file, _ in rows], "label": [name for _, name in rows]}
    return datasets.Dataset.from_dict(content, features)


def load_digits(name: str) -> datasets.DatasetDict:
    values, labels, greatest = load_built_in(name)
    images = [Image.fromarray(value) for value in (values * 255 / greatest).astype(np.uint8)]
    digits = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": digits})
    content = {"image": images, "label": labels.tolist()}
    return datasets.DatasetDict(train=datasets.Dataset.from_dict(content, features))


def split(images: datasets.Dataset, held_out: float) -> datasets.DatasetDict:
    try:
        return images.train_test_split(held_out, stratify_by_column="label", seed=0)
    except ValueError as error:
        raise UserError(f"cannot hold out images of every class: {first_line(error)}") from error


class ImageSet(Dataset):
    """Images as bytes [3, size, size] and their labels. What happens to an image depends on seed,
    epoch and its number alone, however many processes read."""

    def __init__(self, images: datasets.Dataset, settings: dict, is_training: bool):
        self.images = images
        self.settings = settings
        self.is_training = is_training
        self.epoch = 0
        self.size = (settings["image_size"],) * 2
        self.crop = ResizedCropGenerator(self.size, (settings["crop"], 1.0), (3 / 4, 4 / 3))
        strength = 3 * settings["randaugment"]  # Kornia counts to 30
        self.rand_augment = strength and RandAugment(settings["randaugment_ops"], strength, policy)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.images[index]
        path, content = row["image"]["path"], row["image"]["bytes"]
        image = read_rgb(path if content is None else io.BytesIO(content))
        if not self.is_training:
            return self.fit(image), row["label"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.settings["seed"], self.epoch, index))
            return self.augment(image), row["label"]

    def fit(self, image: Image.Image) -> Tensor:
        border = (1 - self.settings["val_crop"]) / 2
        return to_tensor(ImageOps.fit(image, self.size, Image.Resampling.BICUBIC, bleed=border))

    def augment(self, image: Image.Image) -> Tensor:
        box = None
        if self.settings["crop"] < 1:
            corners = self.crop((1, 3, image.height, image.width))["src"][0]
            box = (*corners[0].tolist(), *(corners[2] + 1).tolist())
        image = to_tensor(image.resize(self.size, Image.Resampling.BICUBIC, box))
        if not self.rand_augment:
            return image
        return (self.rand_augment(image[None] / 255)[0] * 255).round().clamp(0, 255).byte()


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def make_normalization() -> nn.Module:
    return kornia.Normalize(torch.tensor(mean), torch.tensor(std))


def make_augmentation(settings: dict) -> nn.Module:
    """What happens to a batch of images to train on, before they are mixed."""
    affine, jitter = settings["affine"], settings["colour_jitter"]
    steps = [kornia.RandomHorizontalFlip(p=settings["flip"])]
    if affine:
        scale, turn = (1 - affine, 1 + affine), 100 * affine
        steps.append(kornia.RandomAffine(turn, (affine, affine), scale, turn))
    if jitter and not settings["randaugment"]:
        steps.append(kornia.ColorJitter(jitter, jitter, jitter))
    return nn.Sequential(*steps, make_normalization(), kornia.RandomErasing(p=settings["erasing"]))


def mix(images: Tensor, labels: Tensor, num_classes: int, settings: dict) -> tuple[Tensor, Tensor]:
    """Mixes pairs of images, or cuts one into the other, each for half of the batches; the targets
    are shares [batch, num_classes]."""
    targets = F.one_hot(labels, num_classes).float()
    choices = [mixing for mixing in (mixup, cutmix) if settings[mixing.__name__]]
    if not choices:
        return images, targets
    mixing = choices[int(torch.randint(len(choices), ()))]
    images, partner, share = mixing(images, labels, settings[mixing.__name__])
    return images, targets.lerp(F.one_hot(partner, num_classes).float(), share[:, None])


def mixup(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    # Kornia's draws the shares uniformly.
    share = torch.distributions.Beta(alpha, alpha).sample(labels.shape).to(images.device)
    partner = torch.randperm(len(images)).to(images.device)
    return images.lerp(images[partner], share[:, None, None, None]), labels[partner], share


def cutmix(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    mixer = kornia.RandomCutMixV2(beta=alpha, data_keys=["input", "class"], use_correct_lambda=True)
    images, (mixed,) = mixer(images, labels)
    return images, mixed[:, 1].long(), 1 - mixed[:, 2]
