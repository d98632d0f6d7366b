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
import os
import pickle
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_image
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm, trange
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from groot_graph.models.grootv.transformers import GrootVConfig

# The settings.
channels = 16  # of the first stage of the backbone
depths = (1, 1, 2, 1)  # its blocks
head_channels = 32
num_train, num_test = 2000, 200  # generated images
most_shapes = 3  # in a generated image
batch_size = 8
learning_rate = 2e-3
weight_decay = 0.05
held_out = 1 / 4  # of the images of --data, the same ones for every --seed
ignored = 255  # the mask value of pixels that are neither learned nor counted
threads = 1  # the same bits on any number of cores

shapes = ("disc", "ring", "triangle", "star")
materials = ("brick", "grass", "gravel")
train_photographs = (
    "astronaut", "camera", "cat", "coffee", "coins", "hubble_deep_field", "immunohistochemistry",
    "moon", "retina",
)  # fmt: skip
test_photographs = ("china.jpg", "flower.jpg", "rocket")


class UserError(Exception):
    """Something that the user can put right: told in one line."""


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
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    return args


# Images: bytes [N, 3, H, W] and their masks: class indices [N, H, W]. -----------------------------


def generate(
    names: tuple[str, ...], part: slice, num_images: int, size: int, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Shapes of this part of the materials on the photographs of these names."""
    photographs = [Image.fromarray(read_photograph(name)) for name in names]
    # Lighter than they are, so that a tint shows.
    textures = [Image.fromarray(read_photograph(name)[:, part] // 2 + 128) for name in materials]
    scenes = [
        paste_shapes(photographs, textures, size, random) for _ in trange(num_images, unit="image")
    ]
    images, masks = map(np.stack, zip(*scenes, strict=True))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks)


def read_photograph(name: str) -> np.ndarray:
    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    return pixels if pixels.ndim == 3 else gray2rgb(pixels)


def paste_shapes(
    photographs: list[Image.Image],
    textures: list[Image.Image],
    size: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """One image and its mask; where shapes overlap, the later one is seen."""
    image = random_crop(photographs[random.integers(len(photographs))], size, random)
    mask = np.zeros((size, size), dtype=np.uint8)
    for _ in range(random.integers(1, most_shapes, endpoint=True)):
        label = random.integers(len(shapes))
        cover = random_outline(shapes[label], size, random)
        texture = random_crop(textures[random.integers(len(textures))], size, random)
        tint = Image.new("RGB", texture.size, f"hsv({random.integers(360)}, 80%, 100%)")
        image.paste(ImageChops.multiply(texture, tint), mask=cover)
        mask[np.asarray(cover) > 127] = 1 + label
    return np.asarray(image), mask


def random_crop(photograph: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    largest = min(photograph.size)
    side = random.integers(min(size, largest), largest, endpoint=True)
    left, top = (random.integers(length - side, endpoint=True) for length in photograph.size)
    box = (left, top, left + side, top + side)
    return photograph.resize((size, size), Image.Resampling.BILINEAR, box)


def random_outline(shape: str, size: int, random: np.random.Generator) -> Image.Image:
    """How much of each pixel the shape covers, from 0 to 255."""
    radius = random.uniform(0.16, 0.32) * size
    center = complex(*random.uniform(0.1 * size, 0.9 * size, 2))
    turn = np.exp(1j * random.uniform(0, 2 * np.pi))
    fine = 4  # drawn on a finer grid, so that the edges are smooth
    drawing = Image.new("L", (fine * size, fine * size))
    for outline, value in zip(outlines[shape], (255, 0), strict=False):
        points = fine * (center + radius * turn * outline)
        ImageDraw.Draw(drawing).polygon(list(zip(points.real, points.imag, strict=True)), value)
    return drawing.resize((size, size), Image.Resampling.BOX)


def corners(number: int) -> np.ndarray:
    return np.exp(2j * np.pi * np.arange(number) / number)


# The second outline is a hole.
outlines = {
    "disc": [corners(60)],
    "ring": [corners(60), 0.55 * corners(60)],
    "triangle": [corners(3)],
    "star": [corners(10) * np.tile([1.0, 0.42], 5)],
}


def load_folder(folder: Path, size: int) -> tuple[Tensor, Tensor, list[str]]:
    for part in ("images", "masks", "classes.txt"):
        if not (folder / part).exists():
            raise UserError(f"--data {folder}: has no {part}")
    classes = read_classes(folder / "classes.txt")
    if not 2 <= len(classes) <= ignored:
        raise UserError(f"{folder / 'classes.txt'}: needs 2 to 255 classes, found {len(classes)}")
    files = sorted(file for file in (folder / "images").iterdir() if is_image(file))
    if len(files) < 4:
        raise UserError(f"--data {folder}: needs 4 images, found {len(files)}")
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


def is_image(file: Path) -> bool:
    return file.suffix.lower() in Image.registered_extensions() and not file.name.startswith(".")


def read_pair(file: Path, mask_file: Path, size: int, classes: list[str]) -> tuple[Tensor, Tensor]:
    image, mask = read_image(file), read_image(mask_file)
    if mask.mode not in ("1", "L", "P"):
        raise UserError(f"{mask_file}: wants one class index per pixel, found mode {mask.mode}")
    if mask.size != image.size:
        raise UserError(f"{mask_file}: {mask.size} pixels, its image has {image.size}")
    image = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    mask = np.array(mask.resize((size, size), Image.Resampling.NEAREST), dtype=np.uint8)
    unknown = mask[(mask >= len(classes)) & (mask != ignored)]
    if unknown.size > 0:
        raise UserError(f"{mask_file}: class {unknown[0]}, but there are {len(classes)} classes")
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)


def read_image(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.copy()
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: unreadable image ({error})") from error


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
    # Initial weights of deviation 0.02, as published, suit wide networks; narrow ones learn slowly.
    model.backbone.grootv.stages.apply(reset_parameters)
    model.decode_head.apply(reset_parameters)
    return model


def reset_parameters(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def normalize(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def augment(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrors the batch at random; swaps colors and changes brightness and contrast per image."""
    axes = [axis for axis in (-2, -1) if torch.rand(()) < 0.5]
    images, masks = images.flip(axes), masks.flip(axes)
    images = torch.stack([image[torch.randperm(3)] for image in images])
    contrast, brightness = torch.rand(2, len(images), 3, 1, 1).mul(2).sub(1).unbind()
    return images * (1 + 0.3 * contrast) + 0.3 * brightness, masks


class Checkpoint:
    """What training depends on, written after every epoch, and read where one resumes."""

    def __init__(self, path: Path, settings: dict, resume: bool):
        self.path = path
        self.settings = settings
        self.resume = resume

    def save(self, epochs_done: int, **parts) -> None:
        content = {
            "settings": self.settings,
            "epochs_done": epochs_done,
            "random_state": torch.get_rng_state(),
            **{name: part.state_dict() for name, part in parts.items()},
        }
        # Written beside, then renamed: an interruption leaves the old checkpoint or the new one.
        torch.save(content, self.path.with_suffix(".tmp"))
        os.replace(self.path.with_suffix(".tmp"), self.path)

    def restore(self, **parts) -> int:
        """Puts everything back in place where one resumes; returns the epochs done."""
        if not self.resume:
            return 0
        content = self._read()
        if content["settings"] != self.settings:
            raise UserError(
                f"{self.path}: made with {content['settings']}, this run has {self.settings}"
            )
        for name, part in parts.items():
            part.load_state_dict(content[name])
        torch.set_rng_state(content["random_state"])
        return content["epochs_done"]

    def _read(self) -> dict:
        if not self.path.exists():
            raise UserError(f"{self.path}: there is no checkpoint to resume from")
        try:
            # torch.load does not compare checksums, so a flipped bit would go unnoticed.
            with zipfile.ZipFile(self.path) as archive:
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile("checksum")
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            return {"settings": None} | content
        except (RuntimeError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: not a checkpoint, or a damaged one") from error


def train(model, images: Tensor, masks: Tensor, epochs: int, checkpoint: Checkpoint) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    num_steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=num_steps, pct_start=0.1
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first_epoch = checkpoint.restore(**parts)
    model.train()
    steps_done = first_epoch * (num_steps // epochs)
    with tqdm(total=num_steps, initial=steps_done, unit="step") as bar:
        for epoch in range(first_epoch, epochs):
            for batch in torch.randperm(len(images)).split(batch_size):
                x, y = augment(normalize(images[batch]), masks[batch].long())
                loss = model(pixel_values=x.to(model.device), labels=y.to(model.device)).loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.set_postfix(epoch=f"{epoch + 1}/{epochs}", loss=f"{loss.item():.3f}")
                bar.update()
            checkpoint.save(epoch + 1, **parts)


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
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colors = ["#22252b", *plt.get_cmap("turbo")(np.linspace(0.1, 0.9, len(classes) - 1))]
    color_map = ListedColormap(colors).with_extremes(over="white")
    size = {"figsize": (1.75 * len(images) + 0.3, 5.9), "layout": "constrained"}
    figure, axes = plt.subplots(3, len(images), squeeze=False, **size)
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
    figure.savefig(path.with_suffix(".tmp"), dpi=110, format="png")
    plt.close(figure)
    os.replace(path.with_suffix(".tmp"), path)


# All of it. ---------------------------------------------------------------------------------------


def load(args: argparse.Namespace) -> tuple[list[str], Tensor, Tensor, Tensor, Tensor]:
    """The names of the classes, images and masks to train on, and those held out."""
    if args.data is None:
        random = np.random.default_rng(args.seed)
        left, right = slice(None, 256), slice(256, None)
        train_set = generate(train_photographs, left, num_train, args.image_size, random)
        test_set = generate(test_photographs, right, num_test, args.image_size, random)
        return ["background", *shapes], *train_set, *test_set
    images, masks, classes = load_folder(args.data, args.image_size)
    train_part, test_part = train_test_split(
        torch.arange(len(images)), test_size=held_out, random_state=0
    )
    return classes, images[train_part], masks[train_part], images[test_part], masks[test_part]


def run(argv: list[str] | None) -> float:
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


def main(argv: list[str] | None = None) -> float:
    try:
        return run(argv)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("\nstopped; --resume goes on after the last finished epoch", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
