r"""python examples/image_segmentation.py

Trains UPerNet of Hugging Face transformers on a small GrootV backbone to name every pixel. Without
an argument it learns generated images: discs, rings, triangles and stars are cut out of pictures of
brick, grass and gravel, tinted at random and laid over photographs, so that every label is exact
and only the outline tells one class from another. All pictures ship with scikit-image and
scikit-learn. The held-out images show photographs that are never trained on, and the other half of
brick, grass and gravel. Takes about three minutes on one CPU core.

    --data DIR      your own images: DIR/images, DIR/masks with one PNG of class indices for each
                    image (255 is left out), and DIR/classes.txt with the name of a class per line
    --resume        go on after an interruption, to the bit

Writes outputs/segmentation.pt after every epoch; at the end outputs/segmentation, which
UperNetForSemanticSegmentation.from_pretrained reads after groot_graph.models.grootv.transformers
is imported, and outputs/segmentation.png.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from image_folders import find_images
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm import tqdm
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from groot_graph.models.grootv.transformers import GrootVConfig

from common import (
    Checkpoint,
    UserError,
    check_device,
    check_seed,
    fit,
    redraw,
    save_figure,
    told_errors,
)
from images import normalize, read_mask, read_rgb
from scenes import Shape, make_scenes, shapes

# The settings.
channels = 16  # of the first stage of the backbone
depths = (1, 1, 2, 1)  # its blocks
head_channels = 32
num_train, num_test = 2000, 200  # generated images
batch_size = 8
learning_rate = 2e-3
weight_decay = 0.05
held_out = 1 / 4  # of the images of --data, the same ones for every --seed
ignored = 255  # the mask value of pixels that are neither learned nor counted
threads = 1  # the same bits on any number of cores


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains UPerNet on GrootV to segment images.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="own images, see above")
    parser.add_argument("--image-size", type=int, default=96, help="side of all images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    args = parser.parse_args(argv)
    if args.epochs < 1 or args.image_size < 32:
        raise UserError("--epochs must be at least 1 and --image-size at least 32")
    check_device(args.device)
    check_seed(args.seed)
    return args


# Images: bytes [N, 3, H, W] and their masks: class indices [N, H, W]. -----------------------------


def make_masks(scenes: list[list[Shape]], size: int) -> Tensor:
    """Where shapes overlap, the later one is seen."""
    masks = torch.zeros(len(scenes), size, size, dtype=torch.uint8)
    for mask, found in zip(masks.numpy(), scenes, strict=True):
        for label, is_inside in found:
            mask[is_inside] = 1 + label
    return masks


def load_folder(folder: Path, size: int) -> tuple[Tensor, Tensor, list[str]]:
    for part in ("images", "masks", "classes.txt"):
        if not (folder / part).exists():
            raise UserError(f"--data {folder}: has no {part}")
    classes = read_classes(folder / "classes.txt")
    if not 2 <= len(classes) <= ignored:
        raise UserError(f"{folder / 'classes.txt'}: needs 2 to 255 classes, found {len(classes)}")
    files = find_images(folder / "images")
    if len(files) < 4:
        raise UserError(f"--data {folder}: needs 4 images, found {len(files)}")
    for file, other in itertools.pairwise(sorted(files, key=lambda file: file.stem)):
        if file.stem == other.stem:
            raise UserError(f"{file}: has the mask of {other}, masks/{file.stem}.png")
    with tqdm(files, unit="image") as bar:
        pairs = [
            read_pair(file, folder / "masks" / f"{file.stem}.png", size, classes) for file in bar
        ]
    images, masks = map(torch.stack, zip(*pairs, strict=True))
    return images, masks, classes


def read_classes(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file in UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def read_pair(file: Path, mask_file: Path, size: int, classes: list[str]) -> tuple[Tensor, Tensor]:
    image, mask = read_rgb(file), read_mask(mask_file)
    if mask.mode not in ("1", "L", "P"):
        raise UserError(f"{mask_file}: wants one class index per pixel, found mode {mask.mode}")
    if mask.size != image.size:
        raise UserError(f"{mask_file}: {mask.size} pixels, its image has {image.size}")
    image = np.array(image.resize((size, size), Image.Resampling.BILINEAR))
    mask = np.array(mask.resize((size, size), Image.Resampling.NEAREST), dtype=np.uint8)
    unknown = mask[(mask >= len(classes)) & (mask != ignored)]
    if unknown.size > 0:
        raise UserError(f"{mask_file}: class {unknown[0]}, but there are {len(classes)} classes")
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)


# The model and its training. ----------------------------------------------------------------------


def make_model(classes: list[str]) -> UperNetForSemanticSegmentation:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = GrootVConfig(channels=channels, depths=depths, out_features=stages)
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=head_channels,
        auxiliary_in_channels=4 * channels,
        auxiliary_channels=head_channels,
        loss_ignore_index=ignored,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone.grootv.stages.apply(redraw)
    model.decode_head.apply(redraw)
    return model


def augment(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrors the batch at random; swaps colors and changes brightness and contrast per image."""
    axes = [axis for axis in (-2, -1) if torch.rand(()) < 0.5]
    images, masks = images.flip(axes), masks.flip(axes)
    images = torch.stack([image[torch.randperm(3)] for image in images])
    contrast, brightness = torch.rand(2, len(images), 3, 1, 1).mul(2).sub(1).unbind()
    return images * (1 + 0.3 * contrast) + 0.3 * brightness, masks


def train(model, images: Tensor, masks: Tensor, epochs: int, checkpoint: Checkpoint) -> None:
    def loss_of(batch: Tensor) -> Tensor:
        x, y = augment(normalize(images[batch]), masks[batch].long())
        return model(pixel_values=x.to(model.device), labels=y.to(model.device)).loss

    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    fit(model, optimizer, loss_of, len(images), batch_size, epochs, checkpoint)


@torch.no_grad()
def predict(model, images: Tensor) -> Tensor:
    model.eval()
    logits = (model(normalize(batch).to(model.device)).logits for batch in images.split(64))
    return torch.cat([batch.argmax(1).byte().cpu() for batch in logits])


# The measure and the picture. ---------------------------------------------------------------------


def class_ious(truth: Tensor, prediction: Tensor, num_classes: int) -> np.ndarray:
    """Intersection over union of each class over all pixels; NaN for one that is nowhere."""
    is_counted = truth != ignored
    counts = confusion_matrix(
        truth[is_counted].numpy(), prediction[is_counted].numpy(), labels=range(num_classes)
    )
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return np.divide(counts.diagonal(), union, np.full(num_classes, np.nan), where=union > 0)


def mean_iou(truth: Tensor, prediction: Tensor, num_classes: int) -> float:
    return float(np.nanmean(class_ious(truth, prediction, num_classes)))


def baselines(train_masks: Tensor, test_masks: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Predictions that do not look at the images."""
    frequency = train_masks[train_masks != ignored].long().bincount(minlength=num_classes).double()
    drawn = torch.multinomial(frequency, test_masks.numel(), replacement=True)
    return {
        "the most frequent class everywhere": torch.full_like(test_masks, int(frequency.argmax())),
        "classes drawn by their frequency": drawn.view(test_masks.shape).byte(),
    }


def draw(path: Path, images: Tensor, truth: Tensor, prediction: Tensor, classes: list[str]) -> None:
    """A row for the images, one for the truth, one for the prediction, and the names of colors."""
    colors = ["#22252b", *colormaps["turbo"](np.linspace(0.1, 0.9, len(classes) - 1))]
    color_map = ListedColormap(colors).with_extremes(over="white")
    figure = Figure(figsize=(1.75 * len(images) + 0.3, 5.9), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for column, image in zip(axes.T, images, strict=True):
        column[0].imshow(image.permute(1, 2, 0).numpy())
    for row, masks in zip(axes[1:], (truth, prediction), strict=True):
        for ax, mask in zip(row, masks, strict=True):
            ax.imshow(mask.numpy(), color_map, vmin=-0.5, vmax=len(classes) - 0.5,
                      interpolation="nearest")  # fmt: skip
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for row, title in zip(axes, ("image", "truth", "prediction"), strict=True):
        row[0].set_ylabel(title, fontsize=11)
    patches = [Patch(color=color, label=name) for color, name in zip(colors, classes, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=10)
    save_figure(figure, path)


# All of it. ---------------------------------------------------------------------------------------


def load(args: argparse.Namespace) -> tuple[list[str], Tensor, Tensor, Tensor, Tensor]:
    """The names of the classes, images and masks to train on, and those held out."""
    if args.data is None:
        images, scenes = make_scenes(
            num_train, num_test, args.image_size, args.seed, may_overlap=True
        )
        masks, classes = make_masks(scenes, args.image_size), ["background", *shapes]
        train_part, test_part = torch.arange(len(images)).split([num_train, num_test])
    else:
        images, masks, classes = load_folder(args.data, args.image_size)
        train_part, test_part = train_test_split(
            torch.arange(len(images)), test_size=held_out, random_state=0
        )
    for part, purpose in ((train_part, "train on"), (test_part, "hold out")):
        if masks[part].eq(ignored).all():
            raise UserError(f"--data {args.data}: the {len(part)} masks to {purpose} hold no class")
    return classes, images[train_part], masks[train_part], images[test_part], masks[test_part]


@told_errors("--resume goes on after the last finished epoch")
def main(argv: list[str] | None = None) -> float:
    start = time.perf_counter()
    args = parse_arguments(argv)
    torch.set_num_threads(threads)
    classes, train_images, train_masks, test_images, test_masks = load(args)
    print(
        f"{len(classes)} classes, images of {args.image_size} x {args.image_size} pixels, "
        f"{len(train_images)} to train on, {len(test_images)} held out"
    )

    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = make_model(classes).to(args.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"UPerNet on GrootV with {channels} channels, blocks {depths}: {num_parameters} parameters"
    )
    settings = {"classes": classes, "images": len(train_images)}
    settings |= {name: getattr(args, name) for name in ("image_size", "epochs", "seed")}
    checkpoint = Checkpoint(args.output / "segmentation.pt", settings, args.resume)
    train(model, train_images, train_masks, args.epochs, checkpoint)

    prediction = predict(model, test_images)
    print("IoU of the classes on the held-out images, in %")
    for name, iou in zip(classes, class_ious(test_masks, prediction, len(classes)), strict=True):
        print(f"  {name:20s} {100 * iou:5.1f}")
    for name, guess in baselines(train_masks, test_masks, len(classes)).items():
        print(f"mIoU of {name}: {100 * mean_iou(test_masks, guess, len(classes)):.1f} %")
    result = mean_iou(test_masks, prediction, len(classes))
    print(f"held-out mIoU: {100 * result:.1f} %")

    folder, picture = args.output / "segmentation", args.output / "segmentation.png"
    model.save_pretrained(folder)
    draw(picture, test_images[:7], test_masks[:7], prediction[:7], classes)
    checkpoint.path.unlink()
    print(f"saved {folder} and {picture}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return result


if __name__ == "__main__":
    main()
