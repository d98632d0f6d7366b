r"""python examples/object_detection.py

Trains RT-DETR of Hugging Face transformers on a small GrootV backbone to find objects. Without an
argument it learns generated images: discs, rings, triangles and stars are cut out of pictures of
brick, grass and gravel, tinted at random and laid on photographs, so that every box is exact and
only the outline tells one class from another. All pictures ship with scikit-image and scikit-learn.
The held-out images show photographs that are never trained on, and the other half of brick, grass
and gravel. Takes about five minutes on one CPU core.

    --images DIR --annotations FILE     your own images and their boxes, in the JSON format of COCO
    --resume                            go on after an interruption, to the bit

Writes outputs/detection.pt after every epoch; at the end outputs/detection, which
RTDetrForObjectDetection.from_pretrained reads after groot_graph.models.grootv.transformers
is imported, and outputs/detection.png.
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
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm, trange
from transformers import RTDetrConfig, RTDetrForObjectDetection

from groot_graph.models.grootv.transformers import GrootVConfig

# The settings.
channels = 16  # of the first stage of the backbone
depths = (1, 1, 2, 1)  # its blocks
detector_channels = 64
decoder_layers = 2
num_queries = 30  # the most objects that can be found in an image
num_denoising = 30  # noisy boxes that the decoder learns to put right
num_train, num_test = 2000, 200  # generated images
most_shapes = 3  # in a generated image
batch_size = 8
learning_rate = 1e-3
weight_decay = 1e-4
held_out = 1 / 4  # of the images of --images, the same ones for every --seed
shown_score = 0.4  # boxes with a lower score are left out of the picture,
shown_overlap = 0.6  # and those that overlap a likelier one by more
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
    parser = argparse.ArgumentParser(description="Trains RT-DETR on GrootV to find objects.")
    parser.add_argument("--images", type=Path, metavar="DIR", help="own images")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="their boxes, as COCO")
    parser.add_argument("--image-size", type=int, default=96, help="side of all images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        raise UserError("--epochs must be at least 1")
    if args.image_size < 64 or args.image_size % 32 != 0:
        raise UserError("--image-size must be a multiple of 32, and at least 64")
    if (args.images is None) != (args.annotations is None):
        raise UserError("--images DIR and --annotations FILE belong together")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    return args


# Images: bytes [N, 3, H, W], and their boxes as COCO, whose image ids are places in that tensor. --


def generate(num_train: int, num_test: int, size: int, seed: int) -> tuple[Tensor, COCO]:
    """The first images are to train on; the last ones show photographs and parts of the materials
    that the first ones do not."""
    random = np.random.default_rng(seed)
    train_scenes = make_scenes(train_photographs, slice(None, 256), num_train, size, random)
    test_scenes = make_scenes(test_photographs, slice(256, None), num_test, size, random)
    scenes = train_scenes + test_scenes
    images = torch.from_numpy(np.stack([image for image, _ in scenes])).permute(0, 3, 1, 2)
    annotations = [
        annotation | {"image_id": number}
        for number, (_, found) in enumerate(scenes)
        for annotation in found
    ]
    sizes = [(size, size)] * len(scenes)
    return images.contiguous(), make_coco(sizes, annotations, dict(enumerate(shapes)))


def make_scenes(
    names: tuple[str, ...], part: slice, num_images: int, size: int, random: np.random.Generator
) -> list[tuple[np.ndarray, list[dict]]]:
    photographs = [Image.fromarray(read_photograph(name)) for name in names]
    # Lighter than they are, so that a tint shows.
    textures = [Image.fromarray(read_photograph(name)[:, part] // 2 + 128) for name in materials]
    return [
        paste_shapes(photographs, textures, size, random) for _ in trange(num_images, unit="image")
    ]


def read_photograph(name: str) -> np.ndarray:
    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    return pixels if pixels.ndim == 3 else gray2rgb(pixels)


def paste_shapes(
    photographs: list[Image.Image],
    textures: list[Image.Image],
    size: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, list[dict]]:
    """One image and its annotations; a shape that would cover an earlier one is left out."""
    image = random_crop(photographs[random.integers(len(photographs))], size, random)
    is_taken = np.zeros((size, size), dtype=bool)
    annotations = []
    for _ in range(random.integers(1, most_shapes, endpoint=True)):
        label = int(random.integers(len(shapes)))
        cover = random_outline(shapes[label], size, random)
        is_inside = np.asarray(cover) > 127
        if (is_inside & is_taken).any():
            continue
        is_taken |= is_inside
        texture = random_crop(textures[random.integers(len(textures))], size, random)
        tint = Image.new("RGB", texture.size, f"hsv({random.integers(360)}, 80%, 100%)")
        image.paste(ImageChops.multiply(texture, tint), mask=cover)
        annotations.append({"category_id": label, **describe(is_inside)})
    return np.asarray(image), annotations


def describe(is_inside: np.ndarray) -> dict:
    """The box, the area and the pixels of an object, as COCO has them."""
    code = coco_mask.encode(np.asfortranarray(is_inside, dtype=np.uint8))
    return {
        "bbox": coco_mask.toBbox(code).tolist(),
        "area": int(coco_mask.area(code)),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }


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


def make_coco(sizes: list[tuple[int, int]], annotations: list[dict], names: dict[int, str]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)],
        # COCOeval takes an annotation of id 0 for none.
        "annotations": [{"iscrowd": 0, **a, "id": i} for i, a in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def load_coco(folder: Path, file: Path, size: int) -> tuple[Tensor, COCO]:
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    files, annotations, names = read_annotations(file)
    if len(files) < 4:
        raise UserError(f"{file}: needs 4 images, found {len(files)}")
    with tqdm(files.values(), unit="image") as bar:
        images = [read_image(folder / name) for name in bar]
    place = {image_id: number for number, image_id in enumerate(files)}
    annotations = [a | {"image_id": place[a["image_id"]]} for a in annotations]
    small = [np.array(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    coco = make_coco([image.size for image in images], annotations, names)
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous(), coco


def read_annotations(file: Path) -> tuple[dict[int, str], list[dict], dict[int, str]]:
    """The files by image id, the annotations, and the names of the classes by category id."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        annotations = [read_annotation(entry, files, names) for entry in content["annotations"]]
    except FileNotFoundError as error:
        raise UserError(f"--annotations {file}: no such file") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--annotations {file}: not in the format of COCO ({type(error).__name__}: {error})"
        ) from error
    if not annotations:
        raise UserError(f"--annotations {file}: holds no boxes")
    return files, annotations, dict(sorted(names.items()))


def read_annotation(entry: dict, files: dict, names: dict) -> dict:
    left, top, width, height = map(float, entry["bbox"])
    if not (width > 0 and height > 0 and math.isfinite(left + top + width + height)):
        raise ValueError(f"the box {entry['bbox']} has no area")
    if entry["image_id"] not in files or entry["category_id"] not in names:
        raise ValueError(f"annotation {entry.get('id')} names no known image and category")
    return {
        "image_id": entry["image_id"],
        "category_id": entry["category_id"],
        "bbox": [left, top, width, height],
        "area": float(entry.get("area", width * height)),
        "iscrowd": int(entry.get("iscrowd", 0)),
    }


def read_image(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: unreadable image ({error})") from error


def make_target(coco: COCO, number: int) -> dict[str, Tensor]:
    """What RT-DETR learns from: classes, and centers and sides of boxes as shares of the image."""
    place = {category: label for label, category in enumerate(coco.cats)}
    annotations = [a for a in coco.imgToAnns[number] if not a["iscrowd"]]
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float).view(-1, 4)
    boxes[:, :2] += boxes[:, 2:] / 2
    width, height = coco.imgs[number]["width"], coco.imgs[number]["height"]
    return {
        "class_labels": torch.tensor([place[a["category_id"]] for a in annotations]).long(),
        "boxes": boxes / torch.tensor([width, height, width, height]),
    }


# The model and its training. ----------------------------------------------------------------------


def make_model(classes: list[str]) -> RTDetrForObjectDetection:
    stages = ["stage2", "stage3", "stage4"]
    config = RTDetrConfig(
        backbone_config=GrootVConfig(channels=channels, depths=depths, out_features=stages),
        encoder_in_channels=[2 * channels, 4 * channels, 8 * channels],
        encoder_hidden_dim=detector_channels,
        encoder_ffn_dim=2 * detector_channels,
        encoder_attention_heads=4,
        d_model=detector_channels,
        decoder_in_channels=3 * [detector_channels],
        decoder_ffn_dim=2 * detector_channels,
        decoder_attention_heads=4,
        decoder_layers=decoder_layers,
        num_queries=num_queries,
        num_denoising=num_denoising,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    model = RTDetrForObjectDetection(config)
    # Initial weights of deviation 0.02, as published, suit wide networks; narrow ones learn slowly.
    model.model.backbone.model.grootv.stages.apply(reset_parameters)
    return model


def reset_parameters(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def normalize(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def augment(images: Tensor, targets: list[dict]) -> tuple[Tensor, list[dict]]:
    """Mirrors every second image and changes brightness and contrast a little."""
    is_mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(is_mirrored[:, None, None, None], images.flip(-1), images)
    contrast, brightness = (torch.rand(2, len(images), 1, 1, 1) * 2 - 1).unbind()
    images = images * (1 + 0.3 * contrast) + 0.3 * brightness
    targets = [mirror(t) if m else t for t, m in zip(targets, is_mirrored, strict=True)]
    return images, targets


def mirror(target: dict[str, Tensor]) -> dict[str, Tensor]:
    x, *others = target["boxes"].unbind(1)
    return target | {"boxes": torch.stack([1 - x, *others], dim=1)}


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


def train(model, images: Tensor, targets: list[dict], epochs: int, checkpoint: Checkpoint) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    num_steps = epochs * math.ceil(len(images) / batch_size)
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
                x, y = augment(normalize(images[batch]), [targets[i] for i in batch])
                y = [{key: value.to(model.device) for key, value in t.items()} for t in y]
                loss = model(pixel_values=x.to(model.device), labels=y).loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.set_postfix(epoch=f"{epoch + 1}/{epochs}", loss=f"{loss.item():.2f}")
                bar.update()
            checkpoint.save(epoch + 1, **parts)


@torch.no_grad()
def predict(model, images: Tensor, coco: COCO, numbers: list[int]) -> list[dict]:
    """The results of the images of these numbers, as COCO has them."""
    model.eval()
    results = []
    for batch in torch.tensor(numbers).split(64):
        output = model(normalize(images[batch]).to(model.device))
        for number, logits, boxes in zip(
            batch.tolist(), output.logits.cpu(), output.pred_boxes.cpu(), strict=True
        ):
            results += describe_detections(coco, number, logits, boxes)
    return results


def describe_detections(coco: COCO, number: int, logits: Tensor, boxes: Tensor) -> list[dict]:
    """The likeliest pairs of box and class."""
    scores, best = logits.sigmoid().flatten().topk(len(logits))
    query, label = best // logits.size(1), best % logits.size(1)
    width, height = coco.imgs[number]["width"], coco.imgs[number]["height"]
    boxes = boxes[query] * torch.tensor([width, height, width, height])
    boxes[:, :2] -= boxes[:, 2:] / 2
    categories = list(coco.cats)
    return [
        {"image_id": number, "category_id": categories[index], "bbox": box, "score": score}
        for index, box, score in zip(label.tolist(), boxes.tolist(), scores.tolist(), strict=True)
    ]


# The measure and the picture. ---------------------------------------------------------------------


def average_precision(coco: COCO, results: list[dict], numbers: list[int]) -> tuple[float, float]:
    """AP at the overlaps 0.5 to 0.95 and at 0.5, of the images of these numbers."""
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.imgIds = numbers
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def draw(path: Path, images: Tensor, coco: COCO, results: list[dict], numbers: list[int]) -> None:
    """Above the true boxes, below the predicted ones with their scores."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    size = {"figsize": (2.35 * len(numbers) + 0.3, 4.8), "layout": "constrained"}
    figure, axes = plt.subplots(2, len(numbers), squeeze=False, **size)
    colors = plt.get_cmap("turbo")(np.linspace(0.1, 0.9, len(coco.cats)))
    names = [category["name"] for category in coco.cats.values()]
    styles = dict(zip(coco.cats, zip(names, colors, strict=True), strict=True))
    for column, number in zip(axes.T, numbers, strict=True):
        found = without_repeats([r for r in results if r["image_id"] == number])
        width, height = coco.imgs[number]["width"], coco.imgs[number]["height"]
        for ax, boxes in zip(column, (coco.imgToAnns[number], found), strict=True):
            ax.imshow(images[number].permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
            ax.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            for box in boxes:
                draw_box(ax, box, *styles[box["category_id"]])
    axes[0, 0].set_ylabel("truth", fontsize=11)
    axes[1, 0].set_ylabel("prediction", fontsize=11)
    figure.savefig(path.with_suffix(".tmp"), dpi=110, format="png")
    plt.close(figure)
    os.replace(path.with_suffix(".tmp"), path)


def without_repeats(results: list[dict]) -> list[dict]:
    """What the picture shows: the boxes that do not lie on a likelier one. AP counts all."""
    kept = []
    for result in results:
        overlaps = coco_mask.iou(
            [result["bbox"]], [other["bbox"] for other in kept], [0] * len(kept)
        )
        if result["score"] > shown_score and np.max(overlaps, initial=0) < shown_overlap:
            kept.append(result)
    return kept


def draw_box(ax, annotation: dict, name: str, color: np.ndarray) -> None:
    left, top, width, height = annotation["bbox"]
    ax.plot(
        [left, left + width, left + width, left, left],
        [top, top, top + height, top + height, top],
        color=color,
        linewidth=2,
    )
    score = f" {annotation['score']:.2f}" if "score" in annotation else ""
    ax.text(max(left, 0), max(top, 0), name + score, color="white", fontsize=8, va="top",
            clip_on=True, bbox={"facecolor": color, "edgecolor": "none", "pad": 1})  # fmt: skip


# All of it. ---------------------------------------------------------------------------------------


def load(args: argparse.Namespace) -> tuple[Tensor, COCO, list[int], list[int]]:
    """Images, annotations, and the numbers of the images to train on and of those held out."""
    if args.images is None:
        images, coco = generate(num_train, num_test, args.image_size, args.seed)
        numbers = list(range(len(images)))
        return images, coco, numbers[:num_train], numbers[num_train:]
    images, coco = load_coco(args.images, args.annotations, args.image_size)
    train_part, test_part = train_test_split(range(len(images)), test_size=held_out, random_state=0)
    if not any(len(make_target(coco, number)["boxes"]) for number in test_part):
        raise UserError(f"none of the {len(test_part)} held-out images has a box")
    return images, coco, train_part, test_part


def run(argv: list[str] | None) -> tuple[float, float]:
    start = time.perf_counter()
    args = parse_arguments(argv)
    torch.set_num_threads(threads)
    images, coco, train_part, test_part = load(args)
    print(
        f"{len(coco.cats)} classes, {len(coco.anns)} boxes, images of {args.image_size} x "
        f"{args.image_size} pixels, {len(train_part)} to train on, {len(test_part)} held out"
    )

    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = make_model([category["name"] for category in coco.cats.values()]).to(args.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"RT-DETR on GrootV with {channels} channels, blocks {depths}: {num_parameters} parameters"
    )
    untrained = average_precision(coco, predict(model, images, coco, test_part), test_part)
    targets = [make_target(coco, number) for number in train_part]
    settings = {"boxes": len(coco.anns), "images": len(images)}
    settings |= {name: getattr(args, name) for name in ("image_size", "epochs", "seed")}
    checkpoint = Checkpoint(args.output / "detection.pt", settings, args.resume)
    train(model, images[train_part], targets, args.epochs, checkpoint)

    results = predict(model, images, coco, test_part)
    ap, ap50 = average_precision(coco, results, test_part)
    print(
        f"before training: AP@[.5:.95] {100 * untrained[0]:.1f} %, AP50 {100 * untrained[1]:.1f} %"
    )
    print(f"held-out images: AP@[.5:.95] {100 * ap:.1f} %, AP50 {100 * ap50:.1f} %")

    folder, picture = args.output / "detection", args.output / "detection.png"
    model.save_pretrained(folder)
    draw(picture, images, coco, results, test_part[:5])
    checkpoint.path.unlink()
    print(f"saved {folder} and {picture}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return ap, ap50


def main(argv: list[str] | None = None) -> tuple[float, float]:
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
